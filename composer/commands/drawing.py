"""What every command that draws shares: options, seeds, the best of several, regions, recipes, contact sheets."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from composer.cascade.cascade import Cascade
from composer.commands.drawing_parser import DrawingParser, Request, four
from composer.commands.inputs import Inputs, Place
from composer.commands.options import askable, asked, bar, load
from composer.commands.parsers import MAX_PICTURES, sampling
from composer.commands.priors import require_caption
from composer.commands.sheets import Drawn, arrange
from composer.evaluation.adherence import quantise
from composer.evaluation.best_of import best_of
from composer.evaluation.reading import Reading, strangers_note
from composer.images.reading import File, PictureFile
from composer.images.sheet import as_written, read_recipe, save_gif, save_png, sheet, thumbnail, to_pil
from composer.storage.files import reserved, written
from composer.storage.finding import find_model
from composer.storage.folder import digest_of
from composer.tasks.composition import Composition, Source
from composer.tasks.editing import Frame, Original, extend, open_region
from composer.tasks.papers import INVERTED, Labelled
from composer.tasks.recipe import again, changes_since, check_model, edited, frame_of, recipe, with_edit
from composer.terminal import note, say


@dataclass(frozen=True)
class Given:
    """What a command line gives a task.

    Attributes:
        cascade: The model.
        options: All of them.
        sources: The pictures; of the first one the square around the region, where there is a region.
        asked: The conditions, a composition a row.
        inputs: Reads whatever else the options name.
    """

    cascade: Cascade
    options: argparse.Namespace
    sources: list[Source]
    asked: list[Composition]
    inputs: Inputs

    @property
    def only(self) -> Composition:
        """The conditions of a task that takes one value each.

        Raises:
            ValueError: A condition has several.
        """
        if len(self.asked) != 1:
            raise ValueError(f"this task takes one value a condition, found {len(self.asked)}")
        return self.asked[0]

    @property
    def steps(self) -> int:
        """Of an inversion and of the drawing that follows it."""
        return self.options.steps or INVERTED

    @cached_property
    def rows(self) -> list[tuple[str, Composition]]:
        """The conditions, labelled by those of them that have several values."""
        given = [getattr(self.options, name) for name in askable(self.cascade)]
        labels = [
            ", ".join(Path(values[i]).name for values in given if len(values) > 1) for i in range(len(self.asked))
        ]
        return list(zip(labels, self.asked, strict=True))

    def under(self, made: Labelled) -> Labelled:
        """What a task makes, under the conditions that were given besides."""
        return [
            (", ".join(word for word in (label, own) if word), composition | row)
            for label, composition in made
            for own, row in self.rows
        ]

    def prior(self, named: str, caption: Composition) -> Any:
        """Loads the prior that is to draw the semantics of a caption."""
        require_caption(self.cascade, caption.parts)
        return self.inputs.prior(named)


Make = Callable[[Given], Labelled]
"""What a task is on the command line: labelled compositions."""


class Drawing:
    """What draws for a command.

    Args:
        parser: The command's.
    """

    def __init__(self, parser: DrawingParser):
        self.name, self.pictures, self.grows, self.between = parser.name, parser.pictures, parser.grows, parser.between

    def run(self, request: Request, plugins: Sequence[str], make: Make) -> None:
        """Draws, saves, and says what came of it.

        Args:
            request: What the command line asks for.
            plugins: Modules that the user trusts.
            make: The task.
        """
        o = request.options
        file = cache(PictureFile)
        if o.from_png is not None:
            png = file(o.from_png)
            check_model(read_recipe(png), digest_of(find_model(o.model)))  # before anything is loaded or fetched
            _again(load(o, plugins), o, png)
            return
        places = self._places([options for _, options in request.settings], file)  # before the work: some are refused
        cascade = load(o, plugins)
        inputs = Inputs(cascade, file, plugins, o.allow_network)
        chosen = [setting for setting, _ in request.settings]
        plans = [
            self._plan(options, place, cascade, inputs, make, one.suffix)
            for (one, options), place in zip(request.settings, places, strict=True)
        ]
        pictures = [name for plan in plans for name in plan.names]
        if len(pictures) > MAX_PICTURES:
            raise ValueError(f"expected at most {MAX_PICTURES:,} pictures of one command, found {len(pictures):,}")
        films = [name for plan in plans for name in plan.films] if self.between else []
        sheets = [f"{plans[0].stem}_sheet.png"] if len(pictures) > 1 else []
        with reserved(o.out, [*pictures, *films, *sheets]) as paths:
            left = iter(paths)
            done = [_draw(cascade, plan, left) for plan in plans]
            for frames in [frames for one in done for frames in zip(*one.frames, strict=True)] if films else []:
                save_gif(next(left), frames)
            if sheets:
                laid = arrange(chosen, done)
                save_png(next(left), sheet(laid.images, laid.rows, laid.columns))
        say(written(paths))

    def _plan(
        self,
        o: argparse.Namespace,
        place: "Place | None",
        cascade: Cascade,
        inputs: Inputs,
        make: Make,
        suffix: str,
    ) -> "Plan":
        images = _images(o)
        stem = "_".join([self.name, *(Path(path).stem for path in images[:1])])
        first = [] if place is None or place.sides is not None else [place.thumbnail]  # read already
        read = [*first, *(inputs.thumbnail(path) for path in images[len(first) :])]
        shown = [(Path(path).name, image) for path, image in zip(images, read, strict=True)]
        after = [shown.pop()] if self.between else []
        frame = None if place is None else place.frame
        if place is not None and frame is None:
            note("note: the region is empty; the picture stays as it is")
            return Plan(o, stem, suffix, [("", Composition())], place, None, shown, after, self.between)
        if place is None or frame is None:
            sources = [inputs.source(path, o.image_caption if i == 0 else "") for i, path in enumerate(images)]
        else:
            own = inputs.square(place, o.image_caption)
            sources = [own, *(inputs.source(path, "") for path in images[1:])]
            shown.insert(1, ("region", thumbnail(frame.region[0] * 2 - 1).expand(3, -1, -1)))
        made = make(Given(cascade, o, sources, asked(o, cascade, inputs.value), inputs))
        if frame is not None:
            made = [(label, frame.restrict(cascade, composition)) for label, composition in made]
        return Plan(o, stem, suffix, made, place, frame, shown, after, self.between)

    def _places(self, settings: Sequence[argparse.Namespace], file: Callable[[str], PictureFile]) -> list[Place | None]:
        """Where the first picture may change, in each setting; None is everywhere. Each place is made once."""
        original = cache(lambda path: Original.open(file(path)))

        @cache
        def place(path: str, where: str) -> Place:
            if self.grows:
                sides = four(where)
                return Place(file(path), *extend(original(path), sides), sides)
            h, w = original(path).image.shape[1:]
            return Place(file(path), original(path), open_region(file(where), (h, w)))

        where = [o.by if self.grows else o.region if self.pictures else None for o in settings]
        return [None if w is None else place(o.images[0], w) for o, w in zip(settings, where, strict=True)]


@dataclass(frozen=True)
class Plan:
    """What is going to be drawn in one setting.

    Attributes:
        options: Its.
        stem: What its files' names begin with: task and picture.
        suffix: What tells them from those of other settings.
        made: Labelled compositions.
        place: Where the first picture may change; None is everywhere.
        frame: The square around that; None is the whole picture, or nothing where the place is empty.
        before: What stands before the results on a sheet.
        after: What stands after them.
        moving: Whether they are the frames of a film.
    """

    options: argparse.Namespace
    stem: str
    suffix: str
    made: Labelled
    place: Place | None
    frame: Frame | None
    before: list[tuple[str, Tensor]]
    after: list[tuple[str, Tensor]]
    moving: bool

    @property
    def titles(self) -> list[str]:
        """Names each composition."""
        count = len(self.made)
        return [self.stem] if count == 1 else [f"{self.stem}_{i:03d}" for i in range(count)]

    @property
    def names(self) -> list[str]:
        """The pictures' files: composition by composition, one a seed."""
        return [f"{title}_seed{seed}{self.suffix}.png" for title in self.titles for seed in self.options.seeds]

    @property
    def films(self) -> list[str]:
        """The films' files, one a seed."""
        return [f"{self.stem}_seed{seed}{self.suffix}.gif" for seed in self.options.seeds]

    def frames_of(self, pictures: Sequence[Image.Image | Tensor]) -> list[Image.Image]:
        """The pictures as a film keeps them; none where there is no film."""
        drawn = [to_pil(x) if isinstance(x, Tensor) else x for x in pictures] if self.moving else []
        return [picture.convert("RGB") for picture in drawn]


