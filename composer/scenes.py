"""Scenes: a procedural world with exact truth, so that everything can be trained and measured without a download."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from composer.decomposition import Batch, robust_normalise
from composer.render import SOLIDS, World, render
from composer.scenery import GROUNDS, SKIES

T = TypeVar("T")

SHAPES = tuple(SOLIDS)
COLOURS = {
    "red": (0.86, 0.05, 0.07),
    "orange": (0.98, 0.46, 0.02),
    "yellow": (0.98, 0.86, 0.06),
    "green": (0.07, 0.60, 0.13),
    "cyan": (0.04, 0.80, 0.82),
    "blue": (0.07, 0.18, 0.86),
    "purple": (0.46, 0.09, 0.68),
    "pink": (0.98, 0.45, 0.70),
}
"""Names and sRGB of the things' colours."""

SIZES = {"large": 1.0, "small": 0.58}
MATERIALS = ("matte", "shiny")
SPLITS = ("train", "val", "novel")
NOVEL_PAIRS = (
    *(("sphere", "green"), ("cube", "yellow"), ("cube", "purple")),
    *(("cylinder", "red"), ("cone", "blue"), ("torus", "orange")),
)
"""(shape, colour) pairs that occur in no scene of `train` and `val`, and at least once in every scene of `novel`."""

SYNONYMS = {"sphere": "ball", "cube": "box", "torus": "ring", "large": "big", "small": "little", "shiny": "glossy"}
RELATIONS = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "front": ("in front of",),
    "behind": ("behind",),
}
_COUNTS = ("", "one thing", "two things", "three things", "four things")
WORDS = tuple(
    sorted(
        {*SHAPES, *COLOURS, *SIZES, *MATERIALS, *GROUNDS, *SKIES, *SYNONYMS.values()}
        | set(" ".join([*(phrase for phrases in RELATIONS.values() for phrase in phrases), *_COUNTS]).split())
        | set(["a", "an", "and", "the", "on", "under", "sky", "in", "middle", "left", "right"])
    )
)
"""Every word that a caption may hold (commas and colons aside)."""


@dataclass(frozen=True, kw_only=True)
class Thing:
    """A thing of a scene: what it is, and where it stands on the ground (x to the right, z away; yaw in radians)."""

    shape: str
    colour: str
    size: str
    material: str
    x: float
    z: float
    yaw: float

    @property
    def phrase(self) -> str:
        """What it is, in full and without synonyms: "large shiny red sphere"."""
        return f"{self.size} {self.material} {self.colour} {self.shape}"


@dataclass(frozen=True, kw_only=True)
class Camera:
    """Where a camera stands and looks; lengths in radii of a large sphere, `zoom` the tangent of half its view."""

    height: float
    distance: float
    pitch: float
    zoom: float

    def project(self, x: float, y: float, z: float) -> tuple[float, float]:
        """Where a point of the world appears, from 0 (left, top) to 1."""
        sin, cos = math.sin(self.pitch), math.cos(self.pitch)
        y, z = y - self.height, z + self.distance
        ahead = (z * cos - y * sin) * self.zoom
        return 0.5 + 0.5 * x / ahead, 0.5 - 0.5 * (y * cos + z * sin) / ahead

    def box(self, thing: Thing) -> tuple[float, float, float, float]:
        """A box in the picture that holds the thing, with little to spare."""
        solid, size = SOLIDS[thing.shape], SIZES[thing.size]
        half, top = solid.width * size, solid.top * size
        left, right = (self.project(thing.x + side * half, top / 2, thing.z)[0] for side in (-1, 1))
        upper = self.project(thing.x, top, thing.z)[1]
        lower = self.project(thing.x, 0, thing.z - 0.6 * half)[1]
        return left, upper, right, lower


@dataclass(frozen=True, kw_only=True)
class Scene:
    """All that a picture shows."""

    things: tuple[Thing, ...]
    ground: str
    sky: str
    camera: Camera
    azimuth: float  # radians of the sun, 0 = behind the camera
    elevation: float  # radians of the sun
    shift: tuple[float, float, float]
    caption: str


class _Dice:
    """Draws that are a function of their key alone, whatever the machine."""

    def __init__(self, *key: int):
        self.random = np.random.Generator(np.random.PCG64(np.random.SeedSequence(key))).random

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * float(self.random())

    def chance(self, probability: float) -> bool:
        return bool(self.random() < probability)

    def pick(self, options: Sequence[T]) -> T:
        return options[int(self.random() * len(options))]

    def shuffled(self, options: Sequence[T]) -> list[T]:
        return [options[i] for i in np.argsort([self.random() for _ in options], kind="stable")]


