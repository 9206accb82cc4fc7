"""Reads the values of options, within limits; light."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from composer.commands.signature import Value
from composer.names import SamplerName
from composer.storage.files import printable
from composer.storage.finding import find_config

MAX_STEPS, MAX_SIDE, MAX_PIXELS = 10_000, 16_384, 64_000_000
"""Limits of sampling and of what it draws: beyond them a typing mistake would run for days."""

MAX_PICTURES, MAX_IMAGES = 10_000, 100_000_000
"""Pictures that one command draws, and images that it reads or renders."""

MAX_SEED = (1 << 63) - 1


def quote(text: str) -> str:
    """What was written, in quotes, cut short where it is long."""
    return repr(printable(text if len(text) <= 60 else f"{text[:60]}..."))


def whole(low: int, high: int) -> Callable[[str], int]:
    """Makes a reader of whole numbers from `low` to `high`."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"expected a whole number from {low:,} to {high:,}, found {quote(text)}")
        return value

    return read


def number(low: float, high: float) -> Callable[[str], float]:
    """Makes a reader of numbers from `low` to `high`."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"expected a number from {low:g} to {high:g}, found {quote(text)}")
        return value

    return read


def several(read_one: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """Makes a reader of values with commas between them, such as ``0,1,2``."""

    def read(text: str) -> tuple[Any, ...]:
        values = tuple(read_one(part) for part in text.split(","))
        if len(values) > MAX_PICTURES:
            raise argparse.ArgumentTypeError(f"expected at most {MAX_PICTURES:,} values, found {len(values):,}")
        return values

    return read


def read_interval(text: str) -> tuple[float, float]:
    """``0.2-0.8`` -> (0.2, 0.8)."""
    found = re.fullmatch(r"(\d*\.?\d+)-(\d*\.?\d+)", text)
    if found is None or not 0 <= float(found[1]) < float(found[2]) <= 1:
        raise argparse.ArgumentTypeError(f"expected LOW-HIGH within 0-1, such as 0.2-0.8, found {quote(text)}")
    return float(found[1]), float(found[2])


def read_size(text: str) -> tuple[int, int]:
    """``384x256``, width first as people say it -> (256, 384)."""
    found = re.fullmatch(r"(\d{1,9})x(\d{1,9})", text, re.ASCII)
    width, height = (int(side) for side in found.groups()) if found else (0, 0)
    if not (min(width, height) > 0 and max(width, height) <= MAX_SIDE and width * height <= MAX_PIXELS):
        raise argparse.ArgumentTypeError(
            f"expected WIDTHxHEIGHT in pixels, such as 384x256, at most {MAX_SIDE:,} a side and "
            f"{MAX_PIXELS // 1_000_000} megapixels, found {quote(text)}"
        )
    return height, width


def read_part(text: str) -> tuple[int, int]:
    """``3/8`` -> (3, 8)."""
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"expected PART/PARTS, such as 1/8 to 8/8, found {quote(text)}")
    return int(found[1]), int(found[2])


def read_box(text: str) -> tuple[float, float, float, float]:
    """Reads ``left,top,right,bottom``.

    Raises:
        ValueError: Something else is written.
    """
    try:
        left, top, right, bottom = several(number(0, MAX_SIDE))(text)
    except (argparse.ArgumentTypeError, ValueError) as error:
        raise ValueError(
            f"expected four numbers left,top,right,bottom from 0 to {MAX_SIDE:,}, found {quote(text)}"
        ) from error
    return left, top, right, bottom


def read_weights(text: str) -> dict[str, float]:
    """``palette=2,sketch=0.5`` -> {"palette": 2.0, "sketch": 0.5}."""
    pairs = [pair.partition("=") for pair in text.split(",")]
    if not all(name and equals for name, equals, _ in pairs):
        raise argparse.ArgumentTypeError(f"expected NAME=WEIGHT,..., such as palette=2, found {quote(text)}")
    weigh = number(0, 1000)
    return {name: weigh(weight) for name, _, weight in pairs}


def _sampler(text: str) -> str:
    if text not in get_args(SamplerName):
        known = ", ".join(get_args(SamplerName))
        raise argparse.ArgumentTypeError(f"expected one of {known}, found {quote(text)}")
    return text


def read_stage(text: str) -> tuple[str, dict[str, Any]]:
    """``up256:steps=20,sampler=heun`` -> ("up256", {"steps": 20, "sampler": "heun"})."""
    name, colon, rest = text.partition(":")
    pairs = [pair.partition("=") for pair in rest.split(",")]
    if not (name and colon and all(key and equals and value for key, equals, value in pairs)):
        raise argparse.ArgumentTypeError(f"expected NAME:FIELD=VALUE,..., such as up256:steps=20, found {text!r}")
    return name, {key: FIELDS.get(key, str)(value) for key, _, value in pairs}


FIELDS: dict[str, Callable[[str], Any]] = {
    "steps": whole(1, MAX_STEPS),
    "guidance": number(-1000, 1000),
    "guidance_interval": read_interval,
    "sampler": _sampler,
    "eta": number(0, 1),
    "percentile": number(0, 1),
    "augmentation": number(0, 1),
    "tile": whole(1, 65_536),
    "temperature": number(1e-3, 1000),
    "top_k": whole(1, 1_000_000),
}
"""How a stage samples, see `composer.Sampling` and `composer.cascade.TokenSampling`."""

Steps = Annotated[int, Value(FIELDS["steps"], "N")]
Guidance = Annotated[float, Value(FIELDS["guidance"], "W")]
Percentile = Annotated[float, Value(FIELDS["percentile"], "P")]
Share = Annotated[float, Value(number(0, 1), "SHARE")]
Count = Annotated[int, Value(whole(1, MAX_IMAGES), "N", about="number of images")]
Pair = Annotated[int, Value(whole(2, MAX_IMAGES), "N")]
"""Of images that are compared with one another: at least two."""
Side = Annotated[int, Value(whole(8, 4096), "N", about="side of the images in pixels")]
Rows = Annotated[int, Value(whole(1, 4096), "N", about="images per batch")]
Seed = Annotated[int, Value(whole(0, 1_000_000_000), "N", about="the seeds of all pictures are computed from this")]
Seeds = Annotated[tuple[int, ...], Value(several(whole(-MAX_SEED, MAX_SEED)), "N,...")]
Words = Annotated[str, Value(metavar="WORDS")]
Conditions = Annotated[tuple[str, ...], Value(metavar="NAME", nargs="*", about="conditions of the picture that stay")]
"""None is a choice too."""
Names = Annotated[tuple[str, ...], Value(metavar="NAME", nargs="+")]
Config = Annotated[
    Path,
    Value(
        find_config,
        "CONFIG",
        ("-c", "--config"),
        about="the training's configuration: a file, or the name of an included one, such as tiny; further options "
        "change its values, as in fit",
    ),
]
Data = Annotated[str, Value(metavar="DATA", about="scenes:val, scenes:novel, or a folder of images")]
Out = Annotated[Path, Value(Path, about="folder to write to")]
Json = Annotated[Path, Value(Path, about="file to write the results to")]
Model = Annotated[str, Value(metavar="MODEL", about="a model's folder, or owner/name@revision on the Hugging Face hub")]
Title = Annotated[str, Value(about="the model's name (default: the folder's)")]
Network = Annotated[
    bool,
    Value(about="allow downloading models, and weights that they name (hub:...), from the Hugging Face hub"),
]
Device = Annotated[
    Literal["cuda", "mps", "cpu"],
    Value(about="what to run on (default: the first of these that is available)"),
]
Precision = Annotated[Literal["fp32", "bf16"], Value(about="number format inside the network (default fp32)")]
