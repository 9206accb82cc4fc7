"""Carries out a request: draws, saves, and prints how well the pictures match what was asked."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from composer.cascade.cascade import Cascade
from composer.commands.inputs import Inputs, Place
from composer.commands.plans import Plan, find_places, make_plan
from composer.commands.redrawing import redraw_png
from composer.commands.request import Request
from composer.commands.sheets import arrange
from composer.commands.values import MAX_PICTURES
from composer.diffusion.samplers import Progress
from composer.evaluation.adherence import quantise
from composer.evaluation.best_of import Best, best_of
from composer.evaluation.reading import Reading, strangers_note
from composer.images.reading import PictureFile
from composer.images.sheet import read_recipe, save_gif, save_png, thumbnail
from composer.storage.files import list_written, reserved
from composer.storage.finding import find_model
from composer.storage.folder import digest_of
from composer.tasks.composition import Composition
from composer.tasks.editing import Frame, Original
from composer.tasks.recipe import check_model, recipe, with_edit
from composer.terminal import note, say, steps_bar

Drawn = tuple[list[Tensor], list[Image.Image]]
"""Pictures as a sheet shows them, and as a film does where there is one."""


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
        # before anything is loaded
        check_model(read_recipe(png), digest_of(find_model(request.model.model, request.model.allow_network)))
        redraw_png(load(), request, png)
        return
    requests = request.settings()
    places = find_places(requests, file)  # before the work: some are refused
    model = load()
    inputs = Inputs(model, file, plugins, request.model.allow_network)
    plans = [make_plan(one, place, inputs) for one, place in zip(requests, places, strict=True)]
    pictures = [name for plan in plans for name in plan.names]
    if len(pictures) > MAX_PICTURES:
        raise ValueError(f"expected at most {MAX_PICTURES:,} pictures of one command, found {len(pictures):,}")
    films = [name for plan in plans for name in plan.films]
    sheets = [f"{plans[0].stem}_sheet.png"] if len(pictures) > 1 else []
    with reserved(request.files.out, [*pictures, *films, *sheets]) as paths:
        left = iter(paths)
        done = [_draw(model, plan, left) for plan in plans]
        for frames in [frames for one in done for frames in zip(*(film for _, film in one), strict=True)]:
            save_gif(next(left), frames)
        if sheets:
            save_png(next(left), arrange(plans, [[row for row, _ in one] for one in done]))
    say(list_written(paths))


def _draw(model: Cascade, plan: Plan, left: Iterator[Path]) -> list[Drawn]:
    """Draws what was planned, composition by composition, and saves it at the paths that are left."""
    drawn = []
    for title, (_, composition) in zip(plan.titles, plan.made, strict=True):
        paths = [next(left) for _ in plan.seeds]
        if plan.place is not None and plan.frame is None:
            drawn.append(_copy(plan, plan.place, paths))
        else:
            drawn.append(_save(model, plan, composition, title, paths))
    return drawn


def _copy(plan: Plan, place: Place, paths: Sequence[Path]) -> Drawn:
    """An empty region: the file's own pixels."""
    for path in paths:
        save_png(path, place.original.picture)
    return [place.thumbnail] * len(paths), plan.frames_of([place.original.picture] * len(paths))


def _save(model: Cascade, plan: Plan, composition: Composition, title: str, paths: Sequence[Path]) -> Drawn:
    """Draws and saves the pictures of one composition; prints how well they match what was asked."""
    request, drawing = plan.request, plan.request.drawing
    if len(drawing.seeds) > 1 and model.ignores_seeds(composition, request.sampling.options):
        note("note: all seeds begin with the same noise and differ only in later stages")
    painting = paint(model, plan, composition, steps_bar(f"drawing {title}"))
    for path, picture, made in zip(paths, painting.pictures, painting.recipes, strict=True):
        save_png(path, picture, None if request.files.no_recipe else made)
    if drawing.best_of > 1:
        scores = painting.best.scores
        kept, last = scores.amax(1).mean(), scores.amin(1).mean()
        stem = paths[0].stem if len(paths) == 1 else f"{title}{request.suffix}"
        say(f"{stem}: the best of {drawing.best_of} closes {kept:.2f}, the last {last:.2f}")
    near = (plan.frame is None and painting.best.closed) or Reading(model, painting.seen).closed(composition.wanted)
    for i, path in enumerate(paths if near else []):
        say(f"{path.stem}: closed " + ", ".join(f"{float(share[i]):.2f} ({name})" for name, share in near.items()))
    if near and (missing := strangers_note(model)):
        note(missing)
    return painting.shown, plan.frames_of(painting.pictures)


@dataclass(frozen=True)
class Painting:
    """The pictures of one composition, one per seed.

    Attributes:
        plan: What they were drawn for.
        best: What the model drew.
        pictures: As they are saved; of an edit the whole picture.
        recipes: How each was drawn.
        size: Of the model's first stage, in pixels.
    """

    plan: Plan
    best: Best
    pictures: Sequence[Any]
    recipes: Sequence[dict[str, Any]]
    size: int

    @cached_property
    def _pasted(self) -> list[Frame]:
        """Of an edit, the square that the model saw in each of the pictures."""
        frame = self.plan.frame
        return [] if frame is None else [replace(frame, original=Original.of(one)) for one in self.pictures]

    @cached_property
    def seen(self) -> Tensor:
        """What is measured, (b 3 h w): the pictures; of edits, as they were pasted, the squares that the model saw."""
        if self.plan.frame is None:
            return quantise(self.best.images)
        return torch.cat([one.seen(self.size)[0] for one in self._pasted])

    @property
    def shown(self) -> list[Tensor]:
        """The pictures as a sheet shows them."""
        if self.plan.frame is None:
            return list(self.best.images)
        return [thumbnail(one.original.image) for one in self._pasted]


def paint(model: Cascade, plan: Plan, composition: Composition, progress: Progress) -> Painting:
    """Draws the pictures of one composition of a plan; saves and prints nothing.

    Args:
        model: The model.
        plan: What is to be drawn.
        composition: One of the plan's.
        progress: Wraps the steps.
    """
    request, frame, options = plan.request, plan.frame, plan.request.sampling.options
    drawing, soften = request.drawing, request.pictures.soften
    best = best_of(model, composition, drawing.seeds, drawing.best_of, drawing.weights, options, progress)
    pictures = list(best.images) if frame is None else frame.paste(best.images, soften)
    recipes = [recipe(model, one, seed, options) for one, seed in zip(best.compositions, best.seeds, strict=True)]
    if frame is not None and plan.place is not None:
        recipes = [with_edit(made, plan.place.file, frame, soften, plan.place.sides) for made in recipes]
    return Painting(plan, best, pictures, recipes, model.stages[0].size)
