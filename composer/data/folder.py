"""A dataset from a folder of images with captions."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float32
from numpy.lib.format import open_memmap
from torch import Tensor

from composer.data.boxes import SUFFIX, crop_boxes, find_boxes, read_boxes, window_of
from composer.data.datasets import ImageDataset, Row, generator, parts_of
from composer.data.refusals import ReadImages
from composer.images.reading import SUFFIXES, Reason, Refused, largest_square, load_rgb, resize
from composer.storage.files import hash_content, read_text, require_file

Item = tuple[str, str | None]
"""An image and its caption; "" if it has none, None if it is in a file beside the image."""

LISTING = "metadata.jsonl"
MAX_LISTING = 10_000_000_000
"""Maximum size in bytes: it has a line for each image."""

RESERVED = frozenset({"image", "source", "caption", "seed", "known"})
"""Keys of a batch besides representations; no column may have these names."""

MAX_CAPTION = 100_000
"""Maximum bytes read of a caption's file; models read at most a hundred words."""


class ImageFolder(ReadImages):
    """A folder of images, searched recursively, each captioned by a ``.txt`` beside it or by ``metadata.jsonl``.

    If the folder contains ``metadata.jsonl``, it lists the images: one object per line with ``file_name``, relative to
    the folder, and ``caption`` or ``text``. A caption beside the image takes precedence. Hidden files are ignored.

    A precomputed representation is stored beside its image as ``<stem>.<name>.npy`` and becomes a float32 column
    (``composer cache`` writes such files). A map (c h w) must match the image's pixels, so it needs an image of exactly
    the dataset's size, without random crops or flips. Vectors and sequences, such as a caption's encodings, work with
    any crop.

    Objects are stored as ``<stem>.boxes.json`` (see `composer.data.boxes`); their boxes are cropped and mirrored with
    the image. An image without that file has no objects, if another has one.

    A file that `load_rgb` refuses, such as an image that is too small, is replaced by another, the same in every run.

    Args:
        path: The folder.
        size: Side of the square images, in pixels.
        captions: Whether an image without a caption raises an error here, or has the caption "".
        crop: Which square of an image is used: at the centre, or drawn from the row's seed.
        flip: Whether to mirror half of the rows, drawn from the row's seed.
        min_side: Minimum of the shorter side of an image, in pixels; smaller ones are refused. None takes `size`, so
            that no image is enlarged; 0 accepts every image.

    Raises:
        FileNotFoundError: There is no such folder, or it contains no images.
        ValueError: Captions are missing, or there are maps and random crops or flips.
    """

    def __init__(
        self,
        path: str,
        size: int,
        captions: Literal["error", "empty"] = "error",
        crop: Literal["centre", "random"] = "centre",
        flip: bool = False,
        min_side: int | None = None,
    ):
        super().__init__(path)
        self.folder, self.size, self.crop, self.flip = Path(path), size, crop, flip
        self.source: int | None = None
        self.min_side = size if min_side is None else min_side
        if not self.folder.is_dir():
            raise FileNotFoundError(f"expected a folder of images at {path}, found no folder")
        files = list(_walk(str(self.folder)))
        self.items = _items(self.folder, files)
        if not self.items and (self.folder / LISTING).exists():
            raise ValueError(
                f"expected a line for each image in {self.folder / LISTING}, found none: list them, or remove the file "
                "to use all images of the folder"
            )
        if not self.items:
            raise FileNotFoundError(f"expected images ({' '.join(sorted(SUFFIXES))}) in {path}, found none")
        missing = [Path(image) for image, caption in self.items if caption == ""]
        if missing and captions == "error":
            raise ValueError(
                f"expected a caption for each of the {len(self.items)} images in {path}, found none for "
                f"{len(missing)}, such as {missing[0].name}. Write {missing[0].stem}.txt or metadata.jsonl, let "
                "composer.data.captions.caption_folder write captions, or pass captions='empty'"
            )
        self.sidecars, self.has_boxes = _sidecars(files), any(path.endswith(f".{SUFFIX}") for path in files)
        self.columns = frozenset(name for names in self.sidecars.values() for name in names)
        if reserved := self.columns & RESERVED:
            raise ValueError(f"expected columns named after representations in {path}, found {', '.join(reserved)}")
        if (flip or crop == "random") and (maps := _maps(self.sidecars)):
            raise ValueError(
                f"found maps ({', '.join(maps)}) beside the images in {path}; they would not match a random crop "
                "or a mirrored image: pass crop='centre' and flip=False, or remove them. Columns that are not maps "
                "(c h w), such as a caption's encodings, may stay"
            )

    def __len__(self) -> int:
        return len(self.items)

    def show_source(self, side: int) -> None:
        self.source = side

    def read(self, index: int, seed: int) -> Row:
        path, _ = self.items[index]
        full = load_rgb(path, max(self.size, self.source or 0), min_side=self.min_side).image
        columns = {name: _column(path, name) for name in self.sidecars.get(_stem(path), [])}
        maps = [name for name, value in columns.items() if value.ndim == 3]
        if maps and full.shape[1:] != (self.size, self.size):
            raise ValueError(
                f"expected {path} to be {self.size} x {self.size}, as maps ({', '.join(maps)}) lie beside it; "
                f"found {full.shape[2]} x {full.shape[1]}"
            )
        random = generator(seed)
        rows, along = largest_square(full.shape[1], full.shape[2], random if self.crop == "random" else None)
        square = full[:, rows, along]
        mirrored = self.flip and bool(torch.rand((), generator=random) < 0.5)
        if mirrored:
            square = square.flip(-1)
        source = {} if self.source is None else {"source": resize(square, self.source)}
        row = {"image": resize(square, self.size), **source, "caption": self.caption(index), **columns}
        if self.has_boxes:
            row["boxes"] = read_boxes(Path(path), find_boxes(path))
        return crop_boxes(row, self.boxed, window_of(rows, along, full.shape[1:]), mirrored)

    def identity(self) -> dict[str, Any]:
        """Identifies the files by their names below the folder: the folder may move, and captions may change."""
        names = "\n".join(path.removeprefix(f"{self.folder}/") for path, _ in self.items)
        return super().identity() | {"hash of the file names": hash_content(names.encode(errors="surrogatepass"))}

    def caption(self, index: int) -> str:
        """The caption of an image; "" if it has none."""
        path, caption = self.items[index]
        if caption is None:
            with require_file(Path(f"{_stem(path)}.txt")).open("rb") as file:
                return file.read(MAX_CAPTION).decode("utf-8", "replace").strip()
        return caption


