"""What the benchmarks of a model share: options, tables, files."""

import argparse
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table

from composer.cascade.cascade import Cascade
from composer.cascade.stage import Stage
from composer.evaluation.adherence import Evaluation
from composer.evaluation.samples import open_sample
from composer.storage.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def options(
    about: str | None, count: int, steps: int | None = None, plot: bool = True, model: bool = True
) -> argparse.ArgumentParser:
    """The options of a benchmark on Scenes; those with a default of None are left out."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=count, help=f"Scenes (default {count})")
    if steps is not None:
        parser.add_argument("--steps", type=int, default=steps, help=f"of sampling (default {steps})")
    if model:
        parser.add_argument(
            "--model", default="scenes256", help="a model's folder (default scenes256, which is shipped)"
        )
    parser.add_argument("--json", type=Path, help="file to write the rows to")
    if plot:
        parser.add_argument("--plot", type=Path, help="PNG to write the plot to")
    return parser


def first_stage(cascade: Cascade) -> Stage:
    """The first stage, which has to draw by diffusion."""
    stage = cascade.stages[0]
    if not isinstance(stage, Stage):
        raise ValueError(f"expected a model that draws by diffusion, found {cascade}")
    return stage


class Held(Evaluation):
    """A model on a few Scenes, all of which are held at once: ``whole``, ``seeds``, and ``other``, the pairing."""

    def __init__(self, cascade: Cascade, count: int):
        super().__init__(cascade, open_sample("scenes:val", count, cascade.stages[0].size))
        every = range(count)
        self.whole, self.seeds, self.other = self.block(every), self.seeds_of(every), torch.tensor(self.others(every))


def show(rows: Sequence[Mapping[str, Any]], title: str = "", number: str = "", width: int = 140) -> None:
    """Prints rows as a table, floats in the format `number`."""
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*(format(value, number) if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=width).print(table)


def save_json(path: Path, found: Mapping[str, Any]) -> None:
    """Writes what was found."""
    write_atomically(path, (json.dumps(found, indent=2) + "\n").encode())


def save_plot(path: Path, figure: "Figure") -> None:
    """Writes a plot as a PNG that depends on nothing but its content."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110, metadata={"Software": None})
    write_atomically(path, data.getvalue())
