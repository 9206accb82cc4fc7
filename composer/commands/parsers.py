"""What the commands' parsers share; light, so that help and mistakes show before anything heavy is imported."""

import argparse
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args

from composer.cascade.options import SampleOptions
from composer.mistakes import Mistake, did_you_mean
from composer.names import DEVICES, SHIPPED, SamplerName
from composer.storage.files import printable
from composer.storage.finding import find_config

SAMPLING = ("steps", "guidance", "guidance_interval", "sampler", "eta", "percentile", "tile")
INTERVAL = re.compile(r"(\d*\.?\d+)-(\d*\.?\d+)")

Options = argparse.ArgumentParser | argparse._ArgumentGroup
"""What options are added to."""


MAX_STEPS, MAX_SIDE, MAX_PIXELS = 10_000, 16_384, 64_000_000
"""Of a sampling and of what it draws: beyond them a slip of the finger would run for days."""

MAX_PICTURES, MAX_IMAGES = 10_000, 100_000_000
"""Pictures that one command draws, and images that it reads or renders."""

MAX_SEED = (1 << 63) - 1


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and which option was probably meant."""

    def parse_args(self, args: Sequence[str], namespace: Any = None) -> argparse.Namespace:  # type: ignore[override]
        options: argparse.Namespace
        options, unknown = self.parse_known_args(args, namespace)
        self.refuse(unknown)
        return options

    def refuse(self, unknown: Sequence[str], hint: str = "") -> None:
        """Refuses words that no option takes.

        Args:
            unknown: The words.
            hint: What to say besides.

        Raises:
            Mistake: There are any.
        """
        if not unknown:
            return
        wrong = next((word for word in unknown if word.startswith("--")), None)
        if wrong is None:
            self.error(f"nothing here takes {' '.join(unknown)}")
        name = wrong.partition("=")[0]
        self.error(f"no option {name}{did_you_mean(name, self._option_string_actions)}{hint}")

    def error(self, message: str) -> NoReturn:
        raise Mistake(f"{message}\n`{self.prog} --help` says what it takes")


def make_parser(name: str, about: str | None, *examples: str, usage: str | None = None) -> Parser:
    """A command's parser, whose help ends in examples.

    Args:
        name: Of the command.
        about: What it does.
        *examples: What stands behind its name in the examples.
        usage: The same for the line of its usage; None lists all options there.
    """
    prog = f"composer {name}"
    return Parser(
        prog=prog,
        usage=usage and f"{prog} {usage}",
        description=about,
        epilog="\n".join(["examples:", *(f"  {prog} {example}" for example in examples)]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_model(parser: Options) -> None:
    """Adds the options that say which model, and how it runs."""
    about = f"a model's folder, or owner/name@revision on the Hugging Face hub (default {SHIPPED}, which is shipped)"
    parser.add_argument("--model", default=SHIPPED, help=about)
    add_network(parser)
    add_precision(parser)
    add_device(parser)


def add_network(parser: Options) -> None:
    """Adds the option that lets a model fetch weights."""
    about = "fetch a model of the hub, and weights of others that it names (hub:...), where they are not here yet"
    parser.add_argument("--allow-network", action="store_true", help=about)


def add_device(parser: Options) -> None:
    """Adds the option for the device to run on."""
    parser.add_argument("--device", choices=DEVICES, help="what to run on (default: the first of them that is there)")


def add_precision(parser: Options) -> None:
    """Adds the option for the precision inside the network."""
    kinds = ("fp32", "bf16")
    parser.add_argument("--precision", choices=kinds, default="fp32", help="inside the network (default fp32)")


def add_out(parser: Options, default: str = "out") -> None:
    """Adds the option for the folder to write to."""
    parser.add_argument("--out", type=Path, default=Path(default), help=f"folder to write to (default {default})")


def add_sampling(parser: Options) -> None:
    """Adds the options that differ from the model's own sampling."""
    add = parser.add_argument
    add("--steps", type=FIELDS["steps"], metavar="N", help="sampling steps")
    add("--guidance", type=FIELDS["guidance"], metavar="W", help="weight of classifier-free guidance; 1 is none")
    about = "noise levels (0 to 1) at which it guides, such as 0.2-0.8; elsewhere its weight is 1 (default: all)"
    add("--guidance-interval", type=interval, metavar="LOW-HIGH", help=about)
    about = "guide away from this weaker model's estimate, not from the one without conditions (autoguidance)"
    add("--autoguidance", metavar="MODEL", help=about)
    add("--sampler", choices=get_args(SamplerName), metavar="NAME", help=", ".join(get_args(SamplerName)))
    add("--eta", type=FIELDS["eta"], help="share of fresh noise of --sampler ancestral, 0 to 1 (default 1)")
    add(
        "--percentile",
        type=FIELDS["percentile"],
        metavar="P",
        help="dynamic thresholding, such as 0.995 (default: clip)",
    )
    add("--tile", type=FIELDS["tile"], metavar="N", help="side of the tiles to draw a large picture by, such as 256")
    parser.add_argument(
        "--stage",
        dest="stages",
        type=_stage,
        action="append",
        metavar="NAME:FIELD=VALUE,...",
        help="how a later stage samples, such as up256:steps=20,augmentation=0.1",
    )
    parser.add_argument("--until", metavar="STAGE", help="stage to stop after, such as base (default: run all)")
    parser.add_argument("--size", type=_size, metavar="WxH", help="pixels of the result (default: the last stage's)")


