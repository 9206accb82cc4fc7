"""Sheets over settings: any option of a drawing command may vary, along rows and columns."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from torch import Tensor

ALIASES = {"seed": "seeds"}
FIXED = ("sheet", "out", "from-png", "model", "precision", "help")


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
        ValueError: An axis is wrong.
    """
    axes = tuple(Axis.read(text) for text in texts)
    return [Setting(axes, values) for values in product(*(axis.values for axis in axes))]


def _plain(value: str) -> str:
    """A value as a part of a file's name."""
    return "".join(c if c.isalnum() or c in ".-" else "-" for c in Path(value).name)[:40]


@dataclass(frozen=True)
class Drawn:
    """The pictures of one setting.

    Attributes:
        seeds: What they were drawn from.
        labels: One a composition.
        rows: The pictures of each composition, one a seed.
        files: Theirs.
        before: What stands before them on a sheet, such as the picture to edit, and its name.
        after: What stands after them.
    """

    seeds: Sequence[int]
    labels: Sequence[str]
    rows: Sequence[Sequence[Tensor]]
    files: Sequence[Sequence[Path]]
    before: Sequence[tuple[str, Tensor]] = ()
    after: Sequence[tuple[str, Tensor]] = ()


@dataclass(frozen=True)
class Layout:
    """What `gallery.sheet` takes.

    Attributes:
        images: Rows of pictures.
        rows: A label a row, or none.
        columns: A label a column.
    """

    images: list[list[Tensor | None]]
    rows: list[str]
    columns: list[str]


def arrange(chosen: Sequence[Setting], done: Sequence[Drawn]) -> Layout:
    """Arranges what was drawn: the last axis runs across, without axes the compositions, and of a single one the seeds.

    What stands before and after the pictures does so in every row.
    """
    one, axes = done[0], chosen[0].axes
    if axes:
        columns = [f"{axes[-1].name} {value}" for value in axes[-1].values]
        lines = list(_lines(chosen, done, len(axes[-1].values)))
    elif len(one.rows) > 1:
        columns = list(one.labels)
        lines = [(_seed(one, k), [row[k] for row in one.rows]) for k in range(len(one.seeds))]
    else:
        columns, lines = [f"seed {seed}" for seed in one.seeds], [(one.labels[0], list(one.rows[0]))]
    left, right = ([image for _, image in side] for side in (one.before, one.after))
    rows = [label for label, _ in lines]
    return Layout(
        [[*left, *pictures, *right] for _, pictures in lines],
        rows if any(rows) else [],
        [*(name for name, _ in one.before), *columns, *(name for name, _ in one.after)],
    )


def _lines(chosen: Sequence[Setting], done: Sequence[Drawn], across: int) -> Iterator[tuple[str, list[Tensor]]]:
    """A line for each value of the axes but the last, each composition and each seed."""
    for start in range(0, len(done), across):
        group, setting = done[start : start + across], chosen[start]
        pairs = list(zip(setting.axes, setting.values, strict=True))[:-1]
        fixed = [f"{axis.name} {value}" for axis, value in pairs]
        for i, label in enumerate(group[0].labels):
            for k in range(len(group[0].seeds)):
                says = [*fixed, label, _seed(group[0], k)]
                yield ", ".join(word for word in says if word), [one.rows[i][k] for one in group]


def _seed(drawn: Drawn, k: int) -> str:
    """Names a seed where there are several."""
    return f"seed {drawn.seeds[k]}" if len(drawn.seeds) > 1 else ""
