"""What a command reads: pictures, conditions, priors; each once, however many cells a sheet has."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, reduce
from operator import or_

from torch import Tensor

from composer.cascade.cascade import Cascade
from composer.images.reading import PictureFile, load_rgb
from composer.images.sheet import thumbnail
from composer.prior.taking import load_prior, principal_components
from composer.tasks.composition import Composition, Source
from composer.tasks.editing import Frame, Original
from composer.tasks.words import read_value


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
        plugins: Modules that the user trusts.
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
