"""Runs a command on hostile input, in this process, and says which promises it breaks.

They are: exit 0, or one error of at most five lines; no traceback; no control sequences; no question; no file written,
made, renamed or removed outside one folder; no program started and no connection; bounded time and memory. A deed that
breaks one is not done, so that hostile files can be tried on one's own machine.

    outcome = run(["report", "bad.png"], tmp_path / "out")
    assert not outcome.broken, outcome
"""

import contextlib
import io
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from composer.__main__ import main
from tests import unchecked

LINES, CHARACTERS = 5, 2000
"""Of an error, at most."""

DEVICES = ("/dev/null", "/dev/tty", "/dev/shm", "/dev/fd", "/dev/std", "/proc/self/fd")
CACHES = tuple(map(str, (Path.home() / ".config/matplotlib", Path.home() / ".cache/matplotlib", "/tmp/torchinductor_")))
"""What libraries make when they are first imported."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
PROGRAMS = ("subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.startfile", "pty.spawn")
LOOK_UPS = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "urllib.Request")
# Event -> which of its arguments are paths, each with that of the open folder which it is relative to
CHANGES: dict[str, tuple[tuple[int, int | None], ...]] = {
    "os.mkdir": ((0, 2),),
    "os.rmdir": ((0, 1),),
    "os.remove": ((0, 1),),
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((1, 3),),
    "os.symlink": ((1, 2),),
    "os.truncate": ((0, None),),
    "os.chmod": ((0, 2),),
    "os.chown": ((0, 3),),
}
tempfile.gettempdir()  # which tries the folder out, once a process


class Broken(BaseException):
    """Ends the command: no `except Exception` on the way may swallow it."""


@dataclass
class Outcome:
    """What came of a command."""

    words: Sequence[str]
    status: int = 0
    out: str = ""
    err: str = ""
    seconds: float = 0.0
    megabytes: float = 0.0
    broken: list[str] = field(default_factory=list)


class _Watch:
    """What the audit hook, which stays for the whole process, looks at while a command runs."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.broken: list[str] = []

    def __call__(self, event: str, args: tuple) -> None:
        if self.folder is None:
            return
        if event == "open":
            path, _, flags = args
            if isinstance(path, str | bytes | os.PathLike) and isinstance(flags, int) and flags & WRITING:
                self.check(event, path)
        elif event in CHANGES:
            for i, relative in CHANGES[event]:
                self.check(event, args[i], args[relative] if relative is not None else -1)
        elif event in PROGRAMS:
            self.refuse(f"started a program: {args[:2]}")
        elif event in LOOK_UPS or (event == "socket.connect" and isinstance(args[1], tuple)):
            self.refuse(f"went to the network: {event} {args[:2]}")
        elif event == "builtins.input":
            self.refuse(f"asked a question: {args}")

    def check(self, event: str, path: object, relative: int = -1) -> None:
        if isinstance(path, int):  # an open file
            return
        given = os.fsdecode(path)  # type: ignore[arg-type]
        full = Path(f"/proc/self/fd/{relative}" if relative >= 0 else "", given)
        # What is opened for writing may be a link, which is followed; what is made or removed is the link itself
        real = Path(os.path.realpath(full if event in ("open", "os.truncate") else full.parent))
        if event not in ("open", "os.truncate"):
            real /= full.name
        if not str(real).startswith((*DEVICES, *CACHES)) and not real.is_relative_to(self.folder):
            self.refuse(f"{event} outside the folder: {real}")

    def refuse(self, what: str) -> None:
        if what not in self.broken:
            self.broken.append(what)
        raise Broken(what)


_watch = _Watch()
sys.addaudithook(_watch)


