"""Pictures and masks that the page was given, in a folder of its own; each picture is taken apart once."""

import hashlib
import math
import shutil
import threading
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from composer.cascade.cascade import Cascade
from composer.cascade.parts import Parts
from composer.images.masks import read_mask
from composer.images.reading import SUFFIXES, PictureFile, Reason, Refused, load_rgb, opened, read_pixels
from composer.images.sheet import previews, read_recipe, thumbnail, to_pil
from composer.page.model import asked
from composer.storage.files import printable
from composer.tasks.composition import Source

MOST_PICTURES, MOST_BYTES = 1000, 8_000_000_000
"""Files that are kept, and their bytes."""

TILE = 256
"""Longer side of a preview, in pixels."""

THUMB = "_thumb.png"
"""A small picture of a picture."""

SHOWN_AS_THEY_ARE = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif"}
"""Formats that browsers show, and their media types."""

ORIENTATION = 0x0112
"""EXIF's tag of how a picture is to be turned."""


@dataclass(frozen=True)
class Taken:
    """A picture, and what the model reads from it.

    Attributes:
        id: Its id.
        path: Its file.
        sha256: Of the file's content.
        size: Width and height, upright.
        tiles: Condition -> a preview's file.
        words: Condition -> the representation as a text, where there is one.
    """

    id: str
    path: Path
    sha256: str
    size: tuple[int, int]
    tiles: Mapping[str, Path]
    words: Mapping[str, str]

    @property
    def made(self) -> Path:
        """The folder of what was made of it."""
        return self.path.parent / "made"

    def to_json(self) -> dict[str, Any]:
        """What the page shows of it."""
        url = f"/api/pictures/{self.id}"
        tiles = [
            {"condition": name, "url": f"{url}/tiles/{name}", "words": self.words.get(name)} for name in self.tiles
        ]
        width, height = self.size
        own = {"id": self.id, "name": self.path.name, "width": width, "height": height, "url": url}
        return {**own, "thumb": f"{url}/made/{THUMB}", "tiles": tiles}


def plain_name(name: str, image_format: str) -> str:
    """Makes a file's name of what a browser calls a file: no folders, no control characters, not too long.

    Args:
        name: Any text.
        image_format: Pillow's name of the file's format, which gives the suffix where there is none of a picture.
    """
    clean = printable(unicodedata.normalize("NFC", name)).encode("utf-8", "replace").decode()
    clean = "".join("_" if c in '/\\:*?"<>|' else c for c in clean).strip(" .-_")
    suffix = Path(clean).suffix
    stem = clean.removesuffix(suffix) if suffix.lower() in SUFFIXES else clean
    suffix = suffix if suffix.lower() in SUFFIXES else f".{image_format.lower()}".replace("jpeg2000", "jp2")
    while len(stem.encode()) > 100:
        stem = stem[:-1]
    return f"{stem or 'picture'}{suffix}"