def find_folders(dataset: ImageDataset | None) -> Iterator[ImageFolder]:
    """Yields the folders that a dataset is made of."""
    if dataset is not None:
        yield from (part for part in parts_of(dataset) if isinstance(part, ImageFolder))


def column_path(image: str | Path, name: str) -> Path:
    """The path of an image's column."""
    return Path(f"{_stem(str(image))}.{name}.npy")


def _walk(folder: str) -> Iterator[str]:
    """Yields every file below a folder, in order, except hidden ones."""
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (f"{Path(parent).as_posix()}/{name}" for name in sorted(files) if not name.startswith("."))


def _stem(path: str) -> str:
    return path.rpartition(".")[0]


def _items(folder: Path, files: list[str]) -> list[Item]:
    texts = {_stem(path) for path in files if path.endswith(".txt")}
    listing = folder / LISTING
    if listing.exists():
        lines = enumerate(read_text(listing, MAX_LISTING).split("\n"), 1)
        found = [_listed(folder, line, f"{listing}, line {number}") for number, line in lines if line.strip()]
    else:
        found = [(path, "") for path in files if f".{path.rpartition('.')[2].lower()}" in SUFFIXES]
    return [(path, None if _stem(path) in texts else caption) for path, caption in found]


def _listed(folder: Path, line: str, where: str) -> tuple[str, str]:
    try:
        entry = json.loads(line)
        name = entry["file_name"]
        caption = entry.get("caption", entry.get("text")) or ""
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        expected = '{"file_name": ..., "caption": ...}'
        raise ValueError(f"{where}: expected an object such as {expected}, found {line[:80]!r}") from error
    if not isinstance(name, str) or Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"{where}: expected a file_name inside the folder, found {name!r}")
    return f"{folder.as_posix()}/{Path(name).as_posix()}", str(caption).strip()


def _sidecars(files: list[str]) -> dict[str, list[str]]:
    """Stem of an image -> names of the columns beside it."""
    found: dict[str, list[str]] = {}
    for path in files:
        if path.endswith(".npy"):
            stem, _, name = _stem(path).rpartition(".")
            if name.isidentifier():
                found.setdefault(stem, []).append(sys.intern(name))
    return found


def _maps(sidecars: dict[str, list[str]]) -> list[str]:
    """Names of the columns that are maps (c h w), judged by the first file of each."""
    first = {name: stem for stem, names in reversed(sidecars.items()) for name in names}

    def dimensions(name: str) -> int:
        try:
            path = require_file(Path(f"{first[name]}.{name}.npy"))
            shape: tuple[int, ...] = np.load(path, mmap_mode="r", allow_pickle=False).shape
            return len(shape)
        except (OSError, ValueError, EOFError):
            return 0  # refused when its image is read

    return [name for name in sorted(first) if dimensions(name) == 3]


def _column(image: str, name: str) -> Float32[Tensor, "..."]:
    path = column_path(image, name)
    if not path.is_file():  # reading a pipe would block
        raise Refused(path, Reason.NOT_A_FILE)
    try:
        values = open_memmap(path, mode="r").astype(np.float32)  # takes no more memory than the file has bytes
    except Exception as error:  # its header is parsed as Python, which may raise any error
        raise Refused(path, Reason.DAMAGED, str(error)) from error
    if not np.isfinite(values).all():
        raise Refused(path, Reason.NOT_FINITE)
    return torch.from_numpy(values)
