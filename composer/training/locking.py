"""One training at a time in a run's folder."""

import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from composer.storage.files import printable

log = logging.getLogger(__name__)

LOCK = ".lock"


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keeps other trainings out of a run's folder while the block runs.

    The lock ends with the process, however that ends: a file left by a killed process blocks nobody. It works
    between processes of one machine, and on NFS between machines where the server passes locks on, as NFS 4 does.
    Where a file system has no locks, the training goes on with a warning.

    Args:
        folder: The run's; it is made if it is missing, and removed again if it stays empty.

    Raises:
        BlockingIOError: A training of another process writes to the folder.
    """
    existed = folder.is_dir()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    handle = _hold(path)
    try:
        now = datetime.now().astimezone().isoformat(" ", "seconds")
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}, since {now}".encode())
        yield
    finally:
        with suppress(OSError):  # Windows removes no open file; nobody minds the file
            path.unlink()
        os.close(handle)
        if not existed:
            with suppress(OSError):  # it holds a run
                folder.rmdir()


def _hold(path: Path) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        try:
            _lock(handle)
        except (BlockingIOError, PermissionError):
            holder = printable(os.read(handle, 200).decode(errors="replace")) or "another process"
            os.close(handle)
            raise BlockingIOError(
                f"a training writes to {path.parent} already: {holder}. Wait until it ends, or end it (SIGTERM saves "
                "first), then continue with --ckpt_path last; or start another with --trainer.default_root_dir FOLDER"
            ) from None
        except OSError as error:
            log.warning("%s: no lock (%s); make sure that no other training writes there", path.parent, error.strerror)
        if os.fstat(handle).st_nlink:
            return handle
        os.close(handle)  # the training before ended in between and removed it


if sys.platform == "win32":
    import msvcrt

    def _lock(handle: int) -> None:
        os.lseek(handle, 1 << 20, os.SEEK_SET)  # beyond the text, which others read
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        os.lseek(handle, 0, os.SEEK_SET)

else:
    import fcntl

    def _lock(handle: int) -> None:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock's, not shared with the data loader's workers
