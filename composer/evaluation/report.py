"""The report on one picture: what was asked and what came out, condition by condition."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from composer.cascade.cascade import Cascade
from composer.cascade.start import InitialNoise, NoisyImage
from composer.diffusion.strength import Strength
from composer.evaluation.reading import Reading
from composer.images.reading import File, PictureFile
from composer.images.sheet import from_pil, png, read_recipe, read_written, sheet
from composer.images.table import Table
from composer.tasks.composition import Composition
from composer.tasks.editing import Frame, Original
from composer.tasks.recipe import edited, frame_of, parse_recipe

LONGEST = 500
"""Maximum characters of a text in a table, as it may come from an untrusted file."""


@dataclass(frozen=True)
class ConditionRow:
    """One condition.

    Attributes:
        name: Its name.
        source: Where it came from: a file's hash and name, or a person's words.
        strength: How much, when and where it counts; empty where it counts fully.
        distance: How far the picture is from what was asked, in its reader's unit; None where that cannot be measured.
        closed: Adherence, from 0 (chance) to 1 (a perfect match); see `Reading.measure`.
        asked: Preview of what was asked.
        back: Preview of what came back; None where it is not read from pictures.
    """

    name: str
    source: str
    strength: str
    distance: float | None
    closed: float | None
    asked: Float[Tensor, "3 h w"]
    back: Float[Tensor, "3 h w"] | None


@dataclass(frozen=True, repr=False)
class Report:
    """How well one picture matches what was asked of it.

    Attributes:
        settings: How it was drawn, in words.
        pictures: Label, before and after, of the whole picture, and of the square that was measured in an edit.
        rows: Its conditions.
    """

    settings: dict[str, str]
    pictures: list[tuple[str, Tensor | None, Tensor]]
    rows: list[ConditionRow]

    @property
    def closed(self) -> dict[str, float]:
        """Adherence to each condition, from 0 (chance) to 1 (a perfect match), where it can be measured."""
        return {row.name: row.closed for row in self.rows if row.closed is not None}

    def __repr__(self) -> str:
        measured = ", ".join(f"{value:.2f} ({name})" for name, value in self.closed.items())
        return f"Report(closed {measured or 'nothing that can be measured'})"

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        return png(self.picture())

    def picture(self) -> Image.Image:
        """Draws the picture, then one row per condition: what was asked, and what came out."""
        cells = [[before, after] for _, before, after in self.pictures] + [[row.asked, row.back] for row in self.rows]
        labels = [label for label, _, _ in self.pictures] + [_label(row) for row in self.rows]
        title = f"{self.settings['model']}, seed {self.settings['seed']}"
        return sheet(cells, labels, ["asked", "came back"], title)

    def tables(self) -> list[Table]:
        """How the picture was drawn, and its adherence to each condition."""
        rows = [
            (row.name, row.source, row.strength or "1", _number(row.distance, 4), _number(row.closed, 2))
            for row in self.rows
        ]
        conditions = Table(("condition", "from", "strength", "distance", "closed"), rows)
        return [Table(("how it was drawn", ""), list(self.settings.items())), conditions]


def report(path: File, cascade: Cascade, original: File | None = None) -> Report:
    """Compares a picture with what its recipe says was asked: ``report("out.png", model)``.

    The picture's own pixels are read, nothing is drawn.

    Args:
        path: A PNG that carries its recipe, as ``images.save("out.png")`` writes it.
        cascade: The model that drew it.
        original: For an edit, the picture that was edited: the square that the model saw is compared.

    Raises:
        ValueError: The PNG has no recipe, the recipe is another model's or an edit's without its original, or the
            picture has been resized since.
    """
    if not isinstance(cascade, Cascade):
        raise ValueError('expected a picture, then the model that drew it: report("out.png", model)')
    path = PictureFile.of(path)
    found = read_recipe(path)
    asked = parse_recipe(cascade, found, limited=False).composition
    if "edit" in found and original is None:
        raise ValueError(f"{path} is an edit of {edited(found)}: give the picture that was edited, too (--image)")
    if original is None:
        whole = from_pil(read_written(path))
        pictures: list[tuple[str, Tensor | None, Tensor]] = [("the picture", None, whole)]
        reading = Reading(cascade, whole[None])
    else:
        before, after = _frames(found, path, original)
        size = cascade.stages[0].size
        (seen, _), (square, region) = before.seen(size), after.seen(size)
        pictures = [("the picture", before.original.image, after.original.image)]
        pictures.append(("what the model saw of it", seen[0], square[0]))
        reading = Reading(cascade, square, region)
    return Report(_settings(found, asked), pictures, compare(asked, reading))


def _frames(found: Mapping[str, Any], path: File, original: File) -> tuple[Frame, Frame]:
    """Where the edit happened, in the picture before and after."""
    before, _ = frame_of(found, original, limited=False)
    result = Original.open(path)
    if result.image.shape != before.original.image.shape:
        h, w = before.original.image.shape[1:]
        raise ValueError(
            f"{path} was drawn with {w} x {h} pixels and has {result.image.shape[2]} x {result.image.shape[1]}: "
            "it has been resized since"
        )
    return before, replace(before, original=result)


@torch.no_grad()
def compare(asked: Composition, reading: Reading) -> list[ConditionRow]:
    """Compares one picture with what was asked, condition by condition.

    Args:
        asked: What was asked, of one row.
        reading: The picture, decomposed again.

    Raises:
        ValueError: What was asked has another shape than the model reads.
    """
    cascade = reading.cascade
    decomposers, readers = dict(cascade.decomposition.named()), dict(cascade.readers.named())
    wanted = asked.wanted.pick(*(name for name in asked.wanted if name in readers))
    read_again = reading.parts(wanted)
    kinds = {n: [(v[n].shape[1:], v[n].is_floating_point()) for v in (wanted, read_again) if n in v] for n in wanted}
    if wrong := [name for name, found in kinds.items() if len(set(found)) > 1]:
        raise ValueError(f"the recipe's {', '.join(wrong)} has another shape than this model reads")
    near = reading.measure(wanted)
    back = {name: reading.preview(name) for name in asked.parts if name in decomposers}
    return [
        ConditionRow(
            name,
            _short(asked.sources.get(name, "")),
            _strength(asked.strengths.get(name)),
            float(near[name].distance) if name in near else None,
            float(near[name].closed) if name in near else None,
            decomposers[name].preview(asked.parts[name].to(cascade.device))[0].cpu(),
            None if shown is None else shown[0],
        )
        for name, shown in back.items()
    ]


def _settings(found: Mapping[str, Any], asked: Composition) -> dict[str, str]:
    """What a recipe says besides its conditions."""
    says = {"model": str(found["model"].get("name") or found["model"]["sha256"][:12]), "seed": str(found["seed"])}
    if "precision" in found:
        says["precision"] = str(found["precision"])
    for stage, sampling in found["stages"].items():
        if "temperature" in sampling:
            top = f", top {sampling['top_k']}" if sampling["top_k"] else ""
            drawn = f"codes at temperature {sampling['temperature']:g}{top}, guidance {sampling['guidance']:g}"
            says[f"stage {stage}"] = drawn
            continue
        says[f"stage {stage}"] = f"{sampling['sampler']}, {sampling['steps']} steps, guidance {sampling['guidance']:g}"
        told = ("percentile", "augmentation", "tile", *(["eta"] if sampling["sampler"] == "ancestral" else []))
        says[f"stage {stage}"] += "".join(f", {name} {sampling[name]:g}" for name in told if sampling[name])
    if found["size"] is not None:
        says["size"] = f"{found['size'][1]} x {found['size'][0]} pixels"
    says |= {name: _short(source) for name, source in asked.sources.items() if name not in asked.parts}
    if asked.away is not None:
        says["leads away from"] = ", ".join(asked.away) or "nothing"
    if isinstance(asked.start, InitialNoise):
        says["begins with"] = "the noise that gives a picture back"
    if isinstance(asked.start, NoisyImage):
        says["begins with"] = f"a picture, noisy as at time {asked.start.time:g}"
    if "edit" in found:
        says["edit of"] = _short(f"{found['edit']['original']} {found['edit'].get('name', '')}".strip())
    return says


def _short(source: str) -> str:
    """Hashes by their first digits; words as they are, up to `LONGEST`."""
    short = re.sub(r"(sha256:[0-9a-f]{12})[0-9a-f]{52}", r"\1", source)
    return short if len(short) <= LONGEST else f"{short[:LONGEST]}..."


def _strength(strength: Strength | None) -> str:
    if strength is None:
        return ""
    low, high = strength.interval
    when = "" if (low, high) == (0, 1) else f" at times {low:g}-{high:g}"
    where = "" if strength.region is None else f" in {float(strength.region.mean()):.0%} of the picture"
    return f"{strength.weight:g}{when}{where}"


def _label(row: ConditionRow) -> str:
    measured = "not measured" if row.closed is None else f"closed {row.closed:.2f}"
    return f"{row.name}: {measured}" + (f", strength {row.strength}" if row.strength else "")


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
