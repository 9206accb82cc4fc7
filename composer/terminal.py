"""All that the commands say, in one place: nothing in it is read as markup, and no stranger's text acts on a terminal.

Names of files and models, prompts, captions and errors of other libraries may hold anything. Whoever says something
uses `say`, `note`, `show` or `bar`; a test holds that nobody prints otherwise.
"""

import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from composer.storage.files import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

T = TypeVar("T")

LINES, LONGEST = 4, 480
"""Lines of an error, and characters of each: a stranger's text may be as long as it likes."""


def clean(text: object) -> str:
    """A text for a terminal: lines stay lines, and whatever could act on it becomes a space."""
    return "\n".join(printable(line) for line in str(text).split("\n"))


def say(*lines: object) -> None:
    """Says what a command has found or done, on standard output."""
    print(*map(clean, lines), sep="\n")


def note(*lines: object) -> None:
    """Says what else is to be known, on standard error."""
    print(*map(clean, lines), sep="\n", file=sys.stderr)


def complain(error: object, *hints: str) -> None:
    """Says what is wrong: one error of a few lines, then what to do."""
    lines = [line for line in clean(error).split("\n") if line.strip()] or [type(error).__name__]
    if len(lines) > LINES:
        lines = [*lines[: LINES - 1], "..."]
    note("error: " + "\n".join(_shortened(line) for line in lines), *hints)


def _shortened(line: str) -> str:
    half = LONGEST // 2
    return line if len(line) <= LONGEST else f"{line[:half]} ... {line[-half:]}"


def set_up_output() -> None:
    """Makes sure that warnings, logs and odd characters show as `say` would show them."""
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
    """A console of rich that shows every text as it is: no markup, no emoji codes, no control characters.

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
    """Shows tables of rich on standard output."""
    console().print(*tables, sep="\n")


def bar(*columns: Any, **how: Any) -> "Progress":
    """A progress bar of rich; its tasks' descriptions are shown as they are.

    Args:
        *columns: What it shows; by default what rich does.
        **how: Further arguments of `rich.progress.Progress`.
    """
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    words = TextColumn("{task.description}", markup=False)
    rest = columns or (BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    return Progress(words, *rest, **{"console": console(), **how})


def track(numbers: Sequence[T], what: str) -> Iterator[T]:
    """A bar over some work, which goes when the work is done."""
    with bar(transient=True) as progress:
        yield from progress.track(numbers, description=what)


def steps_bar(what: str) -> Callable[[Sequence[int]], Iterator[int]]:
    """A progress bar over the steps of a sampling."""

    def steps(numbers: Sequence[int]) -> Iterator[int]:
        yield from track(numbers, what)

    return steps
