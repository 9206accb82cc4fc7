"""The primitives that scenes are made of, as signed distance fields."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Points = Float[Tensor, "3 n"]
Field = Callable[[Tensor], Tensor]


def _cube(p: Points) -> Float[Tensor, " n"]:
    q = p.abs() - 0.70
    return q.clamp(min=0).square().sum(0).sqrt() + q.amax(0).clamp(max=0) - 0.06


def _cylinder(p: Points) -> Float[Tensor, " n"]:
    across, along = (p[0].square() + p[2].square()).sqrt() - 0.70, p[1].abs() - 0.80
    outside = (across.clamp(min=0).square() + along.clamp(min=0).square()).sqrt()
    return outside + torch.maximum(across, along).clamp(max=0) - 0.06


def _cone(p: Points) -> Float[Tensor, " n"]:
    # The larger of the distances to the mantle and to the base: a lower bound of the distance, which tracing may use.
    mantle = ((p[0].square() + p[2].square()).sqrt() * 2.0 + p[1] - 1.0) / 5.0**0.5
    return torch.maximum(mantle, -1.0 - p[1])


def _torus(p: Points) -> Float[Tensor, " n"]:
    around = (p[0].square() + p[1].square()).sqrt() - 0.70
    return (around.square() + p[2].square()).sqrt() - 0.30


@dataclass(frozen=True)
class Solid:
    """A primitive of unit size: its signed distance and dimensions.

    Args:
        distance: Signed distance at points of the solid's frame, or a lower bound of it.
        lift: Height of the frame's origin when the solid rests on the ground.
        bound: Radius of its bounding sphere about the origin.
        width: Radius of the circle on the ground that holds it.
        top: Its height.
    """

    distance: Field
    lift: float
    bound: float
    width: float
    top: float


SOLIDS = {
    "sphere": Solid(lambda p: p.square().sum(0).sqrt() - 1.0, 1.0, 1.0, 1.0, 2.0),
    "cube": Solid(_cube, 0.76, 1.28, 1.06, 1.52),
    "cylinder": Solid(_cylinder, 0.86, 1.13, 0.76, 1.72),
    "cone": Solid(_cone, 1.0, 1.4143, 1.0, 2.0),
    "torus": Solid(_torus, 1.0, 1.0, 1.0, 2.0),
}
