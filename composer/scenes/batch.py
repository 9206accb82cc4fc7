"""Scenes as a batch: images, captions and ground truth."""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from composer.decomposition import Batch, robust_normalise
from composer.scenes.captions import name_briefly, tell, tell_all
from composer.scenes.layout import COLOURS, SHAPES, SIZES, Box, Dice, Scene, Thing, draw_scene
from composer.scenes.render import World, render
from composer.scenes.scenery import GROUNDS, SKIES

SPLITS = ("train", "val", "novel")
COMPLETE = 2
"""Key of the draws of complete captions, distinct from those of the scene and of other scenes of its caption."""

OBJECTS = 3
"""The same of the phrases of objects."""

PhrasedBox = tuple[str, Box]
"""An object: a phrase, and the box that it fills."""


def describe(split: str, index: int, seed: int = 0, complete: float = 0.0) -> tuple[Scene, str]:
    """Returns a scene and its caption, a function of the arguments alone.

    Args:
        split: "train", "val" or "novel".
        index: Which scene; any number from 0.
        seed: Another seed gives another world of scenes.
        complete: Share of the scenes, drawn independently, with a complete caption (`tell_all`). Neither the other
            captions nor the images depend on it.

    Raises:
        ValueError: Unknown split, or a share outside [0, 1].
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")
    if not 0 <= complete <= 1:
        raise ValueError(f"complete is the share of complete captions, in [0, 1]; found {complete}")
    dice = Dice(seed, SPLITS.index(split), index)
    scene = draw_scene(dice, novel=split == "novel")
    other = Dice(seed, SPLITS.index(split), index, COMPLETE)
    return scene, tell_all(other, scene) if other.chance(complete) else tell(dice, scene)


def render_batch(
    split: str,
    indices: Sequence[int],
    size: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
    complete: float = 0.0,
) -> Batch:
    """Renders scenes with ground truth; each is a function of its index and the settings, whatever the batch.

    Args:
        split: "train", "val" or "novel".
        indices: Which scenes; at least one.
        size: Height and width in pixels.
        seed: Another seed gives another world of scenes.
        device: Where to render; device of the tensors.
        complete: Share of complete captions (see `describe`).

    Returns:
        ``image`` (b 3 h w) in [-1, 1]; ``caption``; ``depth`` (b 1 h w), relative inverse depth; ``instances``
        (b 2 h w), the category (1 + index into `SHAPES`) and the instance, 0 = none; ``boxes``: per scene,
        (xyxy in [0, 1], phrase) of each visible instance.
    """
    scenes, captions = zip(*(describe(split, index, seed, complete) for index in indices), strict=True)
    world = to_world(scenes, torch.device(device))
    picture = render(world, size)
    ids = _vote(picture.ids)
    category = torch.nn.functional.pad(world.shape + 1, (1, 0)).gather(1, ids.flatten(1)).view_as(ids)
    boxes = _boxes(picture.ids, world.shape.shape[1])
    return {
        "image": picture.image,
        "caption": list(captions),
        "depth": robust_normalise(picture.inverse),
        "instances": torch.stack([category, ids], 1).float(),
        "boxes": [
            [(box, thing.phrase) for box, thing in zip(row, scene.things, strict=False)]
            for row, scene in zip(boxes, scenes, strict=True)
        ],
    }


def name_objects(seed: int, scene: Scene, boxes: Sequence[tuple[Box, str]]) -> list[PhrasedBox]:
    """Names each object by a short phrase such as "a red cube" or "a little blue ball".

    Args:
        seed: Decides which of the words that are true of an object are said.
        scene: The scene.
        boxes: Of its objects, in their order, as `render_batch` gives them.
    """
    dice = Dice(seed, OBJECTS)
    return [(name_briefly(dice, thing), box) for thing, (box, _) in zip(scene.things, boxes, strict=True)]


def to_world(scenes: Sequence[Scene], device: torch.device) -> World:
    """Converts scenes to the tensors that the renderer takes."""
    slots = max(len(scene.things) for scene in scenes)

    def column(values: Sequence[object], dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.tensor(values, dtype=dtype).to(device)

    def each(value: Callable[[Thing], object], none: object, dtype: torch.dtype = torch.float32) -> Tensor:
        rows = [[*map(value, scene.things), *[none] * (slots - len(scene.things))] for scene in scenes]
        return column(rows, dtype)

    return World(
        **{
            name: column([getattr(scene.camera, name) for scene in scenes])
            for name in ("height", "distance", "pitch", "zoom")
        },
        light=column([_sun(scene) for scene in scenes]),
        ground=column([GROUNDS.index(scene.ground) for scene in scenes], torch.long),
        sky=column([SKIES.index(scene.sky) for scene in scenes], torch.long),
        shift=column([scene.shift for scene in scenes]),
        shape=each(lambda thing: SHAPES.index(thing.shape), -1, torch.long),
        size=each(lambda thing: SIZES[thing.size], 1.0),
        place=each(lambda thing: (thing.x, thing.z), (0.0, 0.0)),
        yaw=each(lambda thing: thing.yaw, 0.0),
        albedo=each(lambda thing: [value**2.2 for value in COLOURS[thing.colour]], (0.0,) * 3),
        shiny=each(lambda thing: float(thing.material == "shiny"), 0.0),
    )


def _sun(scene: Scene) -> tuple[float, float, float]:
    flat = math.cos(scene.elevation)
    return flat * math.sin(scene.azimuth), math.sin(scene.elevation), -flat * math.cos(scene.azimuth)


def _vote(ids: Int[Tensor, "b h2 w2"]) -> Int[Tensor, "b h w"]:
    """Majority vote of a pixel's 2 x 2 samples; ties go to things before background, and to the first thing."""
    corners = torch.stack([ids[:, y::2, x::2] for y in (0, 1) for x in (0, 1)])
    votes = (corners[:, None] == corners).sum(1) * 2 + (corners > 0)
    return corners.gather(0, votes.argmax(0, keepdim=True))[0]


def _boxes(ids: Int[Tensor, "b h w"], slots: int) -> list[list[tuple[float, float, float, float]]]:
    """Tight boxes of the instances 1 to `slots`, one row each; meaningless if an instance is absent."""
    shown = ids[:, None] == torch.arange(1, slots + 1, device=ids.device)[:, None, None]
    n = ids.shape[-1]
    ends = []
    for axis in (2, 3):  # any over y gives the extent in x; over x, in y
        line = shown.any(axis).to(torch.uint8)
        ends += [line.argmax(-1) / n, 1 - line.flip(-1).argmax(-1) / n]
    left, right, upper, lower = ends
    return [[tuple(box) for box in row] for row in torch.stack([left, upper, right, lower], -1).tolist()]
