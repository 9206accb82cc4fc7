"""Files that are written whole or not at all, and results that overwrite nothing."""

import functools
import hashlib
import itertools
import json
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

WINDOWS = sys.platform == "win32"

OURS = ".composer"
"""Suffix of temporary files: ``.last.ckpt.x3k9_w2a.composer``."""

COMPLETE = ".complete.composer"
"""Subfolder with the files of `replacing_all` that are complete but not yet moved to their places."""

_TEMPORARY = re.compile(r"\..*\.[a-z0-9_]{8}" + re.escape(OURS), re.DOTALL)
_RESERVED = "reserved"


@contextmanager
def replacing(path: Path, keep: Path | None = None) -> Iterator[IO[bytes]]:
    """Opens a temporary file that replaces `path` once the block has ended and its bytes are on the disk.

    Args:
        path: The file; missing folders are made.
        keep: Where to move the old file at `path`, in the same folder; None deletes it.

    Raises:
        OSError: The disk is full or the folder can't be written. The old file at `path` stays.
        FileExistsError: `path` exists and is not a file, but a folder or a device, for example.
    """
    if path.exists() and not path.is_file():
        raise FileExistsError(f"expected the name of a file to write, found {path}, which exists and is not a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = _temporary(path.parent, path.name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if not WINDOWS:  # it counts as in use until it is renamed
                _put(name, path, keep)
        if WINDOWS:  # can't rename open files
            _put(name, path, keep)
    except BaseException:
        name.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _put(name: Path, path: Path, keep: Path | None) -> None:
    name.chmod(0o644)
    if keep is not None and path.exists():
        path.replace(keep)
    name.replace(path)


@contextmanager
def replacing_all(folder: Path) -> Iterator[Path]:
    """Makes an empty folder whose files all move to `folder` once the block has ended.

    It lies inside `folder`. A process that is killed leaves either none of the new files in place, or all of them once
    `finish_replacing` is called, which every reader of such a folder has to do. Files of other names stay.

    Args:
        folder: The files' folder; it is made if it is missing, and then removed again if the block fails.

    Yields:
        Where to write the files; its subfolders become those of `folder`.

    Raises:
        OSError: The disk is full or the folder can't be written. The old files in `folder` stay.
    """
    existed = folder.is_dir()
    folder.mkdir(parents=True, exist_ok=True)
    handle, new = _temporary(folder, "new", is_folder=True)
    try:
        yield new
        for place in (new, *(path for path in new.rglob("*") if path.is_dir())):
            _sync_folder(place)
        finish_replacing(folder)
        new.rename(folder / COMPLETE)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        if not existed:
            with suppress(OSError):  # others have written to it
                folder.rmdir()
        raise
    finally:
        os.close(handle)
    _sync_folder(folder)
    finish_replacing(folder)


def finish_replacing(folder: Path) -> None:
    """Moves the files of `replacing_all` to their places, if a process was killed before it did.

    Raises:
        OSError: The folder can't be written.
        ValueError: A file's place lies outside of `folder`: the folder was tampered with.
    """
    complete = folder / COMPLETE
    if not complete.is_dir():
        return
    root = folder.resolve()
    for path in sorted(complete.rglob("*")):
        place = folder / path.relative_to(complete)
        if path.is_symlink() or complete.is_symlink() or not place.parent.resolve().is_relative_to(root):
            raise ValueError(f"{path} does not belong to {folder}: remove {complete}")
        if path.is_dir():
            place.mkdir(exist_ok=True)
            continue
        with suppress(FileNotFoundError):  # another process moves them, too
            path.replace(place)
    shutil.rmtree(complete, ignore_errors=True)
    _sync_folder(folder)


def _temporary(folder: Path, name: str, is_folder: bool = False) -> tuple[int, Path]:
    """Makes a temporary file or folder that counts as in use until its handle is closed or the process ends."""
    _remove_abandoned_once(os.path.abspath(folder))  # noqa: PTH100, it follows no links
    prefix = f".{name[:50]}."
    while True:
        if is_folder:
            path = Path(tempfile.mkdtemp(dir=folder, prefix=prefix, suffix=OURS))
            handle = os.open(os.devnull if WINDOWS else path, os.O_RDONLY)
        else:
            handle, made = tempfile.mkstemp(dir=folder, prefix=prefix, suffix=OURS)
            path = Path(made)
        if _claim(handle):
            return handle, path
        os.close(handle)  # another process removed it as abandoned before it was locked


if sys.platform == "win32":

    def _claim(handle: int) -> bool:
        return True

    def remove_abandoned(folder: Path) -> None:
        """Does nothing: Windows can't tell whether a temporary file's process is alive."""

else:
    import fcntl

    def _claim(handle: int) -> bool:
        """Marks a file as in use as long as the handle is open; False if it is in use elsewhere, or removed."""
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # no locks on this file system, so nothing is ever removed
            return True
        return os.fstat(handle).st_nlink > 0

    def remove_abandoned(folder: Path) -> None:
        """Removes the temporary files that killed processes left in a folder, never those of running ones.

        Every writer holds a lock on its file, released when the process ends. On a file system without locks, all files
        stay.

        Args:
            folder: Where to look; subfolders are not searched.
        """
        with suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") and _TEMPORARY.fullmatch(entry.name):
                    with suppress(OSError):  # another process removed it, or we may not
                        _remove_abandoned(Path(entry.path))

    def _remove_abandoned(path: Path) -> None:
        mode = path.lstat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            return
        access = os.O_RDONLY if stat.S_ISDIR(mode) else os.O_RDWR
        handle = os.open(path, access | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if stat.S_ISDIR(mode):
                shutil.rmtree(path, ignore_errors=True)
                return
            if path.name.startswith(f".{_RESERVED}."):
                _free(path.parent, path.read_bytes())
            path.unlink()
        finally:
            os.close(handle)


@functools.cache
def _remove_abandoned_once(folder: str) -> None:
    remove_abandoned(Path(folder))


def _sync_folder(folder: Path) -> None:
    """Flushes a folder's entries to the disk, so that a new name survives a power cut."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:  # Windows can't open folders
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def flush_file(path: Path) -> None:
    """Flushes a file that another library has written to the disk, so that it survives a power cut."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file with `replacing`; missing folders are made."""
    with replacing(path) as file:
        file.write(data)


def write_json(path: Path, value: object) -> None:
    """Writes a value as readable JSON, with `write_atomically`."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


SHOWN = 12
"""Files that `list_written` lists; if there are more, it counts them."""


@contextmanager
def reserved(folder: Path, names: Sequence[str]) -> Iterator[list[Path]]:
    """Reserves new files for one run's results.

    If one of the names exists, all get the same number, ``a-2.png`` and ``b-2.png``, the lowest that is free, so that
    a run's files stay together. The files are created empty, so that no other process can take them; those still
    empty when the block ends, or fails, are removed. If the process is killed, the next one that writes to the folder
    removes them.

    Args:
        folder: Where to; it is made if it is missing.
        names: Of the files. Of equal names, the later ones become ``a_2.png``, ``a_3.png``.

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
        handle, listing = _temporary(folder, _RESERVED)
        try:
            while not _create(paths):
                number = next(numbers)
                paths = [path.with_stem(f"{path.stem}-{number}") for path in plain]
            listed = os.fsencode("\0".join(path.name for path in paths))
            os.write(handle, listed)
            try:
                yield paths
            finally:
                _free(folder, listed)
        finally:
            os.close(handle)
            listing.unlink(missing_ok=True)
    finally:
        for place in missing:
            with suppress(OSError):  # not empty: it holds results
                place.rmdir()


def _free(folder: Path, listed: bytes) -> None:
    """Removes reserved files that are still empty."""
    for name in os.fsdecode(listed).split("\0"):
        path = folder / Path(name).name
        if path.is_file() and path.stat().st_size == 0:
            path.unlink()


def _distinct(names: Sequence[str]) -> list[str]:
    """Makes names distinct."""
    found: dict[str, None] = {}
    for name in names:
        path, number = Path(name), 1
        while name in found:
            number += 1
            name = f"{path.stem}_{number}{path.suffix}"
        found[name] = None
    return list(found)


def _create(paths: Sequence[Path]) -> bool:
    """Creates all of these files, or none if one exists."""
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


def list_written(paths: Sequence[Path]) -> str:
    """Lists the files of a folder that a run has written, shortened if there are many."""
    if len(paths) > SHOWN:
        return f"{len(paths)} files written to {paths[0].parent}, from {paths[0].name} to {paths[-1].name}"
    return "\n".join(f"written: {path}" for path in paths)


def shorten_error(error: BaseException) -> str:
    """Returns the first line of another library's error, printable and of limited length."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return printable(lines[0][:300]) if lines else type(error).__name__


def resolve_below(folder: Path, name: str) -> Path:
    """Resolves a path inside a folder; neither the name nor a link may lead out of the folder.

    Raises:
        ValueError: It, or something in it, lies outside, or is neither a file nor a folder.
    """
    root, path = folder.resolve(), (folder / name).resolve()
    for place in (path, *(path.rglob("*") if path.is_dir() else ())):
        if not place.resolve().is_relative_to(root):
            raise ValueError(
                f"expected a file below {folder}, found {printable(name)}, which leads out of it; if the links "
                "in the folder are yours, replace them by copies"
            )
        if place.exists() and not (place.is_file() or place.is_dir()):
            raise ValueError(f"expected files and folders below {folder}, found something else at {printable(name)}")
    return path


def require_file(path: Path) -> Path:
    """Checks that a path is a regular file: reading a pipe or a device may never end.

    Raises:
        FileNotFoundError: It does not exist.
        ValueError: It is not a regular file.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    if not path.is_file():
        raise ValueError(f"expected a file, found {path}, which is a folder, a pipe or a device")
    return path


MAX_TEXT = 64_000_000
"""Maximum size in bytes of a text file."""


def read_text(path: Path, most: int = MAX_TEXT) -> str:
    """Reads a user's text file: a regular file in UTF-8.

    Args:
        path: The file.
        most: Maximum size in bytes.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not a regular file, not UTF-8, or too large.
    """
    with require_file(path).open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"expected a text of at most {most:,} bytes, found more in {path}")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text in UTF-8: {error}") from error


def require_utf8(text: str) -> None:
    """Refuses text with undecodable bytes, from a command line that is not UTF-8: tokenisers and recipes need text.

    Raises:
        ValueError: The text contains undecodable bytes.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"expected words in UTF-8, found {text[:60]!a}") from error


def hash_content(data: bytes) -> str:
    """Returns the SHA-256 by which a recipe identifies a file's content."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def printable(text: str) -> str:
    """Replaces characters that could control a terminal or hide something by spaces.

    Bytes of a file's name that are not UTF-8 become a replacement character, so that the text can be written anywhere.
    """
    return "".join(c if c.isprintable() else "\ufffd" if "\ud800" <= c <= "\udfff" else " " for c in text)
