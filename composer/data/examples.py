"""The examples' own pictures."""

import torch
from torch import Tensor

from composer.data.datasets import Photographs
from composer.scenes import render_batch

SIZE = 256
"""Their height and width, in pixels."""


def example(name: str) -> Tensor:
    """One of the examples' own pictures, (3 h w) in [-1, 1]."""
    if name.startswith("scene"):
        scene: Tensor = render_batch("val", [int(name.removeprefix("scene"))], SIZE)["image"][0]
        return scene
    if name == "drawing":
        return _drawing()
    suffix = "jpg" if name in ("rocket", "retina", "hubble_deep_field") else "png"
    photograph: Tensor = Photographs(SIZE, [f"{name}.{suffix}"], smallest=1.0).row(0, 2)["image"]
    return photograph


def _drawing() -> Tensor:
    """What a person paints in half a minute: sky, ground, a red ball, a yellow box."""
    y, x = torch.meshgrid(torch.linspace(0, 1, SIZE), torch.linspace(0, 1, SIZE), indexing="ij")
    layers: list[tuple[Tensor, tuple[float, float, float]]] = [
        (y > 0.3, (0.33, 0.45, 0.18)),
        (((x - 0.32) ** 2 + (y - 0.6) ** 2) < 0.17**2, (0.8, 0.1, 0.1)),
        (((x - 0.72).abs() < 0.12) & ((y - 0.62).abs() < 0.12), (0.9, 0.8, 0.1)),
    ]
    image = torch.tensor([0.65, 0.8, 0.95]).view(3, 1, 1).expand(3, SIZE, SIZE)
    for where, colour in layers:
        image = torch.where(where, torch.tensor(colour).view(3, 1, 1), image)
    return image * 2 - 1
