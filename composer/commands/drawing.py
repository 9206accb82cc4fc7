"""Carries out a request: reads what it names, draws, saves, and prints how well the pictures match what was asked."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from composer.cascade.cascade import Cascade
from composer.commands.inputs import Inputs, Place
from composer.commands.redrawing import redraw_png
from composer.commands.request import Request, Setting
from composer.commands.sheets import Drawn, arrange
from composer.commands.values import MAX_PICTURES, read_box
from composer.evaluation.adherence import quantise
from composer.evaluation.best_of import best_of
from composer.evaluation.reading import Reading, strangers_note
from composer.images.reading import PictureFile
from composer.images.sheet import read_recipe, save_gif, save_png, sheet, thumbnail, to_pil
from composer.prior import Prior
from composer.prior.taking import require_caption
from composer.storage.files import list_written, reserved
from composer.storage.finding import find_model
from composer.storage.folder import digest_of
from composer.tasks.composition import Composition, Source, require
from composer.tasks.editing import Frame, Original, extend, open_region
from composer.tasks.papers import INVERSION_STEPS, Labelled
from composer.tasks.recipe import check_model, recipe, with_edit
from composer.terminal import note, say, steps_bar


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

    def under(self, made: Labelled) -> Labelled:
        """What a task makes, under the conditions that were given besides."""
        return [
            (", ".join(word for word in (label, own) if word), composition | row)
            for label, composition in made
            for own, row in self.rows
        ]

    def each(self, name: str) -> list[Composition]:
        """Each value of one condition."""
        return [self.inputs.value(name, value) for value in self.request.conditions[name]]

    def image(self, path: str) -> Source:
        """A picture as it is, not taken apart."""
        return Source(self.model.open(self.inputs.file(path)), Composition())

    def prior(self, name: str, caption: Composition) -> Prior:
        """Loads the prior that is to draw the semantics of a caption."""
        require_caption(self.model, caption.parts)
        return self.inputs.prior(name)

    def components(self, source: str) -> tuple[Tensor, Tensor]:
        """Reads the mean and the principal components of embeddings."""
        return self.inputs.components(source)

    def require(self, *names: str, task: str) -> None:
        """Refuses a task that the model lacks conditions for."""
        require(self.model, *names, task=task)


def draw(request: Request, plugins: Sequence[str]) -> None:
    """Draws, saves, and prints the results.

    Args:
        request: What is asked for.
        plugins: Modules that the user trusts.
    """
    file = cache(PictureFile)

    def load() -> Cascade:
        return request.model.load(request.model.model, plugins, request.sampling.autoguidance)

    if request.files.from_png is not None:
        png = file(str(request.files.from_png))
        check_model(
            read_recipe(png), digest_of(find_model(request.model.model, request.model.allow_network))
        )  # before anything is loaded
        redraw_png(load(), request, png)
        return
    settings = request.settings()
    places = _places(settings, file)  # before the work: some are refused
    model = load()
    inputs = Inputs(model, file, plugins, request.model.allow_network)
    plans = [_plan(one, place, inputs) for one, place in zip(settings, places, strict=True)]
    pictures = [name for plan in plans for name in plan.names]
    if len(pictures) > MAX_PICTURES:
        raise ValueError(f"expected at most {MAX_PICTURES:,} pictures of one command, found {len(pictures):,}")
    films = [name for plan in plans for name in plan.films]
    sheets = [f"{plans[0].stem}_sheet.png"] if len(pictures) > 1 else []
    with reserved(request.files.out, [*pictures, *films, *sheets]) as paths:
        left = iter(paths)
        done = [_draw(model, plan, left) for plan in plans]
        for frames in [frames for one in done for frames in zip(*one.frames, strict=True)] if films else []:
            save_gif(next(left), frames)
        if sheets:
            laid = arrange(settings, done)
            save_png(next(left), sheet(laid.images, laid.rows, laid.columns))
    say(list_written(paths))


def _places(settings: Sequence[Setting], file: Callable[[str], PictureFile]) -> list[Place | None]:
    """Where the first picture may change, in each setting; None is everywhere. Each place is made once."""
    original = cache(lambda path: Original.open(file(path)))

    @cache
    def place(path: str, where: str, grows: bool) -> Place:
        if grows:
            return Place(file(path), *extend(original(path), read_box(where)), read_box(where))
        h, w = original(path).image.shape[1:]
        return Place(file(path), original(path), open_region(file(where), (h, w)))

    found: list[Place | None] = []
    for request in (one.request for one in settings):
        grows = request.task.grows
        where = request.pictures.by if grows else request.pictures.region if request.images else None
        found.append(None if where is None else place(request.images[0], where, grows))
    return found


@dataclass(frozen=True)
class Plan:
    """What is going to be drawn in one setting.

    Attributes:
        request: What is asked for.
        suffix: Tells its files from those of other settings.
        made: Labelled compositions.
        place: Where the first picture may change; None is everywhere.
        before: What stands before the results on a sheet.
        after: What stands after them.
    """

    request: Request
    suffix: str
    made: Labelled
    place: Place | None
    before: list[tuple[str, Tensor]]
    after: list[tuple[str, Tensor]]

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
        seeds = self.request.drawing.seeds
        return [f"{title}_seed{seed}{self.suffix}.png" for title in self.titles for seed in seeds]

    @property
    def films(self) -> list[str]:
        """The films' files, one per seed; none where there is no film."""
        seeds = self.request.drawing.seeds if self.request.task.between else ()
        return [f"{self.stem}_seed{seed}{self.suffix}.gif" for seed in seeds]

    def frames_of(self, pictures: Sequence[Image.Image | Tensor]) -> list[Image.Image]:
        """The pictures as a film keeps them; none where there is no film."""
        drawn = pictures if self.request.task.between else []
        return [(to_pil(x) if isinstance(x, Tensor) else x).convert("RGB") for x in drawn]


