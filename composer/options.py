"""What the commands share: their options, and how conditions are read from the command line."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from rich.progress import track
from torch import Tensor

from .cascade import Cascade
from .decomposition import Decomposition
from .images import SUFFIXES
from .parts import Parts
from .recipe import name_of
from .stage import SamplerName

SHIPPED = "scenes256"
"""The model that comes with the package."""

SAMPLING = ("steps", "guidance", "sampler", "percentile", "tile")


def make_parser(name: str, about: str | None, *examples: str) -> argparse.ArgumentParser:
    """A command's parser, whose help ends in examples."""
    prog = f"python -m composer {name}"
    return argparse.ArgumentParser(
        prog=prog,
        description=about,
        epilog="\n".join(["examples:", *(f"  {prog} {example}" for example in examples)]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say which model, and how it runs."""
    parser.add_argument("--model", default=SHIPPED, help=f"a model's folder (default {SHIPPED}, which is shipped)")
    add_precision(parser)


def add_precision(parser: argparse.ArgumentParser) -> None:
    """Adds the option for the precision inside the network."""
    kinds = ("fp32", "bf16")
    parser.add_argument("--precision", choices=kinds, default="fp32", help="inside the network (default fp32)")


def add_out(parser: argparse.ArgumentParser, default: str = "out") -> None:
    """Adds the option for the folder to write to."""
    parser.add_argument("--out", type=Path, default=Path(default), help=f"folder to write to (default {default})")


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Adds the options that differ from the model's own sampling."""
    parser.add_argument("--steps", type=int, help="sampling steps")
    parser.add_argument("--guidance", type=float, help="weight of classifier-free guidance; 1 is none")
    parser.add_argument("--sampler", choices=get_args(SamplerName))
    parser.add_argument("--percentile", type=float, help="dynamic thresholding, such as 0.995 (default: clip)")
    parser.add_argument("--tile", type=int, help="side of the tiles to draw a large picture by, such as 256")
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
    """Loads the model that the options name, on the GPU where there is one."""
    cascade = Cascade.load(options.model, plugins)
    precision = torch.bfloat16 if options.precision == "bf16" else None
    return cascade.to("cuda" if torch.cuda.is_available() else "cpu", precision)


def parse_with_conditions(
    parser: argparse.ArgumentParser, args: Sequence[str], plugins: Sequence[str]
) -> tuple[argparse.Namespace, Cascade]:
    """Adds an option for each condition of the model that the arguments name, then parses.

    Raises:
        ValueError: An option is not known; the model's conditions are named.
    """
    add_model(parser)
    add_out(parser)
    add_sampling(parser)
    parser.add_argument("--seeds", type=_numbers, default=[0], help="such as 0,1,2; one picture each (default 0)")
    parser.add_argument("--no-recipe", action="store_true", help="leave no trace of how a picture was made in its PNG")
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_model(first)
    cascade = load(first.parse_known_args(args)[0], plugins)
    group = parser.add_argument_group("conditions, each from images or words; several values make several rows")
    for name in _askable(cascade):
        group.add_argument(f"--{name}", nargs="+", action="extend", default=[], metavar="FILE|WORDS")
    options, unknown = parser.parse_known_args(args)
    if unknown:
        known = ", ".join(f"--{name}" for name in _askable(cascade))
        raise ValueError(f"no option {' '.join(unknown)}; the conditions of {options.model} are {known}")
    return options, cascade


def _askable(cascade: Cascade) -> list[str]:
    """The conditions that a person asks for; the mask comes from an edit's region."""
    return [name for name in cascade.names if name != "mask"]


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


@dataclass(frozen=True)
class Asked:
    """The conditions that a command line asks for.

    Attributes:
        rows: How many compositions.
        parts: What to draw them from; representations of one row serve all.
        wanted: The same in the space that adherence is measured in.
        sources: Where each representation came from, row by row: a file's SHA-256, or a person's words.
    """

    rows: int
    parts: Parts
    wanted: Parts
    sources: dict[str, list[str]]

    def source(self, row: int) -> dict[str, str]:
        """Where the representations of one row came from."""
        return {name: given[min(row, len(given) - 1)] for name, given in self.sources.items()}


def asked(options: argparse.Namespace, cascade: Cascade, required: bool = True) -> Asked:
    """Reads the conditions that were given.

    Raises:
        ValueError: Nothing was given where something has to be, or their numbers do not match.
    """
    values: dict[str, list[str]] = {n: getattr(options, n) for n in _askable(cascade) if getattr(options, n)}
    if required and not values:
        raise ValueError(f"nothing asked: give at least one of {', '.join(f'--{n}' for n in _askable(cascade))}")
    rows = max(map(len, values.values()), default=1)
    wrong = {name: len(given) for name, given in values.items() if len(given) not in (1, rows)}
    if wrong:
        raise ValueError(f"expected one value or {rows} for each condition, found {wrong}")
    parts, wanted, sources = Parts(), Parts(), {}
    for name, given in values.items():
        parts[name] = torch.cat([_read(cascade, cascade.decomposition, name, value) for value in given])
        wanted[name] = torch.cat([_read(cascade, cascade.readers, name, value) for value in given])
        sources[name] = [name_of(Path(value).read_bytes()) if _is_file(value) else value for value in given]
    return Asked(rows, parts, wanted, sources)


def _read(cascade: Cascade, by: Decomposition, name: str, value: str) -> Tensor:
    decomposer = dict(by.named())[name]
    if not _is_file(value):
        if Path(value).suffix.lower() in SUFFIXES:
            raise FileNotFoundError(f"--{name}: there is no file {value}")
        return decomposer.from_text(value)
    batch = {"image": cascade.open(value)}
    if not decomposer.can_read(batch):
        raise ValueError(f"--{name} is not read from images: found {value}")
    read: Tensor = decomposer(batch)
    return read


def _is_file(value: str) -> bool:
    try:
        return Path(value).is_file()
    except OSError:  # a long caption is too long for a file's name
        return False


def bar(what: str) -> Callable[[Sequence[int]], Iterator[int]]:
    """A progress bar over the steps of a sampling."""

    def steps(numbers: Sequence[int]) -> Iterator[int]:
        yield from track(numbers, what, transient=True)

    return steps
