"""What a request is going to draw: all that it names is read, and its task makes compositions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from composer.cascade.cascade import Cascade
from composer.commands.inputs import Inputs, Place
from composer.commands.request import Request
from composer.commands.values import read_box
from composer.images.reading import PictureFile
from composer.images.sheet import thumbnail, to_pil
from composer.prior import Prior
from composer.prior.taking import require_caption
from composer.tasks.composition import Composition, Source, require
from composer.tasks.editing import Frame, Original, extend, open_region
from composer.tasks.papers import INVERSION_STEPS, Labelled
from composer.tasks.words import read_strengths
from composer.terminal import note, steps_bar


@dataclass(frozen=True)
class Given:
    """What a request gives a task, read.

    Attributes:
        model: The model.
        request: The request.
        sources: The pictures; of the first one the square around the region, where there is a region.
        rows: The conditions, labelled by those of them that have several values.
        inputs: Reads whatever else is named.
    """

    model: Cascade
    request: Request
    sources: list[Source]
    rows: Labelled
    inputs: Inputs

    @property
    def only(self) -> Composition:
        """The conditions of a task that takes one value each.

        Raises:
            ValueError: A condition has several.
        """
        if len(self.rows) != 1:
            raise ValueError(f"this task takes one value per condition, found {len(self.rows)}")
        return self.rows[0][1]

    @property
    def conditions(self) -> str:
        """The options for conditions, in words."""
        return ", ".join(f"--{name}" for name in self.request.conditions)

    @property
    def inverting(self) -> dict[str, Any]:
        """Steps of an inversion and of the drawing that follows it, and the bar."""
        return {"steps": self.request.sampling.steps or INVERSION_STEPS, "progress": steps_bar("inverting")}

    def under(self, made: Labelled | Composition) -> Labelled:
        """What a task makes, under the conditions that were given besides."""
        return [
            (", ".join(word for word in (label, own) if word), composition | row)
            for label, composition in ([("", made)] if isinstance(made, Composition) else made)
            for own, row in self.rows
        ]

    def each(self, name: str) -> list[Composition]:
        """Each value of one condition.

        Raises:
            ValueError: The model has no such condition.
        """
        require(self.model, name, task=self.request.task.name)
        return [self.inputs.value(name, value) for value in self.request.conditions[name]]

    def image(self, path: str) -> Source:
        """A picture as it is, not taken apart."""
        return Source(self.model.open(self.inputs.file(path)), Composition())

    def prior(self, name: str, caption: Composition) -> Prior:
        """Loads the prior that is to draw the semantics of a caption."""
        require_caption(self.model, caption.parts)
        return self.inputs.prior(name)


@dataclass(frozen=True)
class Plan:
    """What is going to be drawn.

    Attributes:
        request: What is asked for.
        made: Labelled compositions.
        place: Where the first picture may change; None is everywhere.
        before: What stands before the results on a sheet, such as the picture to edit, and its name.
        after: What stands after them.
    """

    request: Request
    made: Labelled
    place: Place | None
    before: list[tuple[str, Tensor]]
    after: list[tuple[str, Tensor]]

    @property
    def seeds(self) -> tuple[int, ...]:
        """What each composition is drawn from."""
        return self.request.drawing.seeds

    @property
    def labels(self) -> list[str]:
        """One per composition."""
        return [label for label, _ in self.made]

    @property
    def frame(self) -> Frame | None:
        """The square around the place; None is the whole picture, or nothing where the place is empty."""
        return None if self.place is None else self.place.frame

    @property
    def stem(self) -> str:
        """What its files' names begin with: task and picture."""
        return "_".join([self.request.task.name, *(Path(path).stem for path in self.request.images[:1])])

    @property
    def titles(self) -> list[str]:
        """Names each composition."""
        count = len(self.made)
        return [self.stem] if count == 1 else [f"{self.stem}_{i:03d}" for i in range(count)]

    @property
    def names(self) -> list[str]:
        """The pictures' files: composition by composition, one per seed."""
        return [f"{title}_seed{seed}{self.request.suffix}.png" for title in self.titles for seed in self.seeds]

    @property
    def films(self) -> list[str]:
        """The films' files, one per seed; none where there is no film."""
        seeds = self.seeds if self.request.task.between else ()
        return [f"{self.stem}_seed{seed}{self.request.suffix}.gif" for seed in seeds]

    def frames_of(self, pictures: Sequence[Image.Image | Tensor]) -> list[Image.Image]:
        """The pictures as a film keeps them; none where there is no film."""
        drawn = pictures if self.request.task.between else []
        return [(to_pil(x) if isinstance(x, Tensor) else x).convert("RGB") for x in drawn]


def find_places(requests: Sequence[Request], file: Callable[[str], PictureFile]) -> list[Place | None]:
    """Where the first picture may change, for each request; None is everywhere. Each place is made once."""
    original = cache(lambda path: Original.open(file(path)))

    @cache
    def place(path: str, where: str, grows: bool) -> Place:
        if grows:
            return Place(file(path), *extend(original(path), read_box(where)), read_box(where))
        h, w = original(path).image.shape[1:]
        return Place(file(path), original(path), open_region(file(where), (h, w)))

    found: list[Place | None] = []
    for request in requests:
        grows, pictures = request.task.grows, request.pictures
        where = pictures.by if grows else pictures.region if request.images else None
        found.append(None if where is None else place(request.images[0], where, grows))
    return found


def make_plan(request: Request, place: Place | None, inputs: Inputs) -> Plan:
    """Reads what a request names, and makes its compositions."""
    model, images = inputs.model, request.images
    read = [] if place is None or place.sides is not None else [place.thumbnail]  # the first picture is open already
    read += [inputs.thumbnail(path) for path in images[len(read) :]]
    before = [(Path(path).name, image) for path, image in zip(images, read, strict=True)]
    after = [before.pop()] if request.task.between else []
    frame, caption = None if place is None else place.frame, request.pictures.image_caption
    if place is not None and frame is None:
        note("note: the region is empty; the picture stays as it is")
        return Plan(request, [("", Composition())], place, before, after)
    sources = [inputs.source(path, caption if i == 0 else "") for i, path in enumerate(images) if i or place is None]
    if place is not None and frame is not None:
        sources.insert(0, inputs.square(place, caption))
        before.insert(1, ("region", thumbnail(frame.region[0] * 2 - 1).expand(3, -1, -1)))
    rows = inputs.rows(request.conditions)
    given = Given(model, request, sources, list(zip(_labels(request, len(rows)), rows, strict=True)), inputs)
    made = _strengthen(
        request.task.make(given, **request.arguments), read_strengths(model, request.drawing.strengths, inputs.file)
    )
    if frame is not None:
        made = [(label, frame.restrict(model, composition)) for label, composition in made]
    return Plan(request, made, place, before, after)


def _labels(request: Request, rows: int) -> list[str]:
    """Names each row by the conditions that have several values."""
    several = [values for values in request.conditions.values() if len(values) > 1]
    return [", ".join(Path(values[i]).name for values in several) for i in range(rows)]


def _strengthen(made: Labelled, strengths: dict[str, Any]) -> Labelled:
    """The same, with strengths.

    Raises:
        ValueError: There is a strength for something that is not asked.
    """
    for _, composition in made:
        if unknown := sorted(strengths.keys() - composition.parts.keys()):
            asked = ", ".join(composition.parts) or "nothing"
            raise ValueError(f"--strengths names {', '.join(unknown)}, but what is asked is {asked}")
    return [(label, replace(one, strengths={**one.strengths, **strengths})) for label, one in made]
