"""All commands, in groups.

Light: what is heavy is imported once a command line has been read, so that help and mistakes show at once.
"""

from composer.commands.data import cache, caption, decompose, decomposers, scenes
from composer.commands.draw import Command, demo, task
from composer.commands.measure import evaluate, report
from composer.commands.models import assemble, export
from composer.commands.prior import embed, evaluate_prior, pca
from composer.commands.task_parsers import PARSERS
from composer.commands.train import train
from composer.commands.training import doctor, fit, test, validate

GROUPS: dict[str, dict[str, Command]] = {
    "draw": {"demo": demo, **{name: task(name) for name in PARSERS}},
    "train": {"train": train, "fit": fit, "validate": validate, "test": test, "doctor": doctor},
    "data": {
        "scenes": scenes,
        "decompose": decompose,
        "decomposers": decomposers,
        "caption": caption,
        "cache": cache,
        "embed": embed,
        "pca": pca,
    },
    "measure": {"evaluate": evaluate, "evaluate-prior": evaluate_prior, "report": report},
    "models": {"export": export, "assemble": assemble},
}
COMMANDS = {name: run for group in GROUPS.values() for name, run in group.items()}


def overview() -> str:
    """The help text: the commands in groups, one line each."""
    lines = ["composer [--plugins MODULE,...] COMMAND ..."]
    for group, commands in GROUPS.items():
        lines += ["", group, *(f"  {name:<15} {_about(run)}" for name, run in commands.items())]
    return "\n".join([*lines, "", "`composer COMMAND --help` says more."])


def _about(run: Command) -> str:
    return (run.__doc__ or "").partition("\n")[0]
