"""Requests as Python: what does the same as the command, with the package's own functions."""

import re
from collections.abc import Iterator, Sequence
from inspect import signature

from composer.commands.request import Request
from composer.tasks.words import read_prompts

MODULES = {
    "dataclasses": ("replace",),
    "composer": ("Cascade", "Composition", "Original", "SampleOptions", "Source", "best_of", "open_region"),
    "composer.tasks": ("combine",),
    "composer.tasks.editing": ("Frame", "extend"),
    "composer.tasks.words": ("read_strengths", "read_value"),
}
"""Where the names come from."""


def write_python(request: Request, device: str = "cpu") -> str:
    """Writes a request to compose, edit, outpaint or vary as Python.

    Args:
        request: It has one row, and is no sheet.
        device: Where the model runs.
    """
    network = ", network=True" if request.model.allow_network else ""
    lines = [f"model = Cascade.load({request.model.model!r}{network})"]
    lines += [] if device == "cpu" else [f"model.to({device!r})"]
    lines += [*_asked(request), *_picture(request), *_drawn(request)]
    return "\n".join([*_imports(lines), "", *lines, ""])


def _imports(lines: Sequence[str]) -> Iterator[str]:
    """What the lines need."""
    used = set(re.findall(r"\b\w+\b", re.sub(r"'[^']*'|\"[^\"]*\"", "", "\n".join(lines))))
    for module, names in MODULES.items():
        if needed := [name for name in names if name in used]:
            yield f"from {module} import {', '.join(needed)}"


def _asked(request: Request) -> Iterator[str]:
    """What is asked by conditions and captions."""
    read = [f"read_value(model, {name!r}, {value!r})" for name, given in request.conditions.items() for value in given]
    yield f"asked = {' | '.join(read) or 'Composition()'}"
    arguments = request.arguments
    if prompts := read_prompts(arguments.get("also", ()), arguments.get("never", ())):
        yield f"asked = combine(model, asked, {prompts!r})"
    if away := [text.partition("=") for text in arguments.get("away", ())]:
        parts = " | ".join(f"read_value(model, {name!r}, {value!r}).parts" for name, _, value in away)
        yield f"asked = replace(asked, away={parts})"
    if strengths := list(request.drawing.strengths):
        yield f"strengths = read_strengths(model, {strengths!r})"
        yield "asked = replace(asked, strengths={**asked.strengths, **strengths})"


def _picture(request: Request) -> Iterator[str]:
    """What is kept of the picture, and where it may change."""
    if not request.images:
        return
    usual = signature(request.task.make).parameters["keep"].default
    path, keep = request.images[0], ", ".join(map(repr, request.arguments.get("keep", usual)))
    if not _within(request):
        yield f"asked = Source.open(model, {path!r}).pick({keep}) | asked"
        return
    if request.task.grows:
        yield f"original, region = extend(Original.open({path!r}), ({request.pictures.by}))"
    else:
        yield f"original = Original.open({path!r})"
        yield f"region = open_region({request.pictures.region!r}, original.image.shape[1:])"
    yield "frame = Frame.around(original, region)"
    yield f"asked = frame.restrict(model, frame.source(model).pick({keep}) | asked)"


def _within(request: Request) -> bool:
    """Whether a part of a picture is drawn."""
    return bool(request.images) and (request.task.grows or request.pictures.region is not None)


def _drawn(request: Request) -> Iterator[str]:
    """Draws and saves."""
    said = request.sampling.options.to_dict()
    yield f"options = SampleOptions({', '.join(f'{name}={value!r}' for name, value in said.items())})"
    drawing = request.drawing
    yield f"best = best_of(model, asked, {list(drawing.seeds)!r}, n={drawing.best_of}, options=options)"
    if not _within(request):
        yield f'best.images.save("{request.task.name}.png")'
        return
    yield f"pictures = frame.paste(best.images, soften={request.pictures.soften})"
    yield "for seed, picture in zip(best.seeds, pictures, strict=True):"
    yield f'    picture.save(f"{request.task.name}_seed{{seed}}.png")'
