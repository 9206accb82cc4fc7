"""Prepares images for training: decodes each once, computes its representations once, and writes shards."""

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from composer.data.boxes import SUFFIX, Boxes, read_boxes
from composer.data.columns import check_suited, encode_array
from composer.data.shards import Index, Members, Refusal, index_path, read_index, write_shard
from composer.data.sources import Found, Source
from composer.decomposition import Batch, Decomposition, Representations
from composer.images.reading import Refused, fit, load_rgb, opened
from composer.storage.files import write_json


@dataclass(frozen=True)
class Preparation:
    """How images are prepared.

    Attributes:
        size: Shorter side of the images that are kept, in pixels; smaller ones are refused.
        source: Shorter side of what decomposers read: the image's own, but at most this.
        jpeg: Quality of kept images as JPEG, 1 to 100; None keeps them exactly, as PNG.
        part: Which share of the shards this process writes, from 1.
        parts: How many shares there are.
        maps: Shorter side of maps, a multiple of `size`, for conditions that read larger ones; None keeps them at the
            size of the images.
    """

    size: int
    source: int = 384
    jpeg: int | None = None
    part: int = 1
    parts: int = 1
    maps: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.part <= self.parts:
            raise ValueError(f"expected a part from 1/{self.parts} to {self.parts}/{self.parts}, found {self.part}")
        if self.source < self.size:
            raise ValueError(f"expected a source of at least the {self.size} pixels that are kept, found {self.source}")
        if self.maps is not None and (self.maps % self.size or self.maps < self.size):
            raise ValueError(f"expected maps at a multiple of the {self.size} pixels that are kept, found {self.maps}")


@dataclass
class Prepared:
    """What a part has written.

    Attributes:
        images: Number of images in its shards.
        refused: Images that were left out.
        kept: Shards that were complete before.
    """

    images: int = 0
    refused: list[Refusal] = field(default_factory=list)
    kept: int = 0


class _Picture(NamedTuple):
    """An image.

    Attributes:
        found: Where it is from.
        size: Its height and width.
        small: As it is kept, (3 h w) uint8.
        large: As decomposers read it, (3 h w) in [-1, 1].
        boxes: Of its objects; None if the source has none.
    """

    found: Found
    size: tuple[int, int]
    small: Tensor
    large: Tensor
    boxes: Boxes | None

    def about(self) -> bytes:
        """Name and size of the file, for people."""
        h, w = self.size
        return json.dumps({"file": self.found.name, "width": w, "height": h}).encode()


def prepare(
    source: Source,
    out: Path,
    how: Preparation,
    decomposition: Decomposition,
    device: torch.device | str = "cpu",
    workers: int = 2,
    rows: int = 32,
    progress: Callable[[int], object] = lambda done: None,
    specs: Mapping[str, Any] | None = None,
) -> Prepared:
    """Writes a part of the shards, and its manifest at the end. Complete shards of an interrupted run are kept.

    Args:
        source: The images.
        out: Folder of the shards.
        how: How they are prepared.
        decomposition: What to compute; empty for images and captions alone.
        device: Where to.
        workers: Threads that decode.
        rows: Images at a time.
        progress: Called with the number of images that were just finished or refused.
        specs: How each decomposer is built, as plain JSON values; a training compares its own with them.

    Raises:
        ValueError: The folder was prepared in another way, or a representation can't be kept.
    """
    done, shards = Prepared(), list[dict[str, Any]]()
    work = Work(source, how, decomposition, device, workers, rows, progress, specs)
    for path, index, kept in work.write(out, range(how.part - 1, source.shards, how.parts)):
        shards.append({"file": path.name, "items": len(index.items)})
        done.images += len(index.items)
        done.refused += index.refused
        done.kept += kept
    manifest = work.settings() | {
        "part": how.part,
        "parts": how.parts,
        "refused": len(done.refused),
        "shards": shards,
    }
    write_json(out / f"manifest-{how.part}-of-{how.parts}.json", manifest)
    return done


def shard_path(out: Path, number: int) -> Path:
    """The path of a shard."""
    return out / f"{number:06d}.tar"


def _check_settings(out: Path, settings: dict[str, Any]) -> None:
    """Keeps the settings of a preparation with it, so that parts and later runs agree."""
    path = out / "settings.json"
    if path.exists():
        before = {"maps": settings["size"]} | json.loads(path.read_text(encoding="utf-8"))
        if changed := sorted(name for name in settings.keys() & before.keys() if before[name] != settings[name]):
            raise ValueError(
                f"{out} was prepared with other {', '.join(changed)}: "
                + "; ".join(f"{name} {before[name]} before, {settings[name]} now" for name in changed)
                + ". Write to another folder"
            )
    else:
        write_json(path, settings)


