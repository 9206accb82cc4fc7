"""What the page's server needs of those who draw; the commands provide it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from composer.cascade.cascade import Cascade
from composer.diffusion.samplers import Watcher
from composer.page.board import Files


@dataclass(frozen=True)
class Drawn:
    """A picture that has been drawn and saved.

    Attributes:
        seed: Its seed.
        path: Its file.
        closed: Condition -> adherence, from 0 (chance) to 1 (a perfect match), where it can be measured.
        asked: Condition -> a preview (3 h w) of what was asked.
        got: Condition -> the same of what came out, where it is read from pictures.
    """

    seed: int
    path: Path
    closed: Mapping[str, float]
    asked: Mapping[str, Tensor]
    got: Mapping[str, Tensor]


Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in shares of the picture."""


@dataclass(frozen=True)
class Run:
    """One run of a stage in the drawing of a request.

    Attributes:
        stage: Its name.
        rows: Number of the seed of each row, from 0; none of them twice.
    """

    stage: str
    rows: Sequence[int]


@runtime_checkable
class Painter(Protocol):
    """Draws boards."""

    model: Cascade

    def read(self, board: Mapping[str, Any], files: Files) -> Any:
        """Reads a board, whose form is checked already, and makes a request of it.

        Raises:
            KeyError: A picture or a mask is not here.
            ValueError: It asks for something that there is not.
        """

    def draw(
        self, request: Any, folder: Path, watch: Callable[[Sequence[Run], Box | None], Watcher]
    ) -> Iterator[Drawn]:
        """Draws a request.

        Args:
            request: What `read` returned.
            folder: Where to save, unless the server was told to keep results elsewhere.
            watch: Makes what watches the sampling, from the runs that there will be, and from the part of the picture
                that they draw; None is all of it.
        """

    def write(self, board: Mapping[str, Any], files: Files) -> tuple[str, str]:
        """Writes a board as a command and as Python."""
