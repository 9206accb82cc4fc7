"""Commands that draw: ``demo``, and one for each task."""

from collections.abc import Callable, Sequence

from composer.commands.parsers import add_model, add_out, make_parser
from composer.commands.task_parsers import PARSERS
from composer.terminal import say

Command = Callable[[Sequence[str], Sequence[str]], int | None]
"""What follows the command on a command line, and the plugins that the user trusts -> the exit status; None is 0."""


def task(name: str) -> Command:
    """Makes the command of a task.

    Args:
        name: One of `PARSERS`.
    """
    build = PARSERS[name]

    def run(args: Sequence[str], plugins: Sequence[str]) -> None:
        parser = build()
        request = parser.parse(args)
        from composer.commands.drawing import Drawing
        from composer.commands.tasks import TASKS

        Drawing(parser).run(request, plugins, TASKS[name])

    run.__doc__ = build.__doc__
    return run


def demo(args: Sequence[str], plugins: Sequence[str]) -> None:
    """Show everything on the shipped model: take apart, recombine, edit, measure."""
    parser = make_parser("demo", demo.__doc__, "--out out/demo")
    add_model(parser)
    add_out(parser, "out/demo")
    o = parser.parse_args(args)
    from composer.commands.demo import run
    from composer.commands.options import load

    say(f"open {run(load(o, plugins), o.out)}")
