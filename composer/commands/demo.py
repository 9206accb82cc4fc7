"""``demo``: everything on the included model; light, `commands.demonstration` does the work."""

from collections.abc import Sequence
from pathlib import Path

from composer.commands.groups import ModelOptions
from composer.terminal import say


def demo(*, out: Path = Path("out/demo"), model: ModelOptions, plugins: Sequence[str]) -> None:
    """Show everything on the included model: decompose, recombine, edit, measure.

    Args:
        out: folder to write to
        model: The model, and what runs it.
        plugins: Modules that the user trusts.

    Examples:
        --out out/demo
    """
    from composer.commands.demonstration import run

    say(f"open {run(model.load(model.model, plugins), out)}")
