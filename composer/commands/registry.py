"""All commands, in groups.

Light: what is heavy is imported once a command line has been read, so that help and mistakes show at once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

from composer.commands import autoencoders, data, demo, measure, models, page, priors, published, train, training
from composer.commands.request import Task
from composer.commands.signature import Parser
from composer.commands.tasks import TASKS


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        function: Its docstring says what the command does.
        run: Takes what stands behind the command on a command line, and modules that the user trusts; returns the
            exit status, None is 0.
    """

    function: Callable[..., Any]
    run: Callable[[Sequence[str], Sequence[str]], int | None]

    @property
    def about(self) -> str:
        """What it does, in a line."""
        return (self.function.__doc__ or "").partition("\n")[0]

    def __call__(self, args: Sequence[str], plugins: Sequence[str]) -> int | None:
        """Runs it."""
        return self.run(args, plugins)


def _command(function: Callable[..., Any], name: str, usage: str | None = None) -> Command:
    """A command whose options are the function's parameters."""

    def run(args: Sequence[str], plugins: Sequence[str]) -> int | None:
        given = Parser.of(function, name, usage).read(args)
        if "plugins" in signature(function).parameters:
            given["plugins"] = plugins
        status: int | None = function(**given)
        return status

    return Command(function, run)


def _task(task: Task) -> Command:
    def run(args: Sequence[str], plugins: Sequence[str]) -> None:
        request = task.read(args)
        from composer.commands.drawing import draw

        draw(request, plugins)

    return Command(task.make, run)


def _commands(*functions: Callable[..., Any]) -> dict[str, Command]:
    names = {function.__name__.rstrip("_").replace("_", "-"): function for function in functions}
    return {name: _command(function, name) for name, function in names.items()}


GROUPS: dict[str, dict[str, Command]] = {
    "draw": {**_commands(demo.demo, page.page), **{name: _task(task) for name, task in TASKS.items()}},
    "train": {
        "train": _command(train.train, "train", "[FOLDER] [-c CONFIG] [--out FOLDER] [--KEY VALUE ...]"),
        "fit": Command(training.fit, training.fit),
        "validate": Command(training.validate, training.validate),
        **_commands(training.doctor),
    },
    "data": {
        **_commands(data.scenes, data.decompose, data.decomposers, data.caption, data.cache, data.prepare),
        **_commands(priors.embed, priors.pca),
    },
    "measure": _commands(measure.evaluate, priors.evaluate_prior, autoencoders.evaluate_autoencoder, measure.report),
    "models": _commands(models.export, models.assemble, published.import_),
}
COMMANDS = {name: run for group in GROUPS.values() for name, run in group.items()}


def overview() -> str:
    """The help text: the commands in groups, one line each."""
    lines = ["composer [--plugins MODULE,...] COMMAND ..."]
    for group, commands in GROUPS.items():
        lines += ["", group, *(f"  {name:<15} {run.about}" for name, run in commands.items())]
    return "\n".join([*lines, "", "`composer COMMAND --help` explains one command."])
