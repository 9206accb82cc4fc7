"""Captions for the images of a folder that have none."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from composer.data.folder import ImageFolder
from composer.images.reading import Refused, load_rgb, resize_and_crop


@runtime_checkable
class Captioner(Protocol):
    """Writes captions; see `decomposers.captioner`."""

    def captions(self, image: Float[Tensor, "b 3 h w"]) -> list[str]:
        """Writes one caption per image."""
        ...


def caption_folder(path: str | Path, captioner: Captioner, size: int = 384, batch_size: int = 8) -> int:
    """Writes a caption to ``<stem>.txt`` beside each image of a folder that has none.

    Existing captions stay; refused images are skipped. It can be stopped and called again.

    Args:
        path: A folder as `ImageFolder` reads it.
        captioner: Writes the captions.
        size: Side in pixels of the square image for the captioner.
        batch_size: Images at a time.

    Returns:
        How many captions were written.
    """
    folder = ImageFolder(str(path), size, captions="empty")
    readable = _readable((Path(image) for image, caption in folder.items if caption == ""), size)
    written = 0
    while batch := list(islice(readable, batch_size)):
        images = torch.stack([image for _, image in batch])
        for (file, _), caption in zip(batch, captioner.captions(images), strict=True):
            file.with_suffix(".txt").write_text(caption + "\n", encoding="utf-8")
            written += 1
    return written


def _readable(paths: Iterator[Path], size: int) -> Iterator[tuple[Path, Float[Tensor, "3 h w"]]]:
    for path in paths:
        try:
            yield path, resize_and_crop(load_rgb(path, size).image, size)
        except Refused:
            continue
