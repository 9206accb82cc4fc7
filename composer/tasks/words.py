"""What people write for a condition: an image's file or words, and how much, when and where it counts."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from composer.cascade.cascade import Cascade
from composer.diffusion.strength import Strength
from composer.images.reading import SUFFIXES, PictureFile
from composer.tasks.composition import Composition, from_file, from_words
from composer.tasks.editing import open_region
from composer.tasks.recipe import from_recipe
from composer.terminal import note

PLACE = rf"\d*\.?\d+(?:,\d*\.?\d+){{3}}|[^:]+\.(?i:{'|'.join(suffix[1:] for suffix in sorted(SUFFIXES))})"
COLOUR = "#[0-9a-fA-F]{6}"  # what follows its colon is the colour's own share
CLOCK = r"(?<!\s\d)(?<!\s\d\d)"  # "a clock at 10:30" is about the time, "16:9" about a shape
STRENGTH = re.compile(
    rf"(.+?)(?:(?<!{COLOUR}){CLOCK}:(\d*\.?\d+))?(?:@(\d*\.?\d+)-(\d*\.?\d+))?(?::({PLACE}))?", re.DOTALL
)
"""A value and its strength: ``b.jpg:0.7@0.2-0.8:mask.png``."""

ALONE = re.compile(rf"(\d*\.?\d+)?(?:@(\d*\.?\d+)-(\d*\.?\d+))?(?:(?:^|:)({PLACE}))?")
"""A strength alone: ``0.7@0.2-0.8:mask.png``."""

RECIPE = "recipe:"
"""Stands before a PNG whose recipe holds the representation."""

ALSO, NEVER = 3.0, 1.0
"""Weights of captions to follow besides and to avoid, where none is written."""


def read_value(
    model: Cascade, name: str, text: str, file_of: Callable[[str], PictureFile] = PictureFile
) -> Composition:
    """Reads one value of a condition: an image's file or words, and its strength (``b.jpg:0.7@0.2-0.8:mask.png``).

    ``recipe:out.png`` is the representation that the recipe in that PNG holds.

    Args:
        model: The model.
        name: The condition.
        text: The value.
        file_of: Gives a picture's file by its path.

    Raises:
        FileNotFoundError: An image or a mask is not there.
        ValueError: The condition is not given by such a thing, or a number is out of its range.
    """
    found = STRENGTH.fullmatch(text)
    if is_file(text) or is_recipe(text) or found is None or not any(found.groups()[1:]):
        return _read(model, name, text, file_of)
    value, *how = found.groups()
    return replace(_read(model, name, value, file_of), strengths={name: _strength(model, how, file_of)})


def read_strengths(
    model: Cascade, texts: Sequence[str], file_of: Callable[[str], PictureFile] = PictureFile
) -> dict[str, Strength]:
    """Reads ``palette=0.7@0.2-0.8:mask.png``, of which each of the three may be left out.

    Args:
        model: The model.
        texts: What is written.
        file_of: Gives a picture's file by its path.

    Raises:
        ValueError: Something else is written.
    """
    made = {}
    for text in texts:
        name, equals, how = text.partition("=")
        found = ALONE.fullmatch(how)
        if not (name and equals and how) or found is None:
            raise ValueError(f"expected a strength such as palette=0.7@0.2-0.8:mask.png, found {text!r}")
        made[name] = _strength(model, found.groups(), file_of)
    return made


def read_prompts(also: Sequence[str], never: Sequence[str]) -> list[tuple[str, float]]:
    """Further captions with their weights: those to follow, then those to avoid with negative weights."""
    avoided = [read_weighted(text, NEVER) for text in never]
    return [read_weighted(text, ALSO) for text in also] + [(words, -weight) for words, weight in avoided]


def read_weighted(text: str, weight: float) -> tuple[str, float]:
    """``a red cube:2`` -> ("a red cube", 2.0); words alone have the weight that is given."""
    found = STRENGTH.fullmatch(text)
    if found is None or found[2] is None or found[3] or found[5]:
        return text, weight
    return found[1], float(found[2])


def _strength(model: Cascade, how: Sequence[str | None], file_of: Callable[[str], PictureFile]) -> Strength:
    """A strength of its weight, its interval's ends and its place, as they are written."""
    weight, low, high, place = how
    return Strength(
        weight=1.0 if weight is None else float(weight),
        interval=(0.0, 1.0) if low is None or high is None else (float(low), float(high)),
        region=None if place is None else open_region(file_of(place), None).to(model.device),
    )


def _read(model: Cascade, name: str, value: str, file_of: Callable[[str], PictureFile]) -> Composition:
    if is_file(value):
        return from_file(model, name, file_of(value))
    if is_recipe(value):
        return from_recipe(model, name, file_of(value.removeprefix(RECIPE)))
    if Path(value).suffix.lower() in SUFFIXES:
        raise FileNotFoundError(f"--{name}: there is no file {value}")
    made = from_words(model, name, value)
    decomposer = dict(model.decomposition.named())[name]
    if lost := decomposer.unread(value):
        note(f"note: --{name}: the model does not know or has no room for {' '.join(lost)}")
    for doubt in decomposer.doubts(value):
        note(f"note: --{name}: {doubt}")
    return made


def is_recipe(value: str) -> bool:
    """Whether a value names a PNG whose recipe holds the representation: ``recipe:out.png``."""
    return value.startswith(RECIPE) and is_file(value.removeprefix(RECIPE))


def is_file(value: str) -> bool:
    """Whether there is a file of that name."""
    try:
        return Path(value).is_file()
    except OSError:  # a long caption is too long for a file's name
        return False
