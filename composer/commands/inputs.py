"""What a command reads: pictures, conditions, strengths, priors; each once, however many cells a sheet has."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, reduce
from operator import or_
from pathlib import Path

from torch import Tensor

from composer.cascade.cascade import Cascade
from composer.diffusion.strength import Strength
from composer.images.reading import SUFFIXES, PictureFile, load_rgb
from composer.images.sheet import thumbnail
from composer.prior.taking import load_prior, principal_components
from composer.tasks.composition import Composition, Source, from_file, from_words
from composer.tasks.editing import Frame, Original, open_region
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


@dataclass(frozen=True, eq=False)
class Place:
    """Where a picture may change.

    Attributes:
        file: The picture's.
        original: The picture, its canvas grown already.
        region: 1 where it may change.
        sides: By how much the canvas grew; None if it did not.
    """

    file: PictureFile
    original: Original
    region: Tensor
    sides: tuple[float, float, float, float] | None = None

    @cached_property
    def frame(self) -> Frame | None:
        """The square around it; None where the picture may change nowhere."""
        return Frame.around(self.original, self.region) if self.region.any() else None

    @cached_property
    def thumbnail(self) -> Tensor:
        """The picture as a sheet shows it."""
        return thumbnail(self.original.image)


class Inputs:
    """Reads files, pictures taken apart, values of conditions, and priors; each is cached.

    Args:
        model: What takes pictures apart.
        file: Gives a picture's file by its path.
        network: Whether what is loaded may fetch weights.
    """

    def __init__(self, model: Cascade, file: Callable[[str], PictureFile], plugins: Sequence[str], network: bool):
        def open_square(place: Place, caption: str) -> Source:
            assert place.frame is not None
            return place.frame.source(model, caption, place.file.source)

        self.model, self.file = model, file
        self.source = cache(lambda path, caption: Source.open(model, file(path), caption))
        self.square = cache(open_square)
        self.thumbnail = cache(lambda path: thumbnail(load_rgb(file(path)).image))
        self.value = cache(lambda name, text: read_value(model, name, text, file))
        self.prior = cache(lambda name: load_prior(model, name, plugins, network))
        self.components = cache(lambda source: principal_components(source, plugins))

    def rows(self, conditions: Mapping[str, Sequence[str]]) -> list[Composition]:
        """Reads the conditions that were given, a composition per row.

        Raises:
            ValueError: Their numbers do not match, or one cannot be read.
        """
        values = {name: given for name, given in conditions.items() if given}
        rows = max(map(len, values.values()), default=1)
        if wrong := {name: len(given) for name, given in values.items() if len(given) not in (1, rows)}:
            raise ValueError(f"expected one value or {rows} for each condition, found {wrong}")
        read = {name: [self.value(name, value) for value in given] for name, given in values.items()}
        picked = [[given[min(row, len(given) - 1)] for given in read.values()] for row in range(rows)]
        return [reduce(or_, one, Composition()) for one in picked]

    def strengths(self, texts: Sequence[str]) -> dict[str, Strength]:
        """Reads ``palette=0.7@0.2-0.8:mask.png``, of which each of the three may be left out.

        Raises:
            ValueError: Something else is written.
        """
        made = {}
        for text in texts:
            name, equals, how = text.partition("=")
            found = ALONE.fullmatch(how)
            if not (name and equals and how) or found is None:
                raise ValueError(f"expected a strength such as palette=0.7@0.2-0.8:mask.png, found {text!r}")
            made[name] = _strength(self.model, found.groups(), self.file)
        return made


def read_value(
    model: Cascade, name: str, text: str, file_of: Callable[[str], PictureFile] = PictureFile
) -> Composition:
    """Reads one value of a condition: an image's file or words, and its strength (``b.jpg:0.7@0.2-0.8:mask.png``).

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
    if is_file(text) or found is None or not any(found.groups()[1:]):
        return _read(model, name, text, file_of)
    value, *how = found.groups()
    return replace(_read(model, name, value, file_of), strengths={name: _strength(model, how, file_of)})


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
    if Path(value).suffix.lower() in SUFFIXES:
        raise FileNotFoundError(f"--{name}: there is no file {value}")
    made = from_words(model, name, value)
    if lost := dict(model.decomposition.named())[name].unread(value):
        note(f"note: --{name}: the model does not know or has no room for {' '.join(lost)}")
    return made


def is_file(value: str) -> bool:
    """Whether there is a file of that name."""
    try:
        return Path(value).is_file()
    except OSError:  # a long caption is too long for a file's name
        return False
