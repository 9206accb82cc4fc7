"""``composer COMMAND``, or ``python -m composer COMMAND``."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from .commands import COMMANDS, overview
from .parsers import Mistake
from .suggestion import did_you_mean


def main(args: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        args: What stands behind ``composer``; None takes it from the command line.

    Returns:
        The exit status: 0 is success, 1 a failure and 2 a mistake in the command line, explained on stderr.
    """
    try:
        plugins, rest = take_plugins(list(sys.argv[1:] if args is None else args))
        command = rest[0] if rest else "--help"
        if command in ("-h", "--help"):
            print(overview())
            return 0
        if command == "--version":
            from importlib.metadata import version

            print(version("composer-diffusion"))
            return 0
        if command not in COMMANDS:
            raise Mistake(f"no command {command}{did_you_mean(command, COMMANDS)}\n`composer --help` lists all of them")
        here = str(Path.cwd())
        if plugins and here not in sys.path:  # as `python -m` has it: plugins lie where people work
            sys.path.insert(0, here)
        return COMMANDS[command](rest[1:], plugins) or 0
    except Mistake as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (FileExistsError, FileNotFoundError, FloatingPointError, KeyError, OSError, ValueError) as error:
        if os.environ.get("COMPOSER_TRACEBACK"):
            raise
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"error: {message}\n(COMPOSER_TRACEBACK=1 shows where)", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def take_plugins(args: list[str]) -> tuple[list[str], list[str]]:
    """Splits ``--plugins MODULE[,MODULE...]`` off; the environment variable COMPOSER_PLUGINS adds to it."""
    named = os.environ.get("COMPOSER_PLUGINS", "")
    if "--plugins" in args:
        i = args.index("--plugins")
        if i + 1 == len(args):
            raise Mistake("--plugins needs the names of modules, separated by commas")
        named, args = f"{named},{args[i + 1]}", args[:i] + args[i + 2 :]
    return [name for name in named.split(",") if name], args


if __name__ == "__main__":
    sys.exit(main())