def describe(split: str, index: int, seed: int = 0) -> Scene:
    """Draws what a scene holds, a function of (seed, split, index) alone.

    Things don't touch, lie within the picture, and hide little of each other; no two agree in shape and colour.

    Raises:
        ValueError: Of an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")
    dice = _Dice(seed, SPLITS.index(split), index)
    things = None
    while things is None:
        camera = _camera(dice)
        things = _place(dice, camera, _draw_pairs(dice, split == "novel"))
    ground, sky = dice.pick(GROUNDS), dice.pick(SKIES)
    return Scene(
        things=things,
        ground=ground,
        sky=sky,
        camera=camera,
        azimuth=dice.pick((-1, 1)) * dice.between(0.4, 1.7),
        elevation=dice.between(0.65, 1.05),
        shift=(dice.between(0, 1), dice.between(0, 1), dice.between(0, 2 * math.pi)),
        caption=_caption(dice, things, camera, ground, sky),
    )


def _camera(dice: _Dice) -> Camera:
    zoom = dice.between(0.38, 0.42)
    horizon = dice.between(0.17, 0.27)  # from the top of the picture
    return Camera(
        height=dice.between(2.6, 3.4),
        distance=dice.between(6.4, 7.2),
        pitch=math.atan((0.5 - horizon) * 2 * zoom),
        zoom=zoom,
    )


def _draw_pairs(dice: _Dice, novel: bool) -> list[tuple[str, str]]:
    pairs = [(shape, colour) for shape in SHAPES for colour in COLOURS if (shape, colour) not in NOVEL_PAIRS]
    drawn = dice.shuffled(pairs)[: dice.pick((1, 2, 2, 2, 3, 3, 3, 4, 4))]
    return [dice.pick(NOVEL_PAIRS), *drawn[1:]] if novel else drawn


def _place(dice: _Dice, camera: Camera, pairs: list[tuple[str, str]]) -> tuple[Thing, ...] | None:
    """Puts things where they fit, or gives up."""
    things: list[Thing] = []
    for shape, colour in pairs:
        size, material = dice.pick(tuple(SIZES)), dice.pick(MATERIALS)
        for _ in range(12):
            z = dice.between(-1.7, 2.4)
            x = dice.between(-0.85, 0.85) * camera.zoom * (camera.distance + z)
            yaw = dice.between(-0.9, 0.9) - math.atan2(x, camera.distance + z)  # a ring keeps facing the camera
            thing = Thing(shape=shape, colour=colour, size=size, material=material, x=x, z=z, yaw=yaw)
            if _fits(camera, [*things, thing]):
                things.append(thing)
                break
        else:
            return None
    return tuple(things)


def _fits(camera: Camera, things: list[Thing]) -> bool:
    """Whether the last thing lies within the picture and clear of the others, and nothing is hidden by much."""
    *others, last = things
    left, upper, right, lower = camera.box(last)
    if min(left, upper) < 0.03 or max(right, lower) > 0.97:
        return False
    for other in others:
        gap = math.hypot(last.x - other.x, last.z - other.z)
        if gap < 0.15 + SOLIDS[last.shape].width * SIZES[last.size] + SOLIDS[other.shape].width * SIZES[other.size]:
            return False
    return all(_hidden(camera, thing, things) < 0.35 for thing in things)


def _hidden(camera: Camera, thing: Thing, things: list[Thing]) -> float:
    """Share of a thing's box that lies behind the boxes of nearer things."""
    left, upper, right, lower = camera.box(thing)
    hidden = 0.0
    for other in things:
        if other.z < thing.z:
            a, b, c, d = camera.box(other)
            hidden += max(0.0, min(right, c) - max(left, a)) * max(0.0, min(lower, d) - max(upper, b))
    return hidden / ((right - left) * (lower - upper))


def relations(camera: Camera, thing: Thing, other: Thing) -> list[str]:
    """Which of `RELATIONS` clearly hold in the picture, of `thing` to `other`."""
    across = sum(camera.box(thing)[::2]) / 2 - sum(camera.box(other)[::2]) / 2
    away = thing.z - other.z
    aligned = abs(thing.x - other.x) < 1.5 * abs(away)
    held = {"left": across < -0.12, "right": across > 0.12, "front": aligned and away < -0.9}
    held["behind"] = aligned and away > 0.9
    return [name for name in RELATIONS if held[name]]


def _caption(dice: _Dice, things: tuple[Thing, ...], camera: Camera, ground: str, sky: str) -> str:
    """States what is there and where, one of many ways."""
    order = dice.shuffled(things)
    told = (
        _alone(dice, order[0], camera)
        if len(order) == 1
        else dice.pick((_related, _related, _listed))(dice, order, camera)
    )
    setting = dice.pick((f"on {ground} under {_a(sky)} sky", f"under {_a(sky)} sky on {ground}"))
    return f"{told}, {setting}" if dice.chance(0.75) else f"{setting}, {told}"