def sampling(options: argparse.Namespace) -> SampleOptions:
    """What was said of sampling, stages and size."""
    given = {n: getattr(options, n) for n in (*SAMPLING, "until", "size") if getattr(options, n) is not None}
    return SampleOptions(**given, stages=dict(options.stages or ()))


def _stage(text: str) -> tuple[str, dict[str, Any]]:
    """``up256:steps=20,sampler=heun`` -> ("up256", {"steps": 20, "sampler": "heun"})."""
    name, colon, rest = text.partition(":")
    pairs = [pair.partition("=") for pair in rest.split(",")]
    if not (name and colon and all(key and equals and value for key, equals, value in pairs)):
        raise argparse.ArgumentTypeError(f"expected NAME:FIELD=VALUE,..., such as up256:steps=20, found {text!r}")
    return name, {key: FIELDS.get(key, str)(value) for key, _, value in pairs}


def interval(text: str) -> tuple[float, float]:
    """``0.2-0.8`` -> (0.2, 0.8)."""
    found = INTERVAL.fullmatch(text)
    if found is None or not 0 <= float(found[1]) < float(found[2]) <= 1:
        raise argparse.ArgumentTypeError(f"expected LOW-HIGH within 0-1, such as 0.2-0.8, found {shown(text)}")
    return float(found[1]), float(found[2])


def _size(text: str) -> tuple[int, int]:
    """``384x256``, width first as people say it -> (256, 384)."""
    found = re.fullmatch(r"(\d{1,9})x(\d{1,9})", text, re.ASCII)
    width, height = (int(side) for side in found.groups()) if found else (0, 0)
    if not (min(width, height) > 0 and max(width, height) <= MAX_SIDE and width * height <= MAX_PIXELS):
        raise argparse.ArgumentTypeError(
            f"expected WIDTHxHEIGHT in pixels, such as 384x256, at most {MAX_SIDE:,} a side and "
            f"{MAX_PIXELS // 1_000_000} megapixels, found {shown(text)}"
        )
    return height, width


def shown(text: str) -> str:
    """What was written, in quotes, cut short where it is long."""
    return repr(printable(text if len(text) <= 60 else f"{text[:60]}..."))


def whole(low: int, high: int) -> Callable[[str], int]:
    """The type of an option that takes a whole number from `low` to `high`."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"expected a whole number from {low:,} to {high:,}, found {shown(text)}")
        return value

    return read


def number(low: float, high: float) -> Callable[[str], float]:
    """The type of an option that takes a number from `low` to `high`."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"expected a number from {low:g} to {high:g}, found {shown(text)}")
        return value

    return read


def several(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """The type of an option that takes values with commas between them, such as ``0,1,2``."""

    def read(text: str) -> list[Any]:
        values = [kind(part) for part in text.split(",")]
        if len(values) > MAX_PICTURES:
            raise argparse.ArgumentTypeError(f"expected at most {MAX_PICTURES:,} values, found {len(values):,}")
        return values

    return read


SEED = whole(-MAX_SEED, MAX_SEED)
SEED_OF_MANY = whole(0, 1_000_000_000)
"""The seeds of many pictures are computed from it."""

FIELDS: dict[str, Callable[[str], Any]] = {
    "steps": whole(1, MAX_STEPS),
    "guidance": number(-1000, 1000),
    "guidance_interval": interval,
    "eta": number(0, 1),
    "percentile": number(0, 1),
    "augmentation": number(0, 1),
    "tile": whole(1, 65_536),
}
"""How a stage samples: the options of the first one, and the fields of ``--stage``."""


HOW_CONDITIONS = """each from an image or words, several values for several rows; VALUE:0.7@0.2-0.8:mask.png says how
much it counts, at which noise levels (0 to 1) and where (a mask's file, or left,top,right,bottom in shares)"""


def add_conditions(parser: Options, names: Iterable[str]) -> None:
    """Adds an option for each condition that a person may ask a model for.

    Raises:
        ValueError: One has the name of another option.
    """
    for name in names:
        try:
            parser.add_argument(f"--{name}", nargs="+", action="extend", default=[], metavar="FILE|WORDS")
        except argparse.ArgumentError as error:
            raise ValueError(f"the model names a condition {name}, but --{name} is another option here") from error


def add_config(parser: Options, about: str = "further options change it as in fit", **kwargs: Any) -> None:
    """Adds the option that names a training's configuration."""
    says = f"of the training: a file, or the name of one that is shipped, such as tiny; {about}"
    parser.add_argument("-c", "--config", type=find_config, metavar="CONFIG", help=says, **kwargs)
