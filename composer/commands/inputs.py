"""What a command reads, each of it once, however many rows and cells a sheet has."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

from torch import Tensor

from composer.cascade.cascade import Cascade
from composer.commands.options import read_value
from composer.commands.priors import load_prior, principal_components
from composer.images.reading import PictureFile, load_rgb
from composer.images.sheet import thumbnail
from composer.prior import Prior
from composer.tasks.composition import Composition, Source
from composer.tasks.editing import Frame, Original


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
    """Files, pictures taken apart, values of conditions, and priors. The same question has the same answer.

    Args:
        cascade: The model.
        file: Gives a picture's file by its path.
        plugins: Modules that the user trusts.
        network: Whether what is loaded may fetch weights.
    """

    def __init__(self, cascade: Cascade, file: Callable[[str], PictureFile], plugins: Sequence[str], network: bool):
        def open_source(path: str, caption: str) -> Source:
            return Source.open(cascade, file(path), caption)

        def open_square(place: Place, caption: str) -> Source:
            assert place.frame is not None
            return place.frame.source(cascade, caption, place.file.source)

        def shrink(path: str) -> Tensor:
            return thumbnail(load_rgb(file(path)).image)

        def read(name: str, text: str) -> Composition:
            return read_value(cascade, name, text, file)

        def load(name: str) -> Prior:
            return load_prior(cascade, name, plugins, network)

        def load_components(source: str) -> tuple[Tensor, Tensor]:
            return principal_components(source, plugins)

        self.file = file
        self.source, self.square = cache(open_source), cache(open_square)
        self.thumbnail, self.value = cache(shrink), cache(read)
        self.prior, self.components = cache(load), cache(load_components)
