"""What varies over a sheet: any option of a drawing command may, along rows and columns."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path

ALIASES = {"seed": "seeds"}
FIXED = ("sheet", "out", "from-png", "model", "autoguidance", "precision", "help")

MAX_SETTINGS = 1000


@dataclass(frozen=True)
class Axis:
    """An option that varies.

    Attributes:
        name: As the user wrote it.
        values: As the user wrote them.
    """

    name: str
    values: tuple[str, ...]

    @classmethod
    def read(cls, text: str) -> "Axis":
        """Reads ``guidance=1,3,7``; a semicolon separates values that have commas.

        Raises:
            ValueError: Something else is written, or an option that cannot vary.
        """
        name, equals, given = text.partition("=")
        name = name.removeprefix("--")
        values = [value.strip() for value in given.split(";" if ";" in given else ",")]
        if not (name and equals and all(values)) or name in FIXED:
            raise ValueError(f"expected an option and values for --sheet, such as guidance=1,3,7, found {text!r}")
        return cls(name, tuple(values))

    @property
    def option(self) -> str:
        """The option as the parser knows it."""
        return f"--{ALIASES.get(self.name, self.name)}"


@dataclass(frozen=True)
class Setting:
    """One value for each axis.

    Attributes:
        axes: What varies.
        values: The values here, one an axis.
    """

    axes: tuple[Axis, ...]
    values: tuple[str, ...]

    def words(self, args: Sequence[str], many: Collection[str]) -> list[str]:
        """A command line with these values in place of its own.

        Args:
            args: The command line's.
            many: Options that take several values, which add to those given before.
        """
        left, skipping = [], False
        replaced = {axis.option for axis in self.axes} & set(many)
        for word in args:
            if word.startswith("--"):
                skipping = word.partition("=")[0] in replaced
            if not skipping:
                left.append(word)
        pairs = zip(self.axes, self.values, strict=True)
        return [*left, *(word for axis, value in pairs for word in (axis.option, value))]

    @property
    def suffix(self) -> str:
        """What tells its files from those of other settings; the seed is in their names already."""
        pairs = zip(self.axes, self.values, strict=True)
        return "".join(f"_{axis.name}={_plain(value)}" for axis, value in pairs if axis.option != "--seeds")


def settings(texts: Sequence[str]) -> list[Setting]:
    """All settings of the axes that were given; one, of no values, where none were.

    Raises:
        ValueError: An axis is wrong, or there are too many settings.
    """
    axes = tuple(Axis.read(text) for text in texts)
    if (count := prod(len(axis.values) for axis in axes)) > MAX_SETTINGS:
        raise ValueError(f"expected at most {MAX_SETTINGS:,} settings on a sheet, found {count:,}")
    return [Setting(axes, values) for values in product(*(axis.values for axis in axes))]


def _plain(value: str) -> str:
    """A value as a part of a file's name."""
    return "".join(c if c.isalnum() or c in ".-" else "-" for c in Path(value).name)[:40]
