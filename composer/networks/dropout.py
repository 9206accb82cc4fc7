"""Dropout whose draws belong to the rows, whatever batch and process they are in."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from composer.decomposition import draw

PRECISION = 1 << 24


class Dropout(nn.Module):
    """Dropout that is a function of each row's seed, once `seed_dropout` has given it one.

    So a step draws the same on one process as on several, and a network that recomputes its activations draws again
    what it drew. Without seeds it is `torch.nn.Dropout`.

    Args:
        rate: Probability of zero, in [0, 1).
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate
        self.seeds: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Drops numbers of (b ...) in training, and scales the others by 1 / (1 - rate)."""
        if not self.training or self.rate == 0:
            return x
        if self.seeds is None:
            return F.dropout(x, self.rate)
        places = torch.arange(x[0].numel(), device=x.device) * 0x632BE59BD9B4E019 % (1 << 62)
        kept = draw(self.seeds.to(x.device)[:, None] + places, 0, PRECISION) >= self.rate * PRECISION
        return x * kept.view_as(x) / (1 - self.rate)

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


def seed_dropout(module: nn.Module, seeds: Tensor) -> None:
    """Gives all `Dropout` of a module the seeds of the rows of its next batch, each its own draws of them.

    Args:
        module: Any module.
        seeds: (b,) int64.
    """
    layers = (layer for layer in module.modules() if isinstance(layer, Dropout))
    for i, layer in enumerate(layers, 1):
        layer.seeds = draw(seeds, i, 1 << 62) if layer.rate else None
