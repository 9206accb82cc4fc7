"""Other scenes with the same caption: how much of an image a caption leaves open."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from composer.scenes.batch import SPLITS, to_world
from composer.scenes.captions import tell
from composer.scenes.layout import MATERIALS, SIZES, Dice, Scene, Thing, ThingKind, draw_scene, redraw_scene
from composer.scenes.render import render

ENOUGH = 256
"""More random numbers than the longest caption needs."""


class Replay(Dice):
    """Replays earlier draws."""

    def __init__(self, numbers: Sequence[float]):
        self.random = iter(numbers).__next__


def retell(split: str, index: int, count: int, seed: int = 0) -> list[Scene]:
    """Draws other scenes with the caption that `describe` returns.

    A caption is a function of the scene and of the grammar's random choices. This keeps the choices, and draws from all
    scenes that lead to the same caption: a step of Gibbs sampling, which leaves p(scene | caption) invariant.

    Args:
        split: "train", "val" or "novel".
        index: Which scene.
        count: Scenes to draw.
        seed: As for `describe`.
    """
    dice = Dice(seed, SPLITS.index(split), index)
    scene = draw_scene(dice, novel=split == "novel")
    numbers = [float(dice.random()) for _ in range(ENOUGH)]
    caption = tell(Replay(numbers), scene)
    kinds = [_find_kind(scene, i, caption, numbers) for i in range(len(scene.things))]
    fresh = Dice(seed, SPLITS.index(split), index, 1)
    found: list[Scene] = []
    while len(found) < count:
        other = redraw_scene(fresh, kinds, scene.ground, scene.sky)
        if tell(Replay(numbers), other) == caption:
            found.append(other)
    return found


def _find_kind(scene: Scene, i: int, caption: str, numbers: Sequence[float]) -> ThingKind:
    """Finds all sizes and materials of a thing with which the caption would be the same."""
    thing = scene.things[i]

    def same(other: Thing) -> bool:
        return (
            tell(Replay(numbers), replace(scene, things=(*scene.things[:i], other, *scene.things[i + 1 :]))) == caption
        )

    sizes = tuple(size for size in SIZES if same(replace(thing, size=size)))
    materials = tuple(material for material in MATERIALS if same(replace(thing, material=material)))
    return thing.shape, thing.colour, sizes, materials


def render_retold(
    split: str, indices: Sequence[int], count: int, size: int, seed: int = 0
) -> Float[Tensor, "n k 3 {size} {size}"]:
    """Renders `count` other scenes for each caption.

    Args:
        split: As for `retell`.
        indices: Which scenes' captions.
        count: Images per caption.
        size: Height and width in pixels.
        seed: As for `retell`.
    """
    pictures = [render(to_world(retell(split, i, count, seed), torch.device("cpu")), size).image for i in indices]
    return torch.stack(pictures)
