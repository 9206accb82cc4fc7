"""A dataset from prepared shards, read by random access."""

import io
import json
from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from composer.data.boxes import SUFFIX, crop_boxes, read_boxes, window_of
from composer.data.datasets import Row, generator
from composer.data.order import WindowedOrder
from composer.data.places import Files, LocalFiles, RemoteFiles
from composer.data.refusals import ReadImages
from composer.data.shards import Members, index_path, read_index, read_item
from composer.images.reading import PictureFile, Reason, Refused, largest_square, load_rgb
from composer.storage.files import hash_content, read_text

MANIFESTS = "manifest-*.json"
MAX_MANIFEST = 1_000_000_000
KNOWN = 64
"""Shards whose index one process keeps in memory."""


class ShardFolder(ReadImages):
    """Images with captions and representations in shards that `composer prepare` wrote.

    Rows are read by random access, so that a training is resumed exactly and processes may change in number. The order
    of an epoch permutes the shards, then the items of each few shards, and takes no memory per item. Maps and boxes
    of objects are cropped and mirrored with their image.

    Args:
        path: The folder; or its address, such as ``s3://bucket/photos``, for what fsspec can reach: shards are then
            copied to `cache` as a whole when they are first needed.
        size: Side of the square images, in pixels: what they were prepared for.
        crop: Which square of an image is used: at the centre, or drawn from the row's seed.
        flip: Whether to mirror half of the rows, drawn from the row's seed.
        window: How many shards' items are mixed; more mix better, and read from more files at a time.
        cache: Folder for copies of remote shards.

    Raises:
        FileNotFoundError: There are no prepared shards at that place.
        ValueError: Parts of the preparation are missing, or it was for another size.
    """

    def __init__(
        self,
        path: str,
        size: int,
        crop: Literal["centre", "random"] = "centre",
        flip: bool = False,
        window: int = 8,
        cache: str | None = None,
    ):
        super().__init__(path)
        self.size, self.crop, self.flip, self.window = size, crop, flip, window
        self.files = LocalFiles(path) if "://" not in path else RemoteFiles(path, cache)
        manifests = _read_manifests(self.files)
        prepared = {manifest["size"] for manifest in manifests}
        if prepared != {size}:
            raise ValueError(f"expected images prepared for {size} pixels in {path}, found {sorted(prepared)}")
        columns = {tuple(manifest["columns"]) for manifest in manifests}
        if len(columns) > 1:
            raise ValueError(f"expected parts with the same representations in {path}, found {sorted(columns)}")
        self.columns = frozenset(columns.pop())
        self.boxed = frozenset[str](manifests[0].get("boxed", ()))
        self.has_boxes = any(manifest.get("boxes") for manifest in manifests)
        self.source: int = manifests[0]["source"]
        self.specs: dict[str, Any] = manifests[0].get("decomposers", {})
        shards = sorted((shard["file"], shard["items"]) for m in manifests for shard in m["shards"] if shard["items"])
        if not shards:
            raise FileNotFoundError(f"expected images in the shards of {path}, found none")
        self.names, self.counts = [name for name, _ in shards], [count for _, count in shards]
        self.ends = list(accumulate(self.counts))
        self._places = lru_cache(KNOWN)(self._read_places)

    def __len__(self) -> int:
        return sum(self.counts)

    def order(self, key: int) -> Sequence[int]:
        return WindowedOrder(self.counts, self.window, key)

    def check_prepared(self, specs: Mapping[str, Any], at_source: Collection[str], source: int | None) -> None:
        """Compares the decomposers of a training with those that made the columns: a model reads by the former.

        Args:
            specs: How each of the training's is built, as plain JSON values.
            at_source: Names of those that read images at the source's size.
            source: Shorter side at which they read; None for the images that are trained on.

        Raises:
            ValueError: One of them differs, or reads at another size.
        """
        again = "run `composer prepare` again, into another folder, or change the configuration"
        for name in sorted(self.columns & specs.keys() & self.specs.keys()):
            if specs[name] != self.specs[name]:
                raise ValueError(
                    f"{self.place} was prepared with another {name} than this training has: {_told(self.specs[name])} "
                    f"there, {_told(specs[name])} here: {again}"
                )
        reads = source or self.size
        if (names := sorted(self.columns & set(at_source))) and reads != self.source:
            raise ValueError(
                f"{', '.join(names)} of {self.place} were read at {self.source} pixels, this training reads at "
                f"{reads}: set data.source to {self.source}, or prepare with --source {reads}"
            )

    def identity(self) -> dict[str, Any]:
        shards = "\n".join(f"{name} {count}" for name, count in zip(self.names, self.counts, strict=True))
        return super().identity() | {"hash of the shards": hash_content(shards.encode(errors="surrogatepass"))}

    def caption(self, index: int) -> str | None:
        if isinstance(self.files, RemoteFiles):  # looking at some captions would copy whole shards
            return None
        return _caption(self._members(index)[1])

    def read(self, index: int, seed: int) -> Row:
        where, members = self._members(index)
        name, data = next(((s, data) for s, data in members.items() if s in ("png", "jpg")), ("", b""))
        image = load_rgb(PictureFile.holding(where.with_suffix(f".{name}"), data), min_side=1).image
        columns = {s.removesuffix(".npy"): _array(where, data) for s, data in members.items() if s.endswith(".npy")}
        if min(image.shape[1:]) != self.size:
            raise Refused(where, Reason.DAMAGED, f"{image.shape[2]} x {image.shape[1]}, prepared for {self.size}")
        random = generator(seed)
        rows, along = largest_square(image.shape[1], image.shape[2], random if self.crop == "random" else None)
        mirrored = self.flip and bool(torch.rand((), generator=random) < 0.5)

        def seen(value: Tensor) -> Tensor:
            if value.ndim != 3:
                return value
            times = value.shape[1] // image.shape[1]  # maps may be kept larger than their images
            if not times or value.shape[1:] != (image.shape[1] * times, image.shape[2] * times):
                raise Refused(where, Reason.DAMAGED, f"a map of {tuple(value.shape)} beside {tuple(image.shape)}")
            square = value[:, *(slice(side.start * times, side.stop * times) for side in (rows, along))]
            return square.flip(-1) if mirrored else square

        row = {
            "image": seen(image),
            "caption": _caption(members),
            **{name: seen(value) for name, value in columns.items() if name in self.columns},
        }
        if self.has_boxes:
            row["boxes"] = read_boxes(where, members.get(SUFFIX, b"[]"))
        return crop_boxes(row, self.boxed, window_of(rows, along, image.shape[1:]), mirrored)

    def _members(self, index: int) -> tuple[Path, Members]:
        """Reads an item: a name for it in errors, and its members."""
        shard = bisect_right(self.ends, index)
        name, number = self.names[shard], index - (self.ends[shard] - self.counts[shard])
        where = Path(str(self.place)) / name / str(number)
        try:
            offset, size = self._places(name)[number]
            with self.files.get(name).open("rb") as file:
                return where, read_item(file, int(offset), int(size))
        except (ValueError, OSError, IndexError) as error:
            raise Refused(where, Reason.DAMAGED, str(error)) from error

    def _read_places(self, name: str) -> np.ndarray:
        """Offset and size of each item of a shard, (n, 2): an index without its keys takes 16 bytes an item."""
        self.files.get(str(index_path(Path(name))))
        return np.array([[item.offset, item.size] for item in read_index(self.files.get(name)).items], dtype=np.int64)