def _images(o: argparse.Namespace) -> list[str]:
    return list(getattr(o, "images", []))


def _draw(cascade: Cascade, plan: Plan, left: Iterator[Path]) -> Drawn:
    """Draws what was planned and saves it at the paths that are left."""
    rows, frames = [], []
    for title, (_, composition) in zip(plan.titles, plan.made, strict=True):
        paths = [next(left) for _ in plan.options.seeds]
        if plan.place is not None and plan.frame is None:
            row, film = _unchanged(plan, plan.place, paths)
        else:
            row, film = _save(cascade, plan, composition, title, paths)
        rows.append(row)
        frames.append(film)
    labels = [label for label, _ in plan.made]
    return Drawn(plan.options.seeds, labels, rows, frames, plan.before, plan.after)


def _unchanged(plan: Plan, place: Place, paths: Sequence[Path]) -> tuple[list[Tensor], list[Image.Image]]:
    """An empty region: the file's own pixels. Returns what `_save` does."""
    for path in paths:
        save_png(path, place.original.picture)
    return [place.thumbnail] * len(paths), plan.frames_of([place.original.picture] * len(paths))


def _save(
    cascade: Cascade, plan: Plan, composition: Composition, title: str, paths: Sequence[Path]
) -> tuple[list[Tensor], list[Image.Image]]:
    """Draws and saves the pictures of one composition; says how near they come to what was asked.

    Returns:
        The pictures as a sheet shows them, and as a film does where there is one.
    """
    o, frame, how = plan.options, plan.frame, sampling(plan.options)
    if len(o.seeds) > 1 and cascade.ignores_seeds(composition, how):
        note("note: all seeds begin with the same noise; they differ in later stages alone")
    drawn = best_of(cascade, composition, o.seeds, o.best_of, o.weights, how, bar(f"drawing {title}"))
    pictures: list[Any] = list(drawn.images) if frame is None else frame.paste(drawn.images, o.soften)
    for i, (path, picture) in enumerate(zip(paths, pictures, strict=True)):
        made = recipe(cascade, drawn.compositions[i], drawn.seeds[i], how)
        if frame is not None and plan.place is not None:
            made = with_edit(made, plan.place.file, frame, o.soften, plan.place.sides)
        save_png(path, picture, None if o.no_recipe else made)
    if o.best_of > 1:
        kept, last = drawn.scores.amax(1).mean(), drawn.scores.amin(1).mean()
        stem = paths[0].stem if len(paths) == 1 else f"{title}{plan.suffix}"
        say(f"{stem}: the best of {o.best_of} closes {kept:.2f}, the last {last:.2f}")
    if frame is None:
        near = drawn.closed or Reading(cascade, quantise(drawn.images)).closed(composition.wanted)
        shown = list(drawn.images)
    else:  # of the edit as it was pasted, the square that the model saw
        squares, shown = [], []
        for picture in pictures:
            pasted = replace(frame, original=Original.of(picture))
            squares.append(pasted.seen(cascade.stages[0].size)[0])
            shown.append(thumbnail(pasted.original.image))
        near = Reading(cascade, torch.cat(squares)).closed(composition.wanted)
    for i, path in enumerate(paths if near else []):
        say(f"{path.stem}: closed " + ", ".join(f"{float(share[i]):.2f} ({name})" for name, share in near.items()))
    if near and (missing := strangers_note(cascade)):
        note(missing)
    return shown, plan.frames_of(pictures)