class Work:
    """Writes shards; for the arguments see `prepare`."""

    def __init__(
        self,
        source: Source,
        how: Preparation,
        decomposition: Decomposition,
        device: torch.device | str = "cpu",
        workers: int = 2,
        rows: int = 32,
        progress: Callable[[int], object] = lambda done: None,
        specs: Mapping[str, Any] | None = None,
    ):
        self.specs = dict(specs or {})
        self.source, self.how, self.rows, self.progress = source, how, rows, progress
        self.decomposition, self.device, self.workers = decomposition.to(device), device, workers
        self.checked = not len(decomposition)

    def settings(self) -> dict[str, Any]:
        """What all shards of a folder have in common."""
        how, columns = self.how, [name for name, _ in self.decomposition.named()]
        same: dict[str, Any] = {"size": how.size, "source": how.source, "jpeg": how.jpeg, "maps": how.maps or how.size}
        same |= {"boxes": self.source.has_boxes, "boxed": [n for n, by in self.decomposition.named() if by.boxed]}
        return same | {"columns": columns, "decomposers": self.specs, "images": self.source.identity}

    def write(self, out: Path, numbers: Iterable[int]) -> Iterator[tuple[Path, Index, bool]]:
        """Writes shards; yields the path and the index of each, and whether it was complete before."""
        _check_settings(out, self.settings())
        with ThreadPoolExecutor(self.workers) as pool:
            for number in numbers:
                path = shard_path(out, number)
                if kept := index_path(path).exists():
                    index = read_index(path)
                    self.progress(len(index.items) + len(index.refused))
                else:
                    refused: list[Refusal] = []
                    index = write_shard(path, self.items(number, pool, refused), refused)
                yield path, index, kept

    def items(self, number: int, pool: ThreadPoolExecutor, refused: list[Refusal]) -> Iterator[tuple[str, Members]]:
        """Yields the key and the members of each image of a group, and lists those that are refused."""
        for batch in self._load(self.source.items(number), pool):
            pictures = [one for one in batch if isinstance(one, _Picture)]
            refused += [Refusal(str(e.path), e.reason.name.lower(), e.detail) for e in batch if isinstance(e, Refused)]
            for picture, arrays in zip(pictures, self._columns(pictures), strict=True):
                suffix, image = _encode(picture.small, self.how.jpeg)
                texts = {"txt": picture.found.caption.encode()} if picture.found.caption else {}
                if picture.boxes is not None:
                    texts[SUFFIX] = json.dumps([[place, phrase] for phrase, place in picture.boxes]).encode()
                yield picture.found.key, {suffix: image, "json": picture.about(), **texts, **arrays}
            self.progress(len(batch))

    def _load(self, found: Iterator[Found], pool: ThreadPoolExecutor) -> Iterator[list[_Picture | Refused]]:
        """Decodes images by threads, a batch ahead of what is computed."""
        ahead: list[Future[_Picture | Refused]] = []
        while True:
            loading = [pool.submit(_load, one, self.how) for one in islice(found, self.rows)]
            if ahead:
                yield [one.result() for one in ahead]
            if not loading:
                return
            ahead = loading

    def _columns(self, pictures: Sequence[_Picture]) -> list[dict[str, bytes]]:
        """The members of each picture's representations; pictures of one shape are computed together."""
        columns: list[dict[str, bytes]] = [{} for _ in pictures]
        shapes: dict[tuple[torch.Size, torch.Size], list[int]] = {}
        for i, picture in enumerate(pictures):
            shapes.setdefault((picture.large.shape, picture.small.shape), []).append(i)
        for rows in shapes.values() if len(self.decomposition) else ():
            for name, value in self._extract([pictures[i] for i in rows]).items():
                for i, row in zip(rows, value, strict=True):
                    columns[i][f"{name}.npy"] = encode_array(row)
        return columns

    def _extract(self, pictures: Sequence[_Picture]) -> Representations:
        """Representations of pictures of one shape, maps at the size of the images that are kept or its multiple."""
        captions = [picture.found.caption for picture in pictures]
        batch: Batch = {"image": torch.stack([p.large for p in pictures]).to(self.device), "caption": captions}
        if self.source.has_boxes:
            batch["boxes"] = [picture.boxes for picture in pictures]
        if not self.checked:
            check_suited(self.decomposition, batch, self.source.place)
            self.checked = True
        times = (self.how.maps or self.how.size) // self.how.size
        h, w = (side * times for side in pictures[0].small.shape[1:])
        values: Representations = self.decomposition(batch)
        for name, decomposer in self.decomposition.named():
            if values[name].ndim == 4 and values[name].shape[2:] != (h, w):
                values[name] = decomposer.resize(values[name], (h, w))
        return values


def _load(found: Found, how: Preparation) -> _Picture | Refused:
    try:
        with opened(found.file) as header:
            w, h = header.size
        image = load_rgb(found.file, how.source, min_side=how.size).image
        boxes = None if found.boxes is None else read_boxes(Path(found.name), found.boxes)
    except Refused as error:
        return error
    small = _shrink(image, how.size)
    pixels = ((small + 1) * 127.5).round().to(torch.uint8)
    return _Picture(found, (h, w), pixels, _shrink(image, how.source), boxes)


def _shrink(image: Tensor, side: int) -> Tensor:
    """Resizes an image so that its shorter side is at most that."""
    h, w = image.shape[1:]
    scale = min(1.0, side / min(h, w))
    return fit(image[None], (round(h * scale), round(w * scale)))[0]


def _encode(image: Tensor, jpeg: int | None) -> tuple[str, bytes]:
    """Suffix and bytes of an image's file, (3 h w) uint8."""
    file, picture = io.BytesIO(), Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
    if jpeg is None:
        picture.save(file, "PNG")
        return "png", file.getvalue()
    picture.save(file, "JPEG", quality=jpeg, subsampling=0)
    return "jpg", file.getvalue()
