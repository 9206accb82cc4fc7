"""Large images tile by tile: memory for one tile, whatever the image's size."""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor

from composer.conditioning import Conditioning
from composer.diffusion.denoiser import Estimator
from composer.networks.norm import GroupNorm, normalising


class Tiled:
    """An estimator that runs on tiles, one after the other at every sampling step, blended where they overlap.

    Neighbours overlap by a quarter of a tile or more. The outer quarter of the overlap has weight 0, as a tile
    lacks context near its border; in the middle half, one tile fades into the next (raised cosine).

    Group norms would use each tile's own statistics. Instead they use the whole image's, estimated by a first pass over
    every other tile: about a third more time, and three times closer to the network's result on the whole image.
    Attention does not reach beyond a tile.

    Args:
        denoiser: Estimates a tile.
        tile: Side of the tiles, in pixels.
        stride: The sides of the network's images must be multiples of it; tiles start at such multiples.
        norms: The network's group norms.

    Raises:
        ValueError: `tile` is not a multiple of `stride`, or too small to overlap.
    """

    def __init__(self, denoiser: Estimator, tile: int, stride: int, norms: Sequence[GroupNorm] = ()):
        if tile < 2 * stride or tile % stride:
            raise ValueError(
                f"expected tiles whose side is a multiple of {stride} pixels, at least {2 * stride}, found {tile}"
            )
        self.denoiser, self.tile, self.stride, self.overlap = denoiser, tile, stride, tile // 4
        self.norms = norms

    def prepare(self, cond: Conditioning) -> Conditioning:
        return self.denoiser.prepare(cond)

    def __call__(
        self, x: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"], cond: Conditioning
    ) -> Float[Tensor, "b c h w"]:
        """Estimates the clean image; see `Denoiser`. An image no larger than a tile is not split."""
        h, w = x.shape[2:]
        if max(h, w) <= self.tile:
            return self.denoiser(x, sigma, cond)
        total, weights = torch.zeros_like(x, dtype=torch.float32), x.new_zeros((h, w), dtype=torch.float32)
        moments = self._measure(x, sigma, cond)
        with normalising({norm: partial(GroupNorm.by_moments, moments=found) for norm, found in moments.items()}):
            for rows, columns in product(self._spans(h), self._spans(w)):
                weight = (self._fade(rows, h)[:, None] * self._fade(columns, w)).to(x.device)
                estimate = self.denoiser(x[..., rows, columns], sigma, cond.crop(rows, columns))
                total[..., rows, columns] += weight * estimate
                weights[rows, columns] += weight
        return total.div_(weights)

    def _measure(self, x: Tensor, sigma: Tensor, cond: Conditioning) -> dict[GroupNorm, Float[Tensor, "2 b groups"]]:
        """Measures the statistics on adjacent tiles, on every other one if there are more than four."""
        if not self.norms:
            return {}
        places = list(product(enumerate(self._beside(x.shape[2])), enumerate(self._beside(x.shape[3]))))
        seen: dict[GroupNorm, list[Tensor]] = {norm: [] for norm in self.norms}

        def remember(norm: GroupNorm, values: Tensor) -> Tensor:
            out, moments = norm.with_moments(values)
            seen[norm].append(moments)
            return out

        with normalising(dict.fromkeys(self.norms, remember)):
            for (i, rows), (j, columns) in places:
                if len(places) <= 4 or (i + j) % 2 == 0:
                    self.denoiser(x[..., rows, columns], sigma, cond.crop(rows, columns))
        return {norm: torch.stack(moments).mean(0) for norm, moments in seen.items()}

    def _beside(self, side: int) -> list[slice]:
        """Tiles along one side that hardly overlap: as few and as short as possible."""
        n = math.ceil(side / self.tile)
        length = math.ceil(side / n / self.stride) * self.stride
        starts = (min(i * length, side - length) for i in range(n))
        return [slice(start, start + length) for start in starts]

    def _spans(self, side: int) -> Iterator[slice]:
        """Tiles along one side, overlapping by a quarter or more: as few as possible, evenly spaced."""
        tile = min(self.tile, side)
        strides = (side - tile) // self.stride
        steps = math.ceil(strides / ((self.tile - self.overlap) // self.stride))
        for i in range(steps + 1):
            start = i * strides // max(steps, 1) * self.stride
            yield slice(start, start + tile)

    def _fade(self, span: slice, side: int) -> Float[Tensor, " n"]:
        """Weights of a tile's pixels along one side; 1 up to the image's own border."""
        n = span.stop - span.start
        into = (torch.arange(n) + 0.5) / self.overlap  # 0 at the border, 1 where the overlap ends
        rise = torch.sin((2 * into - 0.5).clamp(0, 1) * (math.pi / 2)) ** 2
        fade = torch.ones(n)
        if span.start > 0:
            fade *= rise
        if span.stop < side:
            fade *= rise.flip(0)
        return fade
