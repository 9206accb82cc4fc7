"""Random layouts of scenes, with all things visible: inside the image, apart, and hardly occluded."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from composer.scenes.scenery import GROUNDS, SKIES
from composer.scenes.solids import SOLIDS

T = TypeVar("T")
Box = tuple[float, float, float, float]
"""xyxy in [0, 1]: left, upper, right, lower."""
ThingKind = tuple[str, str, Sequence[str], Sequence[str]]
"""A thing to place: its shape, its colour, the sizes and the materials that it may have."""

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

SIZES = {"large": 1.0, "small": 0.62}
MATERIALS = ("matte", "shiny")
SPLITS = ("train", "val", "novel")
NOVEL_PAIRS = (
    *(("sphere", "green"), ("cube", "yellow"), ("cube", "purple")),
    *(("cylinder", "red"), ("cone", "blue"), ("torus", "orange")),
)
"""(shape, colour) pairs that occur in no scene of `train` and `val`, and at least once in every scene of `novel`."""


@dataclass(frozen=True, kw_only=True)
class Thing:
    """A thing in a scene: what it is, and its position on the ground (x to the right, z away; yaw in radians)."""

    shape: str
    colour: str
    size: str
    material: str
    x: float
    z: float
    yaw: float

    @property
    def phrase(self) -> str:
        """Its full description without synonyms: "large shiny red sphere"."""
        return f"{self.size} {self.material} {self.colour} {self.shape}"


@dataclass(frozen=True, kw_only=True)
class Camera:
    """A camera; lengths in radii of a large sphere, `zoom` the tangent of half the field of view."""

    height: float
    distance: float
    pitch: float
    zoom: float

    def project(self, x: float, y: float, z: float) -> tuple[float, float]:
        """Projects a point of the world to the image, from 0 (left, top) to 1."""
        sin, cos = math.sin(self.pitch), math.cos(self.pitch)
        y, z = y - self.height, z + self.distance
        ahead = (z * cos - y * sin) * self.zoom
        return 0.5 + 0.5 * x / ahead, 0.5 - 0.5 * (y * cos + z * sin) / ahead

    def box(self, thing: Thing) -> Box:
        """Returns a slightly loose bounding box of a thing in the image."""
        solid, size = SOLIDS[thing.shape], SIZES[thing.size]
        half, top = solid.width * size, solid.top * size
        left, right = (self.project(thing.x + side * half, top / 2, thing.z)[0] for side in (-1, 1))
        upper = self.project(thing.x, top, thing.z)[1]
        lower = self.project(thing.x, 0.0, thing.z - 0.9 * half)[1]
        return left, upper, right, lower


@dataclass(frozen=True, kw_only=True)
class Scene:
    """All that an image shows."""

    things: tuple[Thing, ...]
    ground: str
    sky: str
    camera: Camera
    azimuth: float  # radians of the sun, 0 = behind the camera
    elevation: float  # radians of the sun
    shift: tuple[float, float, float]


class Dice:
    """Random draws that depend on their key alone, not on the machine."""

    def __init__(self, *key: int):
        self.random: Callable[[], float] = np.random.Generator(np.random.PCG64(np.random.SeedSequence(key))).random

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * float(self.random())

    def chance(self, probability: float) -> bool:
        return bool(self.random() < probability)

    def pick(self, options: Sequence[T]) -> T:
        return options[int(self.random() * len(options))]

    def shuffled(self, options: Sequence[T]) -> list[T]:
        return [options[i] for i in np.argsort([self.random() for _ in options], kind="stable")]


def draw_scene(dice: Dice, novel: bool) -> Scene:
    """Draws a scene. Things don't touch and hardly occlude each other; no two have the same shape and colour.

    Args:
        dice: Source of randomness.
        novel: Whether at least one thing is of `NOVEL_PAIRS`; otherwise none is.
    """
    things = None
    while things is None:
        camera = _camera(dice)
        pairs = _draw_pairs(dice, novel)
        things = _place(dice, camera, [(*pair, tuple(SIZES), MATERIALS) for pair in pairs])
    return _lit(dice, things, camera, dice.pick(GROUNDS), dice.pick(SKIES))


def redraw_scene(dice: Dice, kinds: Sequence[ThingKind], ground: str, sky: str) -> Scene:
    """Draws a scene as `draw_scene` does, with given content.

    Args:
        dice: Source of randomness.
        kinds: The things, in the order in which they are placed.
        ground: One of `GROUNDS`.
        sky: One of `SKIES`.
    """
    things = None
    while things is None:
        camera = _camera(dice)
        things = _place(dice, camera, kinds)
    return _lit(dice, things, camera, ground, sky)


def _lit(dice: Dice, things: tuple[Thing, ...], camera: Camera, ground: str, sky: str) -> Scene:
    return Scene(
        things=things,
        ground=ground,
        sky=sky,
        camera=camera,
        azimuth=dice.pick((-1, 1)) * dice.between(0.7, 1.8),
        elevation=dice.between(0.65, 1.05),
        shift=(dice.between(0.0, 1.0), dice.between(0.0, 1.0), dice.between(0.0, 2 * math.pi)),
    )


def _camera(dice: Dice) -> Camera:
    zoom = dice.between(0.38, 0.42)
    horizon = dice.between(0.17, 0.27)  # from the top of the picture
    return Camera(
        height=dice.between(2.6, 3.4),
        distance=dice.between(5.7, 6.4),
        pitch=math.atan((0.5 - horizon) * 2 * zoom),
        zoom=zoom,
    )


def _draw_pairs(dice: Dice, novel: bool) -> list[tuple[str, str]]:
    pairs = [(shape, colour) for shape in SHAPES for colour in COLOURS if (shape, colour) not in NOVEL_PAIRS]
    drawn = dice.shuffled(pairs)[: dice.pick((1, 2, 2, 2, 3, 3, 3, 4, 4))]
    return [dice.pick(NOVEL_PAIRS), *drawn[1:]] if novel else drawn


def _place(dice: Dice, camera: Camera, kinds: Sequence[ThingKind]) -> tuple[Thing, ...] | None:
    """Places things at random until they fit; None if that fails."""
    things: list[Thing] = []
    boxes: list[Box] = []
    for shape, colour, sizes, materials in kinds:
        size, material = dice.pick(sizes), dice.pick(materials)
        for _ in range(12):
            z = dice.between(-1.5, 2.3)
            x = dice.between(-0.8, 0.8) * camera.zoom * (camera.distance + z)
            yaw = dice.between(-0.75, 0.75) + math.atan2(
                x, camera.distance + z
            )  # relative to the camera, so that a torus faces it
            thing = Thing(shape=shape, colour=colour, size=size, material=material, x=x, z=z, yaw=yaw)
            box = camera.box(thing)
            if _fits([*things, thing], [*boxes, box]):
                things.append(thing)
                boxes.append(box)
                break
        else:
            return None
    return tuple(things)


def _fits(things: list[Thing], boxes: list[Box]) -> bool:
    """Whether the last thing is inside the image and apart from the others, and nothing is much occluded."""
    *others, last = things
    left, upper, right, lower = boxes[-1]
    if min(left, upper) < 0.04 or max(right, lower) > 0.96:
        return False
    for other in others:
        gap = math.hypot(last.x - other.x, last.z - other.z)
        if gap < 0.15 + SOLIDS[last.shape].width * SIZES[last.size] + SOLIDS[other.shape].width * SIZES[other.size]:
            return False
    depths = [thing.z for thing in things]
    return all(
        _hidden(box, [b for b, z in zip(boxes, depths, strict=True) if z < depth]) < 0.35
        for box, depth in zip(boxes, depths, strict=True)
    )


def _hidden(box: Box, nearer: list[Box]) -> float:
    """Share of a thing's box that the boxes of nearer things cover."""
    left, upper, right, lower = box
    shared = (max(0.0, min(right, c) - max(left, a)) * max(0.0, min(lower, d) - max(upper, b)) for a, b, c, d in nearer)
    return sum(shared) / ((right - left) * (lower - upper))
