"""``demo``: everything on the included model; light, `commands.demonstration` does the work."""

from collections.abc import Sequence
from pathlib import Path

from composer.commands.groups import ModelOptions
from composer.commands.values import Out
from composer.terminal import say


def demo(*, out: Out = Path("out/demo"), model: ModelOptions, plugins: Sequence[str]) -> None:
    """Show everything on the included model: decompose, recombine, edit, measure.

    Examples:
        --out out/demo
    """
    from composer.commands.demonstration import run

    say(f"open {run(model.load(model.model, plugins), out)}")
