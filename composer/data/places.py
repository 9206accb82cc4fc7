"""Files in a folder, or at an address that fsspec can reach, of which copies are kept on disk."""

from abc import ABC, abstractmethod
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any

from composer.storage.files import replacing


class Files(ABC):
    """Files of one place by their names.

    Attributes:
        place: Where they are, for errors.
    """

    place: str

    @abstractmethod
    def names(self, pattern: str) -> list[str]:
        """Lists the names that match a pattern such as ``*.json``, in order."""

    @abstractmethod
    def get(self, name: str) -> Path:
        """The path of a file, or of its copy.

        Raises:
            OSError: It is missing or can't be copied.
        """


class LocalFiles(Files):
    """Files in a folder."""

    def __init__(self, place: str):
        self.place, self.folder = place, Path(place)

    def names(self, pattern: str) -> list[str]:
        return sorted(path.name for path in self.folder.glob(pattern))

    def get(self, name: str) -> Path:
        return self.folder / name


class RemoteFiles(Files):
    """Files at an address, each copied as a whole when it is first needed. Copies stay.

    Args:
        place: The address, such as ``s3://bucket/photos``.
        cache: Folder of the copies.

    Raises:
        ValueError: There is no such folder in the arguments, or the address' protocol is unknown or not installed.
    """

    def __init__(self, place: str, cache: str | None):
        fsspec: Any = import_module("fsspec")  # it has no types

        if cache is None:
            raise ValueError(f"expected `cache`, a folder for copies of the shards of {place}")
        try:
            self.system, self.root = fsspec.url_to_fs(place)
        except ImportError as error:
            raise ValueError(f"{place} cannot be reached: {error}") from error
        self.place, self.cache = place, Path(cache)

    def names(self, pattern: str) -> list[str]:
        return sorted(PurePosixPath(path).name for path in self.system.glob(f"{self.root}/{pattern}"))

    def get(self, name: str) -> Path:
        copy = self.cache / name
        if not copy.exists():
            with self.system.open(f"{self.root}/{name}", "rb") as source, replacing(copy) as file:
                while block := source.read(1 << 22):
                    file.write(block)
        return copy