def _a(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _name(dice: _Dice, thing: Thing) -> str:
    """A thing's phrase, at times with a synonym or without its size or material."""
    words = [thing.size] * dice.chance(0.85) + [thing.material] * dice.chance(0.85) + [thing.colour, thing.shape]
    return _a(" ".join(SYNONYMS[word] if word in SYNONYMS and dice.chance(0.2) else word for word in words))


def _alone(dice: _Dice, thing: Thing, camera: Camera) -> str:
    middle = sum(camera.box(thing)[::2]) / 2
    where = " on the left" if middle < 0.4 else " on the right" if middle > 0.6 else " in the middle"
    return _name(dice, thing) + where * dice.chance(0.7)


def _listed(dice: _Dice, things: list[Thing], camera: Camera) -> str:
    *names, last = [_name(dice, thing) for thing in things]
    return f"{_COUNTS[len(things)]}: " * dice.chance(0.5) + ", ".join(names) + f" and {last}"


def _related(dice: _Dice, things: list[Thing], camera: Camera) -> str:
    """Each further thing by its relation to an earlier one; named alone where none clearly holds."""
    parts = [_name(dice, things[0])]
    for at, thing in enumerate(things[1:], 1):
        fresh = at == 1
        other = things[0] if fresh else dice.pick(things[:at])
        held = relations(camera, other, thing) if fresh else relations(camera, thing, other)
        if not held:
            parts.append(f", {_name(dice, thing)}")
            continue
        relation = dice.pick(RELATIONS[dice.pick(held)])
        if fresh:
            parts.append(f" {relation} {_name(dice, thing)}")
        else:
            parts.append(f", {_name(dice, thing)} {relation} the {other.colour} {other.shape}")
    return "".join(parts)


def _world(scenes: Sequence[Scene], device: torch.device) -> World:
    """Scenes as the tensors that the renderer reads."""
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


def render_batch(
    split: str, indices: Sequence[int], size: int, seed: int = 0, device: torch.device | str = "cpu"
) -> Batch:
    """Renders scenes with their truth; each is a function of (seed, split, index) alone, whatever the batch.

    Args:
        split: "train", "val" or "novel".
        indices: Which scenes; at least one.
        size: Height and width in pixels.
        seed: Another seed gives another world of scenes.
        device: Where to render, and where the tensors are.

    Returns:
        ``image`` (b 3 h w) in [-1, 1]; ``caption``; ``depth`` (b 1 h w), relative inverse depth; ``instances``
        (b 2 h w), the category (1 + index into `SHAPES`) and the instance, 0 = none; ``boxes``: for each scene, by
        instance, (xyxy in [0, 1], phrase) of what is visible.
    """
    scenes = [describe(split, index, seed) for index in indices]
    world = _world(scenes, torch.device(device))
    picture = render(world, size)
    ids = _vote(picture.ids)
    category = torch.nn.functional.pad(world.shape + 1, (1, 0)).gather(1, ids.flatten(1)).view_as(ids)
    boxes = _boxes(picture.ids, world.shape.shape[1])
    return {
        "image": picture.image,
        "caption": [scene.caption for scene in scenes],
        "depth": robust_normalise(picture.inverse),
        "instances": torch.stack([category, ids], 1).float(),
        "boxes": [
            [(box, thing.phrase) for box, thing in zip(row, scene.things, strict=False)]
            for row, scene in zip(boxes, scenes, strict=True)
        ],
    }


def _vote(ids: Int[Tensor, "b h2 w2"]) -> Int[Tensor, "b h w"]:
    """The instance that most of a pixel's 2 x 2 samples see; things before none, and the first before the others."""
    corners = torch.stack([ids[:, y::2, x::2] for y in (0, 1) for x in (0, 1)])
    votes = (corners[:, None] == corners).sum(1) * 2 + (corners > 0)
    return corners.gather(0, votes.argmax(0, keepdim=True))[0]


def _boxes(ids: Int[Tensor, "b h w"], slots: int) -> list[list[tuple[float, float, float, float]]]:
    """Tight boxes of the instances 1 to `slots`, a row each; meaningless where an instance is absent."""
    shown = ids[:, None] == torch.arange(1, slots + 1, device=ids.device)[:, None, None]
    n = ids.shape[-1]
    ends = []
    for axis in (2, 3):  # over y: where columns begin and end; over x: rows
        line = shown.any(axis).to(torch.uint8)
        ends += [line.argmax(-1) / n, 1 - line.flip(-1).argmax(-1) / n]
    left, right, upper, lower = ends
    return [[tuple(box) for box in row] for row in torch.stack([left, upper, right, lower], -1).tolist()]
