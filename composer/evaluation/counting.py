"""Counts how many pictures, drawn from captions of one, two and three objects, show what was asked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from composer.cascade.cascade import Cascade
from composer.cascade.options import SampleOptions
from composer.evaluation.adherence import quantise
from composer.evaluation.prompts import from_captions
from composer.images.reading import resize
from composer.images.table import Table
from composer.scenes import describe, render_batch
from composer.scenes.reader import READ_SIZE
from composer.scenes.things import QUESTIONS, Judge, list_asked, mark, see, tabulate

NUMBERS = (1, 2, 3)
"""Numbers of things per caption."""

SHARES = {"short": 0.0, "complete": 1.0}
"""Kinds of captions, as shares of complete ones."""


@dataclass(frozen=True)
class Counted:
    """How many pictures show what was asked, as shares by each of `QUESTIONS`.

    Attributes:
        drawn: Of the pictures that the model drew.
        true: Of the true ones, which fall short of 1 by the judge's own error.
    """

    drawn: dict[str, float]
    true: dict[str, float]


def count_things(
    cascade: Cascade,
    judge: Judge,
    count: int = 64,
    captions: str = "complete",
    seed: int = 0,
    rows: int = 32,
    progress: Callable[[int], None] = lambda count: None,
    options: SampleOptions | None = None,
) -> dict[str, Counted]:
    """Draws Scenes of `val` from their captions, and detects with a judge what they and the true images show.

    Args:
        cascade: A model that reads captions; its first stage draws.
        judge: Reads no picture of a training (see `composer.scenes.things`).
        count: Captions of each number of things.
        captions: "short" as Scenes have them, which don't always say sizes and places, or "complete".
        seed: Of the pictures.
        rows: Pictures drawn at a time.
        progress: Called with the number of pictures that were just drawn.
        options: How `Cascade.sample` differs from the model's own.

    Returns:
        By number of things.

    Raises:
        ValueError: The model reads no captions.
    """
    if not from_captions(cascade, [""]):
        raise ValueError(
            f"counting things needs a model that reads captions; this one reads {', '.join(cascade.names)}"
        )
    how = SampleOptions(until=cascade.stages[0].name) | options

    def draw(index: Sequence[int], captions: list[str], seeds: Sequence[int]) -> Tensor:
        return quantise(cascade.sample(from_captions(cascade, captions), seeds, how)).cpu()

    return count_drawn(draw, judge, count, captions, seed, rows, progress)


Draw = Callable[[Sequence[int], list[str], Sequence[int]], Tensor]
"""Numbers of Scenes of `val`, their captions, seeds -> pictures (b 3 h w), rounded to 8 bits, on the CPU."""


def count_drawn(
    draw: Draw,
    judge: Judge,
    count: int = 64,
    captions: str = "complete",
    seed: int = 0,
    rows: int = 32,
    progress: Callable[[int], None] = lambda count: None,
) -> dict[str, Counted]:
    """Does what `count_things` does, with pictures that are drawn in any way.

    Args:
        draw: Draws the pictures.
        judge: See `count_things`; so are the others.
        count: Captions of each number of things.
        captions: "short" or "complete".
        seed: Of the pictures.
        rows: Pictures drawn at a time.
        progress: Called with the number of pictures that were just drawn.
    """
    found: dict[str, Counted] = {}
    for number in NUMBERS:
        index = scenes_with(number, count)
        told = [describe("val", i, complete=SHARES[captions]) for i in index]
        drawn, true = [], []
        for at in range(0, count, rows):
            some = index[at : at + rows]
            seeds = [seed * 1_000_003 + i for i in some]
            drawn.append(draw(some, [caption for _, caption in told[at : at + rows]], seeds))
            true.append(quantise(render_batch("val", some, READ_SIZE)["image"]))
            progress(len(seeds))
        asked = [list_asked(tabulate(scene)) for scene, _ in told]
        found[str(number)] = Counted(*(measure_shares(judge, torch.cat(images), asked) for images in (drawn, true)))
    return found


def scenes_with(number: int, count: int) -> list[int]:
    """The first scenes of `val` with so many objects."""
    found: list[int] = []
    index = 0
    while len(found) < count:
        if len(describe("val", index)[0].things) == number:
            found.append(index)
        index += 1
    return found


def measure_shares(judge: Judge, images: Float[Tensor, "b 3 h w"], asked: Sequence[Any]) -> dict[str, float]:
    """Share of the pictures that are right, by each of `QUESTIONS`."""
    if images.shape[-1] != READ_SIZE:
        images = torch.stack([resize(image, READ_SIZE) for image in images])
    right = [mark(*pair) for pair in zip(asked, see(judge, images), strict=True)]
    return {name: sum(row[name] for row in right) / len(right) for name in QUESTIONS}


def markdown(found: Mapping[str, Counted]) -> str:
    """The result of `count_things` as Markdown: the drawn pictures, and the true ones in brackets."""
    rows = [
        [number, *(f"{row.drawn[name]:.2f} ({row.true[name]:.2f})" for name in QUESTIONS)]
        for number, row in found.items()
    ]
    legend = "Share of the pictures; in brackets, of the true ones: the judge's own error."
    return f"{Table(['things', *QUESTIONS], rows).markdown()}\n{legend}\n"
