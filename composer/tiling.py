"""Large images tile by tile: the network needs the memory of a tile, whatever the image's size."""

import math
from collections.abc import Iterator
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor

from .conditioning import Conditioning
from .denoiser import Estimator


class Tiled:
    """An estimator that sees tiles: one after the other at every step of a sampling, blended where they overlap.

    Neighbours overlap by a quarter of a tile or more. The outer quarter of that counts for nothing, since near its
    border a tile misses what lies around; over the half in the middle one tile fades into the next (raised cosine).
    Each tile is normalised by its own statistics, as the crops of training are, which leaves the result close to the
    whole image's without being equal. Attention does not reach beyond a tile.

    Args:
        denoiser: What estimates a tile.
        tile: Side of the tiles, in pixels.
        stride: What the sides of the network's images are multiples of; tiles begin at such multiples.

    Raises:
        ValueError: `tile` is no multiple of `stride`, or too small to overlap.
    """

    def __init__(self, denoiser: Estimator, tile: int, stride: int):
        if tile < 2 * stride or tile % stride:
            raise ValueError(
                f"expected tiles whose side is a multiple of {stride} pixels, at least {2 * stride}, found {tile}"
            )
        self.denoiser, self.tile, self.stride, self.overlap = denoiser, tile, stride, tile // 4

    def prepare(self, cond: Conditioning) -> Conditioning:
        return self.denoiser.prepare(cond)

    def __call__(
        self, x: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"], cond: Conditioning
    ) -> Float[Tensor, "b c h w"]:
        """Estimates the clean image; see `Denoiser`. An image that is no larger than a tile is estimated as a whole."""
        h, w = x.shape[2:]
        if max(h, w) <= self.tile:
            return self.denoiser(x, sigma, cond)
        total, weights = torch.zeros_like(x, dtype=torch.float32), x.new_zeros((h, w), dtype=torch.float32)
        for rows, columns in product(self._spans(h), self._spans(w)):
            weight = (self._fade(rows, h)[:, None] * self._fade(columns, w)).to(x.device)
            estimate = self.denoiser(x[..., rows, columns], sigma, cond.crop(rows, columns))
            total[..., rows, columns] += weight * estimate
            weights[rows, columns] += weight
        return total.div_(weights)

    def _spans(self, side: int) -> Iterator[slice]:
        """Where tiles lie along one side: as few as overlap enough, spread evenly."""
        tile = min(self.tile, side)
        strides = (side - tile) // self.stride
        steps = math.ceil(strides / ((self.tile - self.overlap) // self.stride))
        for i in range(steps + 1):
            start = i * strides // max(steps, 1) * self.stride
            yield slice(start, start + tile)

    def _fade(self, span: slice, side: int) -> Float[Tensor, " n"]:
        """What the pixels of a tile weigh along one side; at the image's own border they weigh all."""
        n = span.stop - span.start
        into = (torch.arange(n) + 0.5) / self.overlap  # 0 at the border, 1 where the overlap ends
        rise = torch.sin((2 * into - 0.5).clamp(0, 1) * (math.pi / 2)) ** 2
        fade = torch.ones(n)
        if span.start > 0:
            fade *= rise
        if span.stop < side:
            fade *= rise.flip(0)
        return fade