def _plan(setting: Setting, place: Place | None, inputs: Inputs) -> Plan:
    """Reads what a setting names, and makes its compositions."""
    request, model, images = setting.request, inputs.model, setting.request.images
    read = [] if place is None or place.sides is not None else [place.thumbnail]  # the first picture is open already
    read += [inputs.thumbnail(path) for path in images[len(read) :]]
    before = [(Path(path).name, image) for path, image in zip(images, read, strict=True)]
    after = [before.pop()] if request.task.between else []
    if place is not None and place.frame is None:
        note("note: the region is empty; the picture stays as it is")
        return Plan(request, setting.suffix, [("", Composition())], place, before, after)
    caption = request.pictures.image_caption
    sources = [inputs.source(path, caption if i == 0 else "") for i, path in enumerate(images) if i or place is None]
    if place is not None and place.frame is not None:
        sources.insert(0, inputs.square(place, caption))
        before.insert(1, ("region", thumbnail(place.frame.region[0] * 2 - 1).expand(3, -1, -1)))
    rows = inputs.rows(request.conditions)
    given = Given(model, request, sources, list(zip(_labels(request, len(rows)), rows, strict=True)), inputs)
    made = _strengthen(request.task.make(given, **request.arguments), inputs.strengths(request.drawing.strengths))
    if place is not None and place.frame is not None:
        made = [(label, place.frame.restrict(model, composition)) for label, composition in made]
    return Plan(request, setting.suffix, made, place, before, after)


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


def _draw(model: Cascade, plan: Plan, left: Iterator[Path]) -> Drawn:
    """Draws what was planned and saves it at the paths that are left."""
    rows, frames, seeds = [], [], plan.request.drawing.seeds
    for title, (_, composition) in zip(plan.titles, plan.made, strict=True):
        paths = [next(left) for _ in seeds]
        if plan.place is not None and plan.frame is None:
            row, film = _copy(plan, plan.place, paths)
        else:
            row, film = _save(model, plan, composition, title, paths)
        rows.append(row)
        frames.append(film)
    return Drawn(seeds, [label for label, _ in plan.made], rows, frames, plan.before, plan.after)


def _copy(plan: Plan, place: Place, paths: Sequence[Path]) -> tuple[list[Tensor], list[Image.Image]]:
    """An empty region: the file's own pixels. Returns what `_save` does."""
    for path in paths:
        save_png(path, place.original.picture)
    return [place.thumbnail] * len(paths), plan.frames_of([place.original.picture] * len(paths))


def _save(
    model: Cascade, plan: Plan, composition: Composition, title: str, paths: Sequence[Path]
) -> tuple[list[Tensor], list[Image.Image]]:
    """Draws and saves the pictures of one composition; prints how well they match what was asked.

    Returns:
        The pictures as a sheet shows them, and as a film does where there is one.
    """
    request, frame, options = plan.request, plan.frame, plan.request.sampling.options
    drawing, soften = request.drawing, request.pictures.soften
    if len(drawing.seeds) > 1 and model.ignores_seeds(composition, options):
        note("note: all seeds begin with the same noise and differ only in later stages")
    bar = steps_bar(f"drawing {title}")
    drawn = best_of(model, composition, drawing.seeds, drawing.best_of, drawing.weights, options, bar)
    pictures: list[Any] = list(drawn.images) if frame is None else frame.paste(drawn.images, soften)
    for i, (path, picture) in enumerate(zip(paths, pictures, strict=True)):
        made = recipe(model, drawn.compositions[i], drawn.seeds[i], options)
        if frame is not None and plan.place is not None:
            made = with_edit(made, plan.place.file, frame, soften, plan.place.sides)
        save_png(path, picture, None if request.files.no_recipe else made)
    if drawing.best_of > 1:
        kept, last = drawn.scores.amax(1).mean(), drawn.scores.amin(1).mean()
        stem = paths[0].stem if len(paths) == 1 else f"{title}{plan.suffix}"
        say(f"{stem}: the best of {drawing.best_of} closes {kept:.2f}, the last {last:.2f}")
    if frame is None:
        near = drawn.closed or Reading(model, quantise(drawn.images)).closed(composition.wanted)
        shown = list(drawn.images)
    else:  # of the edit as it was pasted, the square that the model saw
        pasted = [replace(frame, original=Original.of(picture)) for picture in pictures]
        squares = torch.cat([one.seen(model.stages[0].size)[0] for one in pasted])
        near = Reading(model, squares).closed(composition.wanted)
        shown = [thumbnail(one.original.image) for one in pasted]
    for i, path in enumerate(paths if near else []):
        say(f"{path.stem}: closed " + ", ".join(f"{float(share[i]):.2f} ({name})" for name, share in near.items()))
    if near and (missing := strangers_note(model)):
        note(missing)
    return shown, plan.frames_of(pictures)
