"""Files that are written whole or not at all."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
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
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name itself survives a power cut
    finally:
        os.close(folder)


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file by `replacing`; missing folders are made."""
    with replacing(path) as file:
        file.write(data)


def name_of(data: bytes) -> str:
    """The SHA-256 under which a recipe names a file's content."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