def _again(cascade: Cascade, o: argparse.Namespace, png: PictureFile) -> None:
    """Draws a recipe's picture again, and says whether it is the same."""
    found = read_recipe(png)
    if o.precision is not None:
        found["precision"] = o.precision
    before = _pixels(png)
    if "edit" in found:
        if not _images(o):
            raise ValueError(f"{o.from_png} is an edit of {edited(found)}: give the picture that was edited, too")
        frame, soften = frame_of(found, Path(_images(o)[0]), not o.no_limits)
        picture: Any = frame.paste(again(cascade, found, bar("drawing"), frame, not o.no_limits), soften)[0]
    else:
        picture = again(cascade, found, bar("drawing"), limited=not o.no_limits)[0].cpu()
    with reserved(o.out, [o.from_png.name]) as (path,):
        save_png(path, picture, None if o.no_recipe else found)
    same, says = _compare(before, _pixels(path))
    say(written([path]))
    if same:
        say(f"{path.name}: the same, {says}")
        return
    reasons = changes_since(cascade, found)
    if "precision" not in found:
        reasons.append("the recipe does not say with which --precision")
    note(f"warning: {path.name} is not the same: {'; '.join([says, *reasons])}")


def _compare(before: np.ndarray, after: np.ndarray) -> tuple[bool, str]:
    """Whether two pictures are the same up to rounding, and how far they differ, in words."""
    if before.shape != after.shape or before.dtype != after.dtype:
        return False, "it has another size or other pixels than it was drawn with"
    off = np.abs(after.astype(np.int64) - before)
    count, top, most = int((off > 0).sum()), 255 if before.dtype == np.uint8 else 65535, int(off.max())
    if not count:
        return True, "bit for bit"
    if most * 255 <= top:
        return True, f"up to rounding ({count} value{'s' * (count > 1)} by {'up to ' * (most > 1)}{most}/{top})"
    return False, f"{count} of {off.size} values differ, by up to {most}/{top}"


def _pixels(png: File) -> np.ndarray:
    return np.array(as_written(png))
