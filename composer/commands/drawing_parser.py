"""What the parsers of the commands that draw share."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from composer.commands.axes import Setting, settings
from composer.commands.parsers import (
    HOW_CONDITIONS,
    MAX_SIDE,
    SEED,
    Parser,
    add_conditions,
    add_model,
    add_out,
    add_sampling,
    make_parser,
    number,
    several,
    shown,
    whole,
)
from composer.names import CLOSED
from composer.storage.finding import askable_conditions


@dataclass(frozen=True)
class Request:
    """What a command line asks for.

    Attributes:
        options: As they were given.
        settings: Each setting of a sheet, and the options in it; a single one where there is no sheet.
    """

    options: argparse.Namespace
    settings: Sequence[tuple[Setting, argparse.Namespace]]


class DrawingParser:
    """The parser of a command that draws.

    Args:
        name: Of the command.
        about: Its docstring.
        *examples: What stands behind its name in the examples of its help.
        pictures: What each of the pictures is that it takes.
        needs_region: Whether it works within a region of the first picture only.
        grows: Whether the canvas of the picture grows by ``--by``.
        between: Whether what it draws lies between the first picture and the last: the frames of a film.
    """

    def __init__(
        self,
        name: str,
        about: str | None,
        *examples: str,
        pictures: Sequence[str] = (),
        needs_region: bool = False,
        grows: bool = False,
        between: bool = False,
    ):
        words = ["IMAGE"] * len(pictures) + ["--region R"] * needs_region + ["[options]"]
        self.name = name
        self.parser = make_parser(name, about, *examples, usage=" ".join(words))
        self.pictures, self.needs_region, self.grows, self.between = list(pictures), needs_region, grows, between
        self.conditions = self.parser.add_argument_group("conditions", " ".join(HOW_CONDITIONS.split()))
        if pictures:
            self.parser.add_argument("images", nargs="*", metavar="IMAGE", help=", then ".join(pictures))
            self._add_pictures()
        self._add_drawing()
        add_sampling(self.parser.add_argument_group("sampling"))
        files = self.parser.add_argument_group("model and files")
        add_model(files)
        self.parser.set_defaults(precision=None)  # a recipe's own, unless another one is given
        add_out(files)
        files.add_argument(
            "--from-png", type=Path, metavar="FILE", help="make the picture that carries this recipe again, as it says"
        )
        about = "draw what the recipe of --from-png asks for, however large a picture and however many steps"
        files.add_argument("--no-limits", action="store_true", help=about)
        files.add_argument(
            "--no-recipe", action="store_true", help="leave no trace of how a picture was made in its PNG"
        )

    def _add_pictures(self) -> None:
        add = self.parser.add_argument_group("pictures").add_argument
        add(
            "--image-caption",
            default="",
            metavar="WORDS",
            help="what the (first) picture shows, where a task reads that",
        )
        if not self.grows:
            what = "a mask's file (white = may change) or left,top,right,bottom"
            add("--region", metavar="R", help=f"change this part of the (first) picture alone: {what}")
        add(
            "--soften",
            type=whole(0, 256),
            default=2,
            metavar="N",
            help="pixels over which a change fades in (default 2)",
        )

    def _add_drawing(self) -> None:
        add = self.parser.add_argument_group(
            "drawing", f"each picture is compared with what was asked of it; {CLOSED}"
        ).add_argument
        add(
            "--seeds",
            type=several(SEED),
            default=[0],
            metavar="N,...",
            help="one picture each, such as 0,1,2 (default 0)",
        )
        add(
            "--best-of",
            type=whole(1, 1000),
            default=1,
            metavar="N",
            help="draw N a seed and keep the one that follows best",
        )
        add("--weights", default={}, type=_weights, metavar="NAME=W,...", help="what counts how much for --best-of")
        about = "a sheet over these options, such as guidance=1,3 seed=0,1; ';' separates values that have commas"
        add("--sheet", nargs="+", default=[], metavar="OPTION=V,V", help=about)

    def names(self, option: str, default: Sequence[str] | None, about: str) -> None:
        """Adds an option that takes names of conditions."""
        shown = "" if default is None else f" (default {' '.join(default) or 'none'})"
        own = None if default is None else list(default)
        self.parser.add_argument(option, nargs="*", default=own, metavar="NAME", help=about + shown)

    def parse(self, args: Sequence[str]) -> Request:
        """Reads a command line; the model's configuration says which conditions there are, nothing is loaded.

        Args:
            args: What stands behind the command's name.

        Raises:
            FileNotFoundError: There is no such model.
            ValueError: A mistake in the command line.
        """
        first = Parser(prog=self.parser.prog, add_help=False, allow_abbrev=False)
        add_model(first)
        model = first.parse_known_args(args)[0].model
        names = askable_conditions(model, "--allow-network" in args)
        add_conditions(self.conditions, names)
        o = self._parse(args, model, names)
        if o.from_png is not None:
            return Request(o, [])
        many = [f"--{name}" for name in names]
        return Request(o, [(one, self._parse(one.words(args, many), model, names)) for one in settings(o.sheet)])

    def _parse(self, args: Sequence[str], model: str, names: Sequence[str]) -> argparse.Namespace:
        o, unknown = self.parser.parse_known_intermixed_args(args)
        self.parser.refuse(unknown, f"; the conditions of {model} are {', '.join(f'--{name}' for name in names)}")
        if o.from_png is None and self.pictures and len(o.images) != len(self.pictures):
            found = " ".join(o.images) or "no picture"
            self.parser.error(f"expected {' and '.join(self.pictures)} before all options, found {found}")
        if o.from_png is None and self.needs_region and o.region is None:
            self.parser.error("this needs --region: a mask's file, or a box left,top,right,bottom")
        return o


def four(text: str) -> tuple[float, float, float, float]:
    """Reads ``left,top,right,bottom``.

    Raises:
        ValueError: Something else is written.
    """
    try:
        left, top, right, bottom = several(number(0, MAX_SIDE))(text)
    except (argparse.ArgumentTypeError, ValueError) as error:
        raise ValueError(
            f"expected four numbers left,top,right,bottom from 0 to {MAX_SIDE:,}, found {shown(text)}"
        ) from error
    return left, top, right, bottom


def _weights(text: str) -> dict[str, float]:
    pairs = [pair.partition("=") for pair in text.split(",")]
    if not all(name and equals for name, equals, _ in pairs):
        raise argparse.ArgumentTypeError(f"expected NAME=WEIGHT,..., such as palette=2, found {shown(text)}")
    weigh = number(0, 1000)
    return {name: weigh(weight) for name, _, weight in pairs}
