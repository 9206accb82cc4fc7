"""What the commands share: their options, and how conditions are read from the command line."""

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any, get_args

import torch
from rich.progress import track

from .cascade import Cascade
from .composition import Composition, said, shown
from .devices import DEVICES, pick_device
from .editing import open_region
from .images import SUFFIXES
from .stage import SamplerName
from .strength import Strength

SHIPPED = "scenes256"
"""The model that comes with the package."""

SAMPLING = ("steps", "guidance", "sampler", "eta", "percentile", "tile")


Options = argparse.ArgumentParser | argparse._ArgumentGroup
"""What options are added to."""


def make_parser(name: str, about: str | None, *examples: str, usage: str | None = None) -> argparse.ArgumentParser:
    """A command's parser, whose help ends in examples.

    Args:
        name: Of the command.
        about: What it does.
        *examples: What stands behind its name in the examples.
        usage: The same for the line of its usage; None lists all options there.
    """
    prog = f"python -m composer {name}"
    return argparse.ArgumentParser(
        prog=prog,
        usage=usage and f"{prog} {usage}",
        description=about,
        epilog="\n".join(["examples:", *(f"  {prog} {example}" for example in examples)]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_model(parser: Options) -> None:
    """Adds the options that say which model, and how it runs."""
    parser.add_argument("--model", default=SHIPPED, help=f"a model's folder (default {SHIPPED}, which is shipped)")
    add_precision(parser)
    add_device(parser)


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
    add("--steps", type=int, metavar="N", help="sampling steps")
    add("--guidance", type=float, metavar="W", help="weight of classifier-free guidance; 1 is none")
    add("--sampler", choices=get_args(SamplerName), metavar="NAME", help=", ".join(get_args(SamplerName)))
    add("--eta", type=float, help="share of fresh noise of --sampler ancestral, 0 to 1 (default 1)")
    add("--percentile", type=float, metavar="P", help="dynamic thresholding, such as 0.995 (default: clip)")
    add("--tile", type=int, metavar="N", help="side of the tiles to draw a large picture by, such as 256")
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


def sampling(options: argparse.Namespace) -> dict[str, Any]:
    """What was said of sampling, stages and size, as `Cascade.sample` takes it."""
    given = {n: getattr(options, n) for n in (*SAMPLING, "until", "size") if getattr(options, n) is not None}
    return given | ({"stages": dict(options.stages)} if options.stages else {})


def _stage(text: str) -> tuple[str, dict[str, Any]]:
    """``up256:steps=20,sampler=heun`` -> ("up256", {"steps": 20, "sampler": "heun"})."""
    name, colon, rest = text.partition(":")
    pairs = [pair.partition("=") for pair in rest.split(",")]
    if not (name and colon and all(key and equals and value for key, equals, value in pairs)):
        raise argparse.ArgumentTypeError(f"expected NAME:FIELD=VALUE,..., such as up256:steps=20, found {text!r}")
    return name, {key: _value(value) for key, _, value in pairs}


def _value(text: str) -> int | float | str:
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            pass
    return text


def _size(text: str) -> tuple[int, int]:
    """``384x256``, width first as people say it -> (256, 384)."""
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT in pixels, such as 384x256, found {text!r}")
    return int(height), int(width)


def load(options: argparse.Namespace, plugins: Sequence[str]) -> Cascade:
    """Loads the model that the options name, on the device that they name.

    Raises:
        ValueError: This machine has no such device.
    """
    device = pick_device(options.device)
    precision = torch.bfloat16 if options.precision == "bf16" else None
    return Cascade.load(options.model, plugins).to(device, precision)


HOW_CONDITIONS = """each from an image or words, several values for several rows; VALUE:0.7@0.2-0.8:mask.png says how
much it counts, at which noise levels (0 to 1) and where (a mask's file, or left,top,right,bottom in shares)"""


def add_conditions(parser: Options, cascade: Cascade) -> None:
    """Adds an option for each condition that a person may ask a model for."""
    for name in askable(cascade):
        parser.add_argument(f"--{name}", nargs="+", action="extend", default=[], metavar="FILE|WORDS")


def askable(cascade: Cascade) -> list[str]:
    """The conditions that a person asks for; the mask comes from an edit's region."""
    return [name for name in cascade.names if name != "mask"]


def numbers(text: str) -> list[int]:
    """Reads ``0,1,2``."""
    return [int(part) for part in text.split(",")]


def asked(options: argparse.Namespace, cascade: Cascade) -> list[Composition]:
    """Reads the conditions that were given, a composition a row.

    Raises:
        ValueError: Their numbers do not match, or one cannot be read.
    """
    values: dict[str, list[str]] = {n: getattr(options, n) for n in askable(cascade) if getattr(options, n)}
    rows = max(map(len, values.values()), default=1)
    if wrong := {name: len(given) for name, given in values.items() if len(given) not in (1, rows)}:
        raise ValueError(f"expected one value or {rows} for each condition, found {wrong}")
    read = {name: [read_value(cascade, name, value) for value in given] for name, given in values.items()}
    return [
        reduce(or_, (given[min(row, len(given) - 1)] for given in read.values()), Composition()) for row in range(rows)
    ]


PLACE = rf"\d*\.?\d+(?:,\d*\.?\d+){{3}}|[^:]+\.(?i:{'|'.join(suffix[1:] for suffix in sorted(SUFFIXES))})"
COLOUR = "#[0-9a-fA-F]{6}"  # what follows its colon is the colour's own share
CLOCK = r"(?<!\s\d)(?<!\s\d\d)"  # "a clock at 10:30" is about the time, "16:9" about a shape
STRENGTH = re.compile(
    rf"(.+?)(?:(?<!{COLOUR}){CLOCK}:(\d*\.?\d+))?(?:@(\d*\.?\d+)-(\d*\.?\d+))?(?::({PLACE}))?", re.DOTALL
)


def read_value(cascade: Cascade, name: str, text: str) -> Composition:
    """Reads one value of a condition: an image's file or words, and how it counts (``b.jpg:0.7@0.2-0.8:mask.png``).

    Raises:
        FileNotFoundError: An image or a mask is not there.
        ValueError: The condition is not given by such a thing, or a number is out of its range.
    """
    found = STRENGTH.fullmatch(text)
    if is_file(text) or found is None or not any(found.groups()[1:]):
        return _given(cascade, name, text)
    value, weight, low, high, place = found.groups()
    strength = Strength(
        weight=1.0 if weight is None else float(weight),
        interval=(0.0, 1.0) if low is None else (float(low), float(high)),
        region=None if place is None else open_region(place, None).to(cascade.device),
    )
    return _given(cascade, name, value).but(strengths={name: strength})


def _given(cascade: Cascade, name: str, value: str) -> Composition:
    if not is_file(value):
        if Path(value).suffix.lower() in SUFFIXES:
            raise FileNotFoundError(f"--{name}: there is no file {value}")
        if lost := dict(cascade.decomposition.named())[name].unread(value):
            print(f"note: --{name}: the model does not know or has no room for {' '.join(lost)}", file=sys.stderr)
        return said(cascade, name, value)
    return shown(cascade, name, value)


def is_file(value: str) -> bool:
    """Whether there is a file of that name."""
    try:
        return Path(value).is_file()
    except OSError:  # a long caption is too long for a file's name
        return False


def bar(what: str) -> Callable[[Sequence[int]], Iterator[int]]:
    """A progress bar over the steps of a sampling."""

    def steps(numbers: Sequence[int]) -> Iterator[int]:
        yield from track(numbers, what, transient=True)

    return steps
