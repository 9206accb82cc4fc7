"""How commands read what was asked of them: the model, and conditions from files and words."""

import argparse
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import reduce
from operator import or_
from pathlib import Path

import torch

from composer.cascade.cascade import Cascade
from composer.devices import pick_device
from composer.diffusion.strength import Strength
from composer.images.reading import SUFFIXES, PictureFile
from composer.tasks.composition import Composition, from_file, from_words
from composer.tasks.editing import open_region
from composer.terminal import note, track


def load(options: argparse.Namespace, plugins: Sequence[str]) -> Cascade:
    """Loads the model that the options name, on the device that they name.

    Raises:
        ValueError: This machine has no such device.
    """
    device = pick_device(options.device)
    cascade = Cascade.load(options.model, plugins, options.allow_network)
    weaker = getattr(options, "autoguidance", None)  # an option of commands that draw
    if weaker is not None:
        cascade.lead_away_from(Cascade.load(weaker, plugins, options.allow_network))
    precision = torch.bfloat16 if options.precision == "bf16" else None
    return cascade.to(device, precision)


def askable(cascade: Cascade) -> list[str]:
    """The conditions that a person asks for; the mask comes from an edit's region."""
    return [name for name in cascade.names if name != "mask"]


def asked(
    options: argparse.Namespace, cascade: Cascade, value_of: Callable[[str, str], Composition]
) -> list[Composition]:
    """Reads the conditions that were given, a composition a row.

    Args:
        options: As the command line gives them.
        cascade: The model.
        value_of: Reads one value of a condition, see `read_value`.

    Raises:
        ValueError: Their numbers do not match, or one cannot be read.
    """
    values: dict[str, list[str]] = {n: getattr(options, n) for n in askable(cascade) if getattr(options, n)}
    rows = max(map(len, values.values()), default=1)
    if wrong := {name: len(given) for name, given in values.items() if len(given) not in (1, rows)}:
        raise ValueError(f"expected one value or {rows} for each condition, found {wrong}")
    read = {name: [value_of(name, value) for value in given] for name, given in values.items()}
    return [
        reduce(or_, (given[min(row, len(given) - 1)] for given in read.values()), Composition()) for row in range(rows)
    ]


PLACE = rf"\d*\.?\d+(?:,\d*\.?\d+){{3}}|[^:]+\.(?i:{'|'.join(suffix[1:] for suffix in sorted(SUFFIXES))})"
COLOUR = "#[0-9a-fA-F]{6}"  # what follows its colon is the colour's own share
CLOCK = r"(?<!\s\d)(?<!\s\d\d)"  # "a clock at 10:30" is about the time, "16:9" about a shape
STRENGTH = re.compile(
    rf"(.+?)(?:(?<!{COLOUR}){CLOCK}:(\d*\.?\d+))?(?:@(\d*\.?\d+)-(\d*\.?\d+))?(?::({PLACE}))?", re.DOTALL
)


def read_value(
    cascade: Cascade, name: str, text: str, file_of: Callable[[str], PictureFile] = PictureFile
) -> Composition:
    """Reads one value of a condition: an image's file or words, and how it counts (``b.jpg:0.7@0.2-0.8:mask.png``).

    Args:
        cascade: The model.
        name: The condition.
        text: The value.
        file_of: Gives a picture's file by its path.

    Raises:
        FileNotFoundError: An image or a mask is not there.
        ValueError: The condition is not given by such a thing, or a number is out of its range.
    """
    found = STRENGTH.fullmatch(text)
    if is_file(text) or found is None or not any(found.groups()[1:]):
        return _given(cascade, name, text, file_of)
    value, weight, low, high, place = found.groups()
    strength = Strength(
        weight=1.0 if weight is None else float(weight),
        interval=(0.0, 1.0) if low is None else (float(low), float(high)),
        region=None if place is None else open_region(file_of(place), None).to(cascade.device),
    )
    return replace(_given(cascade, name, value, file_of), strengths={name: strength})


def _given(cascade: Cascade, name: str, value: str, file_of: Callable[[str], PictureFile]) -> Composition:
    if not is_file(value):
        if Path(value).suffix.lower() in SUFFIXES:
            raise FileNotFoundError(f"--{name}: there is no file {value}")
        made = from_words(cascade, name, value)
        if lost := dict(cascade.decomposition.named())[name].unread(value):
            note(f"note: --{name}: the model does not know or has no room for {' '.join(lost)}")
        return made
    return from_file(cascade, name, file_of(value))


def is_file(value: str) -> bool:
    """Whether there is a file of that name."""
    try:
        return Path(value).is_file()
    except OSError:  # a long caption is too long for a file's name
        return False


def bar(what: str) -> Callable[[Sequence[int]], Iterator[int]]:
    """A progress bar over the steps of a sampling."""

    def steps(numbers: Sequence[int]) -> Iterator[int]:
        yield from track(numbers, what)

    return steps
