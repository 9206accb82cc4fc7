"""Datasets, whose rows are functions of (index, seed) alone."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset

from composer.data.boxes import crop_boxes, window_of
from composer.data.order import MixedOrder
from composer.decomposition import Batch
from composer.images.reading import load_rgb, resize

Row = dict[str, Any]
"""One row of a `Batch`, without the batch axis: ``image`` (3 h w), ``caption``, and further tensors of the dataset."""


class ImageDataset(Dataset[Row], ABC):
    """Images with captions, and with representations if the dataset has them.

    A row depends on its index and its seed alone, never on a stateful generator, a worker or the order of calls, so
    that training can be resumed.

    Attributes:
        columns: Names of the representations that some rows have as tensors, which are used instead of extraction.
        boxed: Those of them that begin with boxes, see `Decomposer`.
    """

    columns: frozenset[str] = frozenset()
    boxed: frozenset[str] = frozenset()

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def row(self, index: int, seed: int) -> Row:
        """Returns one row: ``image``, ``caption`` and tensors named in `columns`.

        Args:
            index: In [0, len(self)).
            seed: Seed of everything random in this row.
        """

    def __getitem__(self, key: tuple[int, int]) -> Row:
        index, seed = key
        return {**self.row(index, seed), "seed": torch.tensor(seed, dtype=torch.int64)}

    def order(self, key: int) -> Sequence[int]:
        """The order of the rows in one epoch: a permutation of range(len(self)) that depends on the key alone."""
        return permutation(len(self), key)

    def show_source(self, side: int) -> None:
        """Lets rows show their images with more pixels, too: ``source`` (3 side side), where there are more."""

    def identity(self) -> dict[str, Any]:
        """Describes which rows these are and in which order, as plain values, for checkpoints.

        A run is resumed only on data of the same identity, as its order of images is one of row numbers. Size, crop
        and flips do not belong here. By default class and length; a dataset should add what identifies it cheaply.
        """
        return {"class": type(self).__name__, "rows": len(self)}

    def caption(self, index: int) -> str | None:
        """A row's caption, "" if it has none; None if it isn't known without computing the whole row."""
        return None

    def list_skipped_in(self, path: Path) -> None:
        """Sets the file in which refused images are listed; no effect unless a dataset reads files."""


def collate(rows: Sequence[Row]) -> Batch:
    """Collates rows to a batch; tensors are stacked, everything else becomes lists.

    A tensor that only some rows have is zero in the others, and ``batch["known"][name]``, (b,) bool, says which rows
    have it. Names that all rows have, or none, get no entry there.
    """
    batch: Batch = {"known": {}}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        example = next(value for value in values if value is not None)
        if not isinstance(example, Tensor):
            batch[name] = values
            continue
        if any(value is None for value in values):
            batch["known"][name] = torch.tensor([value is not None for value in values])
        batch[name] = torch.stack([torch.zeros_like(example) if value is None else value for value in values])
    return batch


def permutation(length: int, key: int) -> list[int]:
    """A permutation of range(length), drawn from a key."""
    drawn: list[int] = torch.randperm(length, generator=generator(key)).tolist()
    return drawn


def generator(seed: int) -> torch.Generator:
    """Makes a generator on the CPU with a seed."""
    return torch.Generator().manual_seed(seed)


class SceneImages(ImageDataset):
    """Procedural scenes (`composer.scenes`) with their depth and instances, rendered on demand.

    Args:
        split: ``train``, ``val`` or ``novel``.
        size: Side in pixels.
        count: Number of scenes. Up to 1024 stay in memory once rendered, so that validation renders them once.
        seed: Of the scenes' content; the row's own seed only draws its swaps.
        complete: Share of complete captions: each thing's size, material, colour, shape and place.
        swaps: Number of false captions per row, 0 to 5, in ``swaps``; they differ from the true one by a word or two.
        phrases: Whether rows say in ``phrases`` which of `scenes.PHRASES` are true of them.
        objects: Whether rows have ``boxes``, a phrase and a box for each object (see `decomposers.Objects`).
        folder: Where ``composer scenes`` wrote these scenes with these settings, to be read from there; None
            renders them.

    Raises:
        ValueError: The folder contains other scenes, or fewer.
    """

    columns = frozenset({"depth", "instances"})
    CHUNK = 32
    CACHED = 1024

    def __init__(
        self,
        split: str,
        size: int,
        count: int,
        seed: int = 0,
        complete: float = 0.0,
        swaps: int = 0,
        phrases: bool = False,
        folder: str | None = None,
        objects: bool = False,
    ):
        self.split, self.size, self.count, self.seed, self.complete = split, size, count, seed, complete
        if not 0 <= swaps <= 5:
            raise ValueError(f"expected 0 to 5 swaps per caption, found {swaps}")
        self.swaps, self.phrases, self.objects = swaps, phrases, objects
        self.folder = None if folder is None else self._written(Path(folder))
        self._chunks: dict[int, Batch] = {}

    def __len__(self) -> int:
        return self.count

    def row(self, index: int, seed: int) -> Row:
        from composer.scenes import describe, find_true_phrases, name_objects, read_scene, swaps
        from composer.scenes.layout import Dice

        row = self._rendered(index) if self.folder is None else read_scene(self.folder, index)
        boxes = row.pop("boxes")
        if self.swaps or self.phrases or self.objects:
            scene, _ = describe(self.split, index, self.seed)
            row |= {"boxes": name_objects(seed, scene, boxes)} if self.objects else {}
            row |= {"swaps": swaps(Dice(seed), scene, row["caption"], self.swaps)} if self.swaps else {}
            row |= {"phrases": find_true_phrases(scene)} if self.phrases else {}
        return row

    def _written(self, folder: Path) -> Path:
        """Checks a folder of scenes."""
        from composer.scenes import settings_of

        found = settings_of(folder)
        wanted = {"split": self.split, "size": self.size, "seed": self.seed, "complete": self.complete}
        if found != found | wanted or found["count"] < self.count:
            raise ValueError(f"expected {self.count} scenes of {wanted} in {folder}, found {found}")
        return folder

    def _rendered(self, index: int) -> Row:
        if self.count > self.CACHED:
            batch, i = self._render(range(index, index + 1)), 0
        else:
            chunk, i = divmod(index, self.CHUNK)
            if chunk not in self._chunks:
                start = chunk * self.CHUNK
                self._chunks[chunk] = self._render(range(start, min(start + self.CHUNK, self.count)))
            batch = self._chunks[chunk]
        return {name: batch[name][i] for name in ("image", "caption", "boxes", *sorted(self.columns))}

    def identity(self) -> dict[str, Any]:
        return super().identity() | {"split": self.split, "seed": self.seed}

    def caption(self, index: int) -> str:
        from composer.scenes import describe

        return describe(self.split, index, self.seed, self.complete)[1]

    def _render(self, indices: range) -> Batch:
        from composer.scenes import render_batch

        return render_batch(self.split, list(indices), self.size, self.seed, complete=self.complete)


PHOTOGRAPHS = {
    "astronaut.png": "a photograph of an astronaut",
    "chelsea.png": "a photograph of a tabby cat",
    "coffee.png": "a photograph of a cup of coffee on a wooden table",
    "hubble_deep_field.jpg": "a photograph of distant galaxies",
    "ihc.png": "a photograph of stained tissue under a microscope",
    "retina.jpg": "a photograph of a human retina",
    "rocket.jpg": "a photograph of a rocket launch at dusk",
}
"""The colour photographs with a free licence in scikit-image; see assets/PHOTOGRAPHS.md for their sources."""


class Photographs(ImageDataset):
    """Random crops of the photographs that scikit-image ships: real images without a download.

    Args:
        size: Side in pixels.
        names: File names out of `PHOTOGRAPHS`; None takes all.
        smallest: Minimum side of a crop, as a share of the photograph's shorter side; sizes are drawn log-uniformly.
    """

    def __init__(self, size: int, names: Sequence[str] | None = None, smallest: float = 0.4):
        self.size, self.names, self.smallest = size, list(PHOTOGRAPHS if names is None else names), smallest
        unknown = sorted(set(self.names) - PHOTOGRAPHS.keys())
        if unknown or not self.names:
            raise ValueError(
                f"expected photographs among {', '.join(PHOTOGRAPHS)}; found {', '.join(unknown) or 'none'}"
            )
        if not 0 < smallest <= 1:
            raise ValueError(f"smallest is a share in (0, 1], found {smallest}")

    def __len__(self) -> int:
        return len(self.names)

    def row(self, index: int, seed: int) -> Row:
        name, draw = self.names[index], generator(seed)
        pixels = _photograph(name)
        h, w = pixels.shape[1:]
        side = round(min(h, w) * self.smallest ** float(torch.rand((), generator=draw)))
        y = int(torch.randint(h - side + 1, (), generator=draw))
        x = int(torch.randint(w - side + 1, (), generator=draw))
        image = resize(pixels[:, y : y + side, x : x + side].float() / 127.5 - 1, self.size)
        if torch.rand((), generator=draw) < 0.5:
            image = image.flip(-1)
        return {"image": image, "caption": self.caption(index)}

    def identity(self) -> dict[str, Any]:
        return super().identity() | {"names": ", ".join(self.names)}

    def caption(self, index: int) -> str:
        return PHOTOGRAPHS[self.names[index]]


@cache
def _photograph(name: str) -> UInt8[Tensor, "3 h w"]:
    found = find_spec("skimage")  # only its folder: importing it takes half a second
    if found is None or found.origin is None:
        raise FileNotFoundError(
            "the photographs come with scikit-image, which is not installed: pip install scikit-image"
        )
    image = load_rgb(Path(found.origin).parent / "data" / name).image
    return ((image + 1) * 127.5).round().to(torch.uint8)


class Mixture(ImageDataset):
    """Several datasets as one, each with a share of the rows.

    An epoch contains every dataset in exact proportion to its weight. Its length is such that the dataset that is
    largest relative to its weight is seen once; the others repeat, with other seeds.

    Args:
        datasets: The parts.
        weights: One positive number per dataset, in any unit.
    """

    def __init__(self, datasets: Sequence[ImageDataset], weights: Sequence[float]):
        if len(datasets) != len(weights) or not datasets or min(weights) <= 0:
            raise ValueError(
                f"expected one positive weight per dataset, found {list(weights)} for {len(datasets)} datasets"
            )
        self.datasets = list(datasets)
        self.columns = frozenset().union(*(dataset.columns for dataset in datasets))
        self.boxed = frozenset().union(*(dataset.boxed for dataset in datasets))
        scale = max(len(dataset) / weight for dataset, weight in zip(datasets, weights, strict=True))
        self.counts = [max(1, round(weight * scale)) for weight in weights]

    def __len__(self) -> int:
        return sum(self.counts)

    def row(self, index: int, seed: int) -> Row:
        dataset, own = self._find(index)
        return dataset.row(own, seed)

    def order(self, key: int) -> Sequence[int]:
        if all(type(part).order is ImageDataset.order for part in parts_of(self)):
            return super().order(key)
        # Of shards, few are to be open at a time, and a permutation of all rows may not fit the memory
        return MixedOrder([d.order for d in self.datasets], [len(d) for d in self.datasets], self.counts, key)

    def _find(self, index: int) -> tuple[ImageDataset, int]:
        """Finds the dataset of a row, and the row's index there."""
        for dataset, count in zip(self.datasets, self.counts, strict=True):
            if index < count:
                return dataset, index % len(dataset)
            index -= count
        raise IndexError(f"a mixture of {len(self)} rows has no row {index + len(self)}")

    def identity(self) -> dict[str, Any]:
        parts = zip(self.datasets, self.counts, strict=True)
        return super().identity() | {str(i): d.identity() | {"share": n} for i, (d, n) in enumerate(parts)}

    def caption(self, index: int) -> str | None:
        dataset, own = self._find(index)
        return dataset.caption(own)

    def show_source(self, side: int) -> None:
        for dataset in self.datasets:
            dataset.show_source(side)

    def list_skipped_in(self, path: Path) -> None:
        for dataset in self.datasets:
            dataset.list_skipped_in(path)