def run(
    words: Sequence[str],
    folder: Path,
    seconds: float = 60,
    megabytes: float = 1500,
    call: Callable[[Sequence[str]], int] = main,
) -> Outcome:
    """Runs a command in the folder, the only place where it may write.

    Args:
        words: What stands behind ``composer``.
        folder: It is made if it is missing. What lies beside it is looked at before and after.
        seconds: It may take.
        megabytes: It may take beyond what this process has already; Linux alone measures them.
        call: What runs it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    outcome, before = Outcome(list(words)), _beside(folder)
    out = io.TextIOWrapper(io.BytesIO(), "utf-8", "strict", write_through=True)  # as a terminal's
    err = io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace", write_through=True)
    begun, memory = time.monotonic(), _start_measuring()
    with contextlib.ExitStack() as stack:
        for context in (contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _as_it_was(), unchecked()):
            stack.enter_context(context)
        stack.enter_context(contextlib.chdir(folder))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("default")  # as people see them
        warnings.showwarning = lambda *args: print(f"warning: {args[0]}", file=sys.stderr)
        stack.enter_context(_bounded(seconds, megabytes))
        _watch.folder, _watch.broken = folder.resolve(), outcome.broken
        try:
            outcome.status = call(words)
        except SystemExit as error:
            outcome.status = error.code if isinstance(error.code, int) else 1 if error.code else 0
        except Broken as error:
            outcome.status = 1
            if str(error) not in outcome.broken:
                outcome.broken.append(str(error))
        except BaseException:  # pytest's own, too
            outcome.status = 1
            outcome.broken.append(f"traceback: {''.join(traceback.format_exc()[-1500:])}")
        finally:
            _watch.folder = None
    outcome.seconds, outcome.megabytes = time.monotonic() - begun, _peak() - memory
    outcome.out, outcome.err = (stream.buffer.getvalue().decode("utf-8", "replace") for stream in (out, err))
    if outcome.megabytes > megabytes:
        outcome.broken.append(f"took {outcome.megabytes:.0f} MB")
    if changed := {path for path, _ in _beside(folder) ^ before}:
        outcome.broken.append(f"changed outside the folder: {sorted(map(str, changed))[:5]}")
    outcome.broken += _broken_words(outcome)
    return outcome


def _broken_words(outcome: Outcome) -> list[str]:
    """What is wrong with what was said."""
    broken = []
    said = outcome.out + outcome.err
    if odd := {c for c in said if not c.isprintable() and c not in "\n\t"}:
        broken.append(f"control characters: {sorted(map(ascii, odd))}")
    if "Traceback (most recent call last)" in said:
        broken.append("a traceback was printed")
    errors = [i for i, line in enumerate(outcome.err.splitlines()) if line.startswith("error:")]
    if outcome.status != 0 and len(errors) != 1 and not outcome.broken:
        broken.append(f"exit {outcome.status} with {len(errors)} errors")
    for start in errors[:1]:
        lines = outcome.err.splitlines()[start:]
        if len(lines) > LINES or len("".join(lines)) > CHARACTERS:
            broken.append(f"an error of {len(lines)} lines, {len(''.join(lines))} characters")
        if not lines[0].removeprefix("error:").strip():
            broken.append("an error that says nothing")
    return broken


def _beside(folder: Path) -> set[tuple[Path, tuple[int, int]]]:
    """What lies beside a folder: not every library's writing passes through Python's audit."""
    folder = folder.resolve()
    found = [path for path in folder.parent.rglob("*") if path != folder and folder not in path.parents]
    return {(path, (path.lstat().st_size, path.lstat().st_mtime_ns)) for path in found if not path.is_dir()}


@contextlib.contextmanager
def _as_it_was():
    """Puts back what a command changes of the process."""
    argv, path, environment, bytecode = sys.argv[:], sys.path[:], dict(os.environ), sys.dont_write_bytecode
    sys.dont_write_bytecode = True  # an import's cache is no deed of the command's
    try:
        yield
    finally:
        sys.argv[:], sys.path[:], sys.dont_write_bytecode = argv, path, bytecode
        os.environ.clear()
        os.environ.update(environment)


@contextlib.contextmanager
def _bounded(seconds: float, megabytes: float):
    """Ends a command that takes too long, and keeps one that takes too much memory from taking the machine's."""

    def late(*_: object) -> None:
        raise Broken(f"took longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    if sys.platform == "linux":  # room for what is reserved and never used
        most = int((_status("VmSize") + 2 * megabytes + 2000) * 1e6)
        resource.setrlimit(resource.RLIMIT_AS, (most if limits[1] < 0 else min(most, limits[1]), limits[1]))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def _start_measuring() -> float:
    """Begins a new peak; returns the MB that it begins with."""
    with contextlib.suppress(OSError):  # where the kernel doesn't, what goes beyond the old peak is found
        Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> float:
    return _status("VmHWM") if sys.platform == "linux" else 0.0


def _status(name: str) -> float:
    """One of the process's own figures, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f"{name}:"))
