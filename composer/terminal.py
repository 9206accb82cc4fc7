"""All output of the commands: nothing in it is parsed as markup, and no text can control the terminal.

Names of files and models, prompts, captions and errors of other libraries may contain anything. All output goes
through `say`, `note`, `show` or `bar`; a test checks that nothing else prints.
"""

import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from composer.storage.files import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

T = TypeVar("T")

LINES, LONGEST = 4, 480
"""Most lines of an error, and most characters per line: an error may quote text of any length."""


def clean(text: object) -> str:
    """Makes a text safe for a terminal: control characters become spaces, line breaks stay."""
    return "\n".join(printable(line) for line in str(text).split("\n"))


def say(*lines: object) -> None:
    """Prints the results of a command to standard output."""
    print(*map(clean, lines), sep="\n")


def note(*lines: object) -> None:
    """Prints notes to standard error."""
    print(*map(clean, lines), sep="\n", file=sys.stderr)


def complain(error: object, *hints: str) -> None:
    """Prints an error in a few lines, then what to do about it."""
    lines = [line for line in clean(error).split("\n") if line.strip()] or [type(error).__name__]
    if len(lines) > LINES:
        lines = [*lines[: LINES - 1], "..."]
    note("error: " + "\n".join(_shortened(line) for line in lines), *hints)


def _shortened(line: str) -> str:
    half = LONGEST // 2
    return line if len(line) <= LONGEST else f"{line[:half]} ... {line[-half:]}"


def set_up_output() -> None:
    """Makes standard output, warnings and logs as safe as the output of `say`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace" if stream is sys.stdout else "backslashreplace")
    warnings.formatwarning = _format_warning
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_Formatter())


_format_usual = warnings.formatwarning


def _format_warning(*args: Any, **kwargs: Any) -> str:
    return clean(_format_usual(*args, **kwargs))


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return clean(super().format(record))


def console(**how: Any) -> "Console":
    """Makes a rich console that shows text literally: no markup, no emoji codes, no control characters.

    Args:
        **how: Further arguments of `rich.console.Console`.
    """
    from rich.console import Console, RenderableType
    from rich.segment import Segment

    class Plain(Console):
        def render(self, renderable: RenderableType, options: Any = None) -> Iterable[Segment]:
            for text, style, control in super().render(renderable, options):
                yield Segment(text if control else clean(text), style, control)

    return Plain(markup=False, emoji=False, highlight=False, **how)


def show(*tables: Any) -> None:
    """Prints rich tables to standard output."""
    console().print(*tables, sep="\n")


def bar(*columns: Any, **how: Any) -> "Progress":
    """Makes a rich progress bar; the descriptions of its tasks are shown literally.

    Args:
        *columns: Columns of the bar; rich's by default.
        **how: Further arguments of `rich.progress.Progress`.
    """
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    words = TextColumn("{task.description}", markup=False)
    rest = columns or (BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    return Progress(words, *rest, **{"console": console(), **how})


def track(numbers: Sequence[T], what: str) -> Iterator[T]:
    """Shows a progress bar over an iteration; it disappears at the end."""
    with bar(transient=True) as progress:
        yield from progress.track(numbers, description=what)


@contextmanager
def advancing(what: str, total: int | None = None, **how: Any) -> Iterator[Callable[..., None]]:
    """Shows a progress bar while the block runs; what it yields advances it by a number, or by 1.

    Args:
        what: What is done.
        total: The number at the end; None is not known.
        **how: Further arguments of `bar`.
    """
    with bar(transient=True, **how) as progress:
        yield partial(progress.advance, progress.add_task(what, total=total))


def steps_bar(what: str) -> Callable[[Sequence[int]], Iterator[int]]:
    """Makes a progress bar for the steps of a sampler."""

    def steps(numbers: Sequence[int]) -> Iterator[int]:
        yield from track(numbers, what)

    return steps
