"""Where images to be prepared come from: a folder of images, or shards in webdataset's naming."""

import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from composer.data.boxes import SUFFIX, find_boxes
from composer.data.folder import ImageFolder
from composer.data.shards import read_item, scan_shard, split_name
from composer.images.reading import SUFFIXES, File, PictureFile
from composer.storage.files import hash_content


class Found(NamedTuple):
    """An image to be prepared.

    Attributes:
        key: Its name in the shards.
        name: Its file's name below the folder.
        file: The image.
        caption: "" if there is none.
        boxes: Its file of boxes, of sources that have any.
    """

    key: str
    name: str
    file: File
    caption: str
    boxes: bytes | None = None


class Source(ABC):
    """Images in as many groups as there will be shards.

    Attributes:
        place: Where they are.
        shards: Number of groups.
        identity: Identifies the files; parts of a preparation have the same.
        has_boxes: Whether images have boxes of objects (see `composer.data.boxes`).
    """

    place: str
    shards: int
    identity: str
    has_boxes: bool

    @abstractmethod
    def count(self, number: int) -> int:
        """How many images group `number` has."""

    @abstractmethod
    def items(self, number: int) -> Iterator[Found]:
        """The images of group `number`."""


def open_source(place: Path, images: int) -> Source:
    """Opens a folder of images, or one of tar files.

    Args:
        place: The folder.
        images: Images per shard, for a folder of images; each tar file becomes one shard.

    Raises:
        FileNotFoundError: There is no such folder, or nothing in it.
    """
    if place.is_dir() and (tars := sorted(place.rglob("*.tar"))):
        return TarSource(place, tars)
    return FolderSource(place, images)


class FolderSource(Source):
    """A folder of images, as `ImageFolder` finds them."""

    def __init__(self, place: Path, images: int):
        self.place, self.images = place.as_posix(), images
        self.folder = ImageFolder(self.place, 1, captions="empty")
        self.shards = -(-len(self.folder) // images)
        self.has_boxes = self.folder.has_boxes
        self.identity = str(self.folder.identity()["hash of the file names"])

    def count(self, number: int) -> int:
        return len(self._numbers(number))

    def items(self, number: int) -> Iterator[Found]:
        for i in self._numbers(number):
            path = self.folder.items[i][0]
            boxes = find_boxes(path) if self.has_boxes else None
            yield Found(f"{i:09d}", path.removeprefix(f"{self.place}/"), path, self.folder.caption(i), boxes)

    def _numbers(self, number: int) -> range:
        return range(number * self.images, min((number + 1) * self.images, len(self.folder)))


class TarSource(Source):
    """Tar files in webdataset's naming: image, caption ``.txt`` and ``.boxes.json`` per item; nothing else is read."""

    def __init__(self, place: Path, tars: Sequence[Path]):
        self.place, self.tars, self.shards = str(place), list(tars), len(tars)
        names = "\n".join(f"{path.relative_to(place)} {path.stat().st_size}" for path in tars)
        self.identity = hash_content(names.encode(errors="surrogatepass"))
        self.has_boxes = any(_has_boxes(path) for path in self.tars)
        self._scanned: tuple[int, list[tuple[str, int, int]]] = (-1, [])

    def count(self, number: int) -> int:
        return len(self._scan(number))

    def items(self, number: int) -> Iterator[Found]:
        path = self.tars[number]
        with path.open("rb") as file:
            for i, (key, offset, size) in enumerate(self._scan(number)):
                members = read_item(file, offset, size)
                suffix = next((s for s in members if f".{s}" in SUFFIXES), None)
                if suffix is not None:
                    image = PictureFile.holding(path / f"{key}.{suffix}", members[suffix])
                    caption = members.get("txt", b"").decode("utf-8", "replace").strip()
                    boxes = members.get(SUFFIX, b"[]") if self.has_boxes else None
                    yield Found(f"{number:06d}-{i:06d}", str(image.path.relative_to(self.place)), image, caption, boxes)

    def _scan(self, number: int) -> list[tuple[str, int, int]]:
        if self._scanned[0] != number:
            with self.tars[number].open("rb") as file:
                self._scanned = number, list(scan_shard(file))
        return self._scanned[1]


def _has_boxes(path: Path) -> bool:
    """Whether a tar file has boxes of objects; one that is damaged is refused when its items are read."""
    try:
        with tarfile.open(path, "r:") as tar:
            return any(split_name(member.name)[2] == SUFFIX for member in tar)
    except tarfile.TarError:
        return False