@dataclass(eq=False)
class Pictures:
    """Pictures and masks by their ids, which are hashes of their content.

    Attributes:
        model: Takes the pictures apart.
        folder: Where their files lie.
    """

    model: Cascade
    folder: Path
    _taken: dict[str, Taken] = field(default_factory=dict)
    _masks: dict[str, Path] = field(default_factory=dict)
    _bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def picture(self, found: str) -> str:
        """The path of a picture; see `composer.page.board.Files`."""
        return str(self.find(found).path)

    def mask(self, found: str) -> str:
        """The path of a mask; see `composer.page.board.Files`."""
        if found not in self._masks:
            raise KeyError("the page has no such mask: draw it again")
        return str(self._masks[found])

    def all(self) -> list[Taken]:
        """All pictures, the oldest first."""
        return list(self._taken.values())

    def find(self, found: str) -> Taken:
        """A picture by its id.

        Raises:
            KeyError: There is none.
        """
        if found not in self._taken:
            raise KeyError("the page has no such picture: give it again")
        return self._taken[found]

    def holding(self, sha256: str) -> Taken | None:
        """A picture by the hash of its content, if it is here."""
        return next((one for one in self._taken.values() if one.sha256 == sha256), None)

    def add(self, name: str, data: bytes) -> Taken:
        """Adds a picture, and takes it apart.

        Args:
            name: What the browser calls it.
            data: The file's content.

        Raises:
            Refused: It is no picture that can be read.
            ValueError: There are too many pictures.
        """
        with opened(PictureFile.holding(printable(name)[:100], data), 1, math.inf) as header:
            name = plain_name(name, header.format or "image")
        key = _key(data, name)
        with self._lock:  # one at a time: a large picture takes much memory
            if key not in self._taken:
                path = self._write(self.folder / "pictures" / key / name, data)
                try:
                    self._taken[key] = self._take(key, PictureFile.holding(path, data))
                except BaseException:
                    shutil.rmtree(path.parent)
                    raise
            return self._taken[key]

    def add_mask(self, data: bytes) -> str:
        """Adds a mask; returns its id.

        Raises:
            Refused: It is no mask.
            ValueError: There are too many.
        """
        key = _key(data, "mask")
        with self._lock:
            if key not in self._masks:
                read_mask(PictureFile.holding("the mask", data))
                self._masks[key] = self._write(self.folder / "masks" / f"{key}.png", data)
            return key

    def shown(self, taken: Taken) -> tuple[Path, str]:
        """A file that a browser shows upright, and its media type: the picture's own, or a PNG made of it."""
        with opened(taken.path, 1, math.inf) as header:
            media = SHOWN_AS_THEY_ARE.get(header.format or "")
            turn = _turn(header)
        if media is not None and turn == 1:
            return taken.path, media
        made = taken.made / "_shown.png"
        with self._lock:
            if not made.exists():
                to_pil(load_rgb(taken.path).image).save(made, compress_level=1)
        return made, "image/png"

    def _write(self, path: Path, data: bytes) -> Path:
        if len(self._taken) + len(self._masks) >= MOST_PICTURES or self._bytes + len(data) > MOST_BYTES:
            raise ValueError(
                f"the page holds {len(self._taken) + len(self._masks)} files already: start `composer page` anew"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self._bytes += len(data)
        return path

    def _parts(self, file: PictureFile) -> Parts:
        """What the model reads from a picture; nothing of a result, with its recipe, that is too small or too long."""
        try:
            return Source.open(self.model, file).has.parts
        except Refused as error:
            if error.reason not in (Reason.TOO_SMALL, Reason.TOO_LONG):
                raise
            try:
                read_recipe(file)
            except ValueError:
                raise error from None
            return Parts()

    @torch.no_grad()
    def _take(self, key: str, file: PictureFile) -> Taken:
        by = asked(self.model)
        shown = {name: value for name, value in self._parts(file).items() if name in by}
        tiles, made = {}, file.path.parent / "made"
        made.mkdir()
        small = read_pixels(file, TILE, 1, math.inf).rgb().image
        to_pil(thumbnail(small)).save(made / THUMB)
        for name, image in previews(self.model.decomposition, shown, TILE).items():
            tiles[name] = made / f"{name}.png"
            to_pil(image[0]).save(tiles[name])
        words = {name: text for name, value in shown.items() if (text := by[name].to_text(value)) is not None}
        with opened(file, 1, math.inf) as header:
            width, height = header.size[:: -1 if _turn(header) >= 5 else 1]
        return Taken(key, file.path, file.sha256, (width, height), tiles, words)


def _turn(header: Image.Image) -> int:
    """How a picture is to be turned: 1 is not at all, 5 and more swap its sides."""
    found = header.getexif().get(ORIENTATION, 1)
    return found if found in range(1, 9) else 1


def _key(data: bytes, name: str) -> str:
    return hashlib.sha256(hashlib.sha256(data).digest() + name.encode()).hexdigest()[:16]