def _told(spec: Mapping[str, Any]) -> str:
    """A decomposer's name and arguments."""
    arguments = ", ".join(f"{name}={value}" for name, value in sorted(spec.get("init_args", {}).items()))
    return f"{spec['class_path'].rpartition('.')[2]}({arguments})"


def _caption(members: Members) -> str:
    return members.get("txt", b"").decode("utf-8", "replace").strip()


def _array(where: Path, data: bytes) -> Tensor:
    try:
        values = np.load(io.BytesIO(data), allow_pickle=False).astype(np.float32)
    except Exception as error:  # its header is parsed as Python, which may raise any error
        raise Refused(where, Reason.DAMAGED, str(error)) from error
    if not np.isfinite(values).all():
        raise Refused(where, Reason.NOT_FINITE)
    return torch.from_numpy(values)


def _read_manifests(files: Files) -> list[dict[str, Any]]:
    """Reads what each part of a preparation says.

    Raises:
        FileNotFoundError: There is none.
        ValueError: A part is missing.
    """
    names = files.names(MANIFESTS)
    if not names:
        raise FileNotFoundError(
            f"expected prepared shards in {files.place}, found no {MANIFESTS}: composer prepare FOLDER --out SHARDS "
            "writes them"
        )
    manifests: list[dict[str, Any]] = [json.loads(read_text(files.get(name), MAX_MANIFEST)) for name in names]
    parts = max(manifest["parts"] for manifest in manifests)
    missing = sorted(set(range(1, parts + 1)) - {manifest["part"] for manifest in manifests})
    if missing or any(manifest["parts"] != parts for manifest in manifests):
        raise ValueError(
            f"expected {parts} finished parts in {files.place}, found {len(manifests)}: run "
            f"`composer prepare --part {missing[0] if missing else 1}/{parts}` to its end, into an empty folder if the "
            "number of parts has changed"
        )
    return manifests
