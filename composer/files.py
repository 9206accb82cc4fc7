"""Files that are written whole or not at all, and results that overwrite nothing."""

import hashlib
import itertools
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Opens a temporary file that takes the place of `path` once the block has ended and its bytes are on the disk.

    Raises:
        OSError: The disk is full or the folder can't be written. What stood at `path` still stands there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Puts a new name on the disk, so that it survives a power cut."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:  # Windows opens no folder
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file by `replacing`; missing folders are made."""
    with replacing(path) as file:
        file.write(data)


SHOWN = 12
"""Files that `written` lists; of more it says how many."""


@contextmanager
def reserved(folder: Path, names: Sequence[str]) -> Iterator[list[Path]]:
    """Reserves files that do not exist yet, for one run's results.

    Where a file of one of the names exists, all of them get a number, ``a-2.png`` and ``b-2.png``: the lowest for which
    no file exists, so that a run's files stay together. The files are created empty, which another process can do
    with none of them; those that are still empty when the block ends, or fails, are removed.

    Args:
        folder: Where to; it is made if it is missing.
        names: Of the files. Where some are the same, the later ones become ``a_2.png``, ``a_3.png``.

    Yields:
        The paths, in the order of the names.

    Raises:
        OSError: The folder can't be written to.
    """
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    plain = [folder / name for name in _distinct(names)]
    numbers = itertools.count(2)
    paths = plain
    try:
        while not _create(paths):
            number = next(numbers)
            paths = [path.with_stem(f"{path.stem}-{number}") for path in plain]
        try:
            yield paths
        finally:
            for path in paths:
                if path.is_file() and path.stat().st_size == 0:
                    path.unlink()
    finally:
        for place in missing:
            with suppress(OSError):  # it holds results
                place.rmdir()


def _distinct(names: Sequence[str]) -> list[str]:
    """The names, but no two of them the same."""
    found: dict[str, None] = {}
    for name in names:
        path, number = Path(name), 1
        while name in found:
            number += 1
            name = f"{path.stem}_{number}{path.suffix}"
        found[name] = None
    return list(found)


def _create(paths: Sequence[Path]) -> bool:
    """Creates all of these files, or none of them where one exists."""
    made: list[Path] = []
    try:
        for path in paths:
            path.touch(exist_ok=False)
            made.append(path)
    except BaseException as error:
        for path in made:
            path.unlink()
        if isinstance(error, FileExistsError):
            return False
        raise
    return True


def written(paths: Sequence[Path]) -> str:
    """Says which files of a folder a run has written, in short where they are many."""
    if len(paths) > SHOWN:
        return f"{len(paths)} files written to {paths[0].parent}, from {paths[0].name} to {paths[-1].name}"
    return "\n".join(f"written: {path}" for path in paths)


def name_of(data: bytes) -> str:
    """The SHA-256 under which a recipe names a file's content."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def source_of(path: Path) -> str:
    """How a recipe names a file: by the SHA-256 of its content, and by its name without folders."""
    return f"{name_of(path.read_bytes())} {printable(path.name)}"


def printable(text: str) -> str:
    """A text, such as a stranger's, with spaces for characters that could act on a terminal or hide something."""
    return "".join(c if c.isprintable() else " " for c in text)
