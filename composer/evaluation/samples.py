"""The images that a model is measured on, read some rows at a time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from composer.data.datasets import collate
from composer.data.folder import ImageFolder
from composer.data.refusals import Ledger
from composer.decomposition import Batch


@dataclass(frozen=True)
class Sample:
    """Images that are read when needed: a large sample takes no more memory than a small one.

    Attributes:
        count: Number of images.
        read: Gives the rows of these numbers as a batch, in [0, count); the same ones every time.
        ledger: Of the files that were refused, where the images are files.
    """

    count: int
    read: Callable[[Sequence[int]], Batch]
    ledger: Ledger | None = None


def open_sample(data: str, count: int, size: int, min_side: int | None = None) -> Sample:
    """The first `count` images of ``scenes:SPLIT`` or of a folder. Without any caption there is no ``caption``.

    Args:
        data: ``scenes:SPLIT``, or the folder's path.
        count: Number of images.
        size: Side of the images in pixels.
        min_side: Least shorter side of a folder's images, see `ImageFolder`.

    Raises:
        ValueError: There are fewer images.
    """
    if data.startswith("scenes:"):
        return Sample(count, partial(_scenes, data.removeprefix("scenes:"), size))
    folder = ImageFolder(data, size, captions="empty", min_side=min_side)
    if len(folder) < count:
        raise ValueError(f"{data} holds {len(folder)} images, fewer than the {count} asked for")
    captioned = any(folder.caption(i) for i in range(count))

    def read(index: Sequence[int]) -> Batch:
        batch = collate([folder.row(i, i) for i in index])
        return batch if captioned else {name: value for name, value in batch.items() if name != "caption"}

    return Sample(count, read, folder.ledger)


def sample_of(data: str, count: int, size: int) -> Batch:
    """The images of `open_sample` as one batch."""
    return open_sample(data, count, size).read(range(count))


RENDERED = 32
"""Scenes that are rendered at a time."""


def _scenes(split: str, size: int, index: Sequence[int]) -> Batch:
    from composer.scenes import describe, name_objects, render_batch

    parts = [render_batch(split, index[i : i + RENDERED], size) for i in range(0, len(index), RENDERED)]
    tensors = {name: torch.cat([part[name] for part in parts]) for name in ("image", "depth", "instances")}
    boxes = [row for part in parts for row in part["boxes"]]
    named = [name_objects(i, describe(split, i)[0], row) for i, row in zip(index, boxes, strict=True)]
    return {**tensors, "caption": [caption for part in parts for caption in part["caption"]], "boxes": named}
