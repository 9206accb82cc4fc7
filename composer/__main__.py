"""``python -m composer COMMAND``."""

import importlib
import os
import sys
from collections.abc import Sequence

TRAINING = {
    "fit": "Train, from a YAML: python -m composer fit -c configs/tiny.yaml",
    "validate": "Measure a checkpoint: python -m composer validate -c runs/tiny/config.yaml --ckpt_path last",
    "test": "The same on the test data",
}


def main(args: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        args: What stands behind ``python -m composer``; None takes it from the command line.

    Returns:
        The exit status; 0 is success, 1 a mistake that was explained on stderr.
    """
    plugins, rest = take_plugins(list(sys.argv[1:] if args is None else args))
    command = rest[0] if rest else "--help"
    if command in ("-h", "--help"):
        print(overview())
        return 0
    if command == "--version":
        from importlib.metadata import version

        print(version("composer-diffusion"))
        return 0
    try:
        return run(command, rest[1:], plugins)
    except (FileExistsError, FileNotFoundError, FloatingPointError, KeyError, OSError, ValueError) as error:
        if os.environ.get("COMPOSER_TRACEBACK"):
            raise
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"error: {message}\n(COMPOSER_TRACEBACK=1 shows where)", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def run(command: str, args: Sequence[str], plugins: Sequence[str]) -> int:
    """Imports what names classes by short names in a YAML, then runs the command."""
    import conditions  # noqa: F401
    import decomposers  # noqa: F401

    for plugin in plugins:
        importlib.import_module(plugin)
    if command in TRAINING:
        from .cli import TrainingCLI

        # The processes that Lightning starts for further devices repeat the command line, and share the environment.
        sys.argv, os.environ["COMPOSER_PLUGINS"] = ["composer", command, *args], ",".join(plugins)
        TrainingCLI(plugins=plugins)
        return 0
    from .commands import COMMANDS

    if command not in COMMANDS:
        print(f"error: no command {command!r}\n\n{overview()}", file=sys.stderr)
        return 2
    return COMMANDS[command](args, plugins) or 0


def take_plugins(args: list[str]) -> tuple[list[str], list[str]]:
    """Splits ``--plugins MODULE[,MODULE...]`` off; the environment variable COMPOSER_PLUGINS adds to it."""
    named = os.environ.get("COMPOSER_PLUGINS", "")
    if "--plugins" in args:
        i = args.index("--plugins")
        if i + 1 == len(args):
            raise SystemExit("error: --plugins needs the names of modules, separated by commas")
        named, args = f"{named},{args[i + 1]}", args[:i] + args[i + 2 :]
    return [name for name in named.split(",") if name], args


def overview() -> str:
    """The help text: one line a command."""
    from .commands import COMMANDS

    lines = TRAINING | {name: (run.__doc__ or "").partition("\n")[0] for name, run in COMMANDS.items()}
    return "\n".join(
        [
            "python -m composer [--plugins MODULE,...] COMMAND ...",
            "",
            *(f"  {name:<12} {text}" for name, text in lines.items()),
            "",
            "python -m composer COMMAND --help says more.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
