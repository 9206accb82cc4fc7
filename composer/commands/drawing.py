"""Carries out a request: draws, saves, and prints how well the pictures match what was asked."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
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
from composer.evaluation.adherence import quantise
from composer.evaluation.best_of import best_of
from composer.evaluation.reading import Reading, strangers_note
from composer.images.reading import PictureFile
from composer.images.sheet import read_recipe, save_gif, save_png, thumbnail
from composer.storage.files import list_written, reserved
from composer.storage.finding import find_model
from composer.storage.folder import digest_of
from composer.tasks.composition import Composition
from composer.tasks.editing import Original
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
        stem = paths[0].stem if len(paths) == 1 else f"{title}{request.suffix}"
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
