"""What was drawn, arranged as a sheet."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from composer.commands.request import Setting


@dataclass(frozen=True)
class Drawn:
    """The pictures of one setting.

    Attributes:
        seeds: What they were drawn from.
        labels: One per composition.
        rows: The pictures of each composition, one per seed.
        frames: The same as a film shows them; none where there is no film.
        before: What stands before them on a sheet, such as the picture to edit, and its name.
        after: What stands after them.
    """

    seeds: Sequence[int]
    labels: Sequence[str]
    rows: Sequence[Sequence[Tensor]]
    frames: Sequence[Sequence[Image.Image]]
    before: Sequence[tuple[str, Tensor]] = ()
    after: Sequence[tuple[str, Tensor]] = ()


@dataclass(frozen=True)
class Layout:
    """What `gallery.sheet` takes.

    Attributes:
        images: Rows of pictures.
        rows: One label per row, or none.
        columns: One label per column.
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
        columns = [f"{axes[-1].name} {word}" for word in axes[-1].words]
        lines = list(_lines(chosen, done, len(axes[-1].words)))
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
        pairs = list(zip(setting.axes, setting.words, strict=True))[:-1]
        fixed = [f"{axis.name} {word}" for axis, word in pairs]
        for i, label in enumerate(group[0].labels):
            for k in range(len(group[0].seeds)):
                says = [*fixed, label, _seed(group[0], k)]
                yield ", ".join(word for word in says if word), [one.rows[i][k] for one in group]


def _seed(drawn: Drawn, k: int) -> str:
    """Names a seed where there are several."""
    return f"seed {drawn.seeds[k]}" if len(drawn.seeds) > 1 else ""