class Crops(ImageDataset):
    """Random square crops of another dataset's images; maps of an image's size, and boxes, are cropped with it.

    The papers train their larger stages on them (unCLIP: a quarter of the side; Imagen: 64 -> 256 of 1024).

    Args:
        dataset: The images.
        size: Side of the crops, in pixels.
    """

    def __init__(self, dataset: ImageDataset, size: int):
        self.dataset, self.size, self.columns = dataset, size, dataset.columns
        self.boxed = dataset.boxed

    def __len__(self) -> int:
        return len(self.dataset)

    def row(self, index: int, seed: int) -> Row:
        row = self.dataset.row(index, seed)
        h, w = row["image"].shape[1:]
        if self.size > min(h, w):
            raise ValueError(f"expected images of at least {self.size} x {self.size} pixels to crop, found {w} x {h}")
        random = generator(seed ^ 0xC809)  # independent of the dataset's own draws
        y, x = (int(torch.randint(side - self.size + 1, (), generator=random)) for side in (h, w))

        def cropped(value: Any) -> Any:
            fits = isinstance(value, Tensor) and value.ndim == 3 and value.shape[1:] == (h, w)
            return value[:, y : y + self.size, x : x + self.size] if fits else value

        window = window_of(slice(y, y + self.size), slice(x, x + self.size), (h, w))
        return crop_boxes({name: cropped(value) for name, value in row.items()}, self.boxed, window)

    def order(self, key: int) -> Sequence[int]:
        return self.dataset.order(key)

    def show_source(self, side: int) -> None:
        raise ValueError("crops show no source: leave out data.source, or the crops")

    def identity(self) -> dict[str, Any]:
        return self.dataset.identity()

    def caption(self, index: int) -> str | None:
        return self.dataset.caption(index)

    def list_skipped_in(self, path: Path) -> None:
        self.dataset.list_skipped_in(path)


def parts_of(dataset: ImageDataset) -> Iterator[ImageDataset]:
    """The datasets that crops and mixtures are made of."""
    if isinstance(dataset, Crops):
        yield from parts_of(dataset.dataset)
    elif isinstance(dataset, Mixture):
        for part in dataset.datasets:
            yield from parts_of(part)
    else:
        yield dataset
