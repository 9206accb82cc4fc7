"""All commands, in groups.

Light: what is heavy is imported once a command line has been read, so that help and mistakes show at once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

from composer.commands import data, demo, measure, models, priors, published, train, training
from composer.commands.request import Task
from composer.commands.signature import line_of
from composer.commands.tasks import TASKS


@dataclass(frozen=True)
class Command:
    """A function as a command.

    Attributes:
        name: Of the command.
        run: Its parameters are the options; it may return an exit status.
        usage: The line of its usage, behind its name; None lists all options there.
    """

    name: str
    run: Callable[..., int | None]
    usage: str | None = None

    @property
    def about(self) -> str:
        """What it does, in a line."""
        return (self.run.__doc__ or "").partition("\n")[0]

    def __call__(self, args: Sequence[str], plugins: Sequence[str]) -> int | None:
        """Runs it.

        Args:
            args: What stands behind the command on a command line.
            plugins: Modules that the user trusts.

        Returns:
            The exit status; None is 0.
        """
        given = line_of(self.run, self.name, self.usage).read(args)
        return self.run(**given | ({"plugins": plugins} if "plugins" in signature(self.run).parameters else {}))


@dataclass(frozen=True)
class TaskCommand:
    """A task as a command."""

    task: Task

    @property
    def about(self) -> str:
        """What it does, in a line."""
        return (self.task.make.__doc__ or "").partition("\n")[0]

    def __call__(self, args: Sequence[str], plugins: Sequence[str]) -> None:
        """Draws; see `Command`."""
        request = self.task.read(args)
        from composer.commands.drawing import draw

        draw(request, plugins)


@dataclass(frozen=True)
class TrainingCommand:
    """A command of Lightning's, which reads its own command line."""

    run: Callable[[Sequence[str], Sequence[str]], None]

    @property
    def about(self) -> str:
        """What it does, in a line."""
        return (self.run.__doc__ or "").partition("\n")[0]

    def __call__(self, args: Sequence[str], plugins: Sequence[str]) -> None:
        """Trains; see `Command`."""
        self.run(args, plugins)


def _commands(*functions: Callable[..., Any], **usage: str) -> dict[str, Command]:
    names = {function.__name__.rstrip("_").replace("_", "-"): function for function in functions}
    return {name: Command(name, run, usage.get(name)) for name, run in names.items()}


GROUPS: dict[str, dict[str, Command | TaskCommand | TrainingCommand]] = {
    "draw": {**_commands(demo.demo), **{name: TaskCommand(task) for name, task in TASKS.items()}},
    "train": {
        **_commands(train.train, train="[FOLDER] [-c CONFIG] [--out FOLDER] [--KEY VALUE ...]"),
        "fit": TrainingCommand(training.fit),
        "validate": TrainingCommand(training.validate),
        **_commands(training.doctor),
    },
    "data": {
        **_commands(data.scenes, data.decompose, data.decomposers, data.caption, data.cache),
        **_commands(priors.embed, priors.pca),
    },
    "measure": {**_commands(measure.evaluate, priors.evaluate_prior, measure.report)},
    "models": {**_commands(models.export, models.assemble, published.import_)},
}
COMMANDS = {name: run for group in GROUPS.values() for name, run in group.items()}


def overview() -> str:
    """The help text: the commands in groups, one line each."""
    lines = ["composer [--plugins MODULE,...] COMMAND ..."]
    for group, commands in GROUPS.items():
        lines += ["", group, *(f"  {name:<15} {run.about}" for name, run in commands.items())]
    return "\n".join([*lines, "", "`composer COMMAND --help` explains one command."])
