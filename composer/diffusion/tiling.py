"""Large images tile by tile: the network needs the memory of a tile, whatever the image's size."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from composer.conditioning import Conditioning
from composer.diffusion.denoiser import Estimator

Forward = Callable[[nn.GroupNorm, Tensor], Tensor]


class Tiled:
    """An estimator that sees tiles: one after the other at every step of a sampling, blended where they overlap.

    Neighbours overlap by a quarter of a tile or more. The outer quarter of that counts for nothing, since near its
    border a tile misses what lies around; over the half in the middle one tile fades into the next (raised cosine).

    A group norm would treat each tile by its own statistics. It gets the whole image's, as a first look at every other
    tile finds them: about a third more time, and three times as close to what the network makes of the whole.
    Attention does not reach beyond a tile.

    Args:
        denoiser: What estimates a tile.
        tile: Side of the tiles, in pixels.
        stride: What the sides of the network's images are multiples of; tiles begin at such multiples.
        norms: The network's group norms.

    Raises:
        ValueError: `tile` is no multiple of `stride`, or too small to overlap.
    """

    def __init__(self, denoiser: Estimator, tile: int, stride: int, norms: Sequence[nn.GroupNorm] = ()):
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
        """Estimates the clean image; see `Denoiser`. An image that is no larger than a tile is estimated as a whole."""
        h, w = x.shape[2:]
        if max(h, w) <= self.tile:
            return self.denoiser(x, sigma, cond)
        total, weights = torch.zeros_like(x, dtype=torch.float32), x.new_zeros((h, w), dtype=torch.float32)
        with _normalising(self._look(x, sigma, cond)):
            for rows, columns in product(self._spans(h), self._spans(w)):
                weight = (self._fade(rows, h)[:, None] * self._fade(columns, w)).to(x.device)
                estimate = self.denoiser(x[..., rows, columns], sigma, cond.crop(rows, columns))
                total[..., rows, columns] += weight * estimate
                weights[rows, columns] += weight
        return total.div_(weights)

    def _look(self, x: Tensor, sigma: Tensor, cond: Conditioning) -> dict[nn.GroupNorm, Forward]:
        """Finds the statistics in tiles side by side, in every other one if there are more than four."""
        if not self.norms:
            return {}
        places = list(product(enumerate(self._beside(x.shape[2])), enumerate(self._beside(x.shape[3]))))
        seen: dict[nn.GroupNorm, list[Tensor]] = {norm: [] for norm in self.norms}

        def remember(norm: nn.GroupNorm, values: Tensor) -> Tensor:
            out, moments = _with_moments(norm, values)
            seen[norm].append(moments)
            return out

        with _normalising(dict.fromkeys(self.norms, remember)):
            for (i, rows), (j, columns) in places:
                if len(places) <= 4 or (i + j) % 2 == 0:
                    self.denoiser(x[..., rows, columns], sigma, cond.crop(rows, columns))
        return {norm: _alike(torch.stack(moments).mean(0)) for norm, moments in seen.items()}

    def _beside(self, side: int) -> list[slice]:
        """Tiles along one side that overlap by next to nothing: as few as there can be, no longer than they must."""
        n = math.ceil(side / self.tile)
        length = math.ceil(side / n / self.stride) * self.stride
        starts = (min(i * length, side - length) for i in range(n))
        return [slice(start, start + length) for start in starts]

    def _spans(self, side: int) -> Iterator[slice]:
        """Tiles along one side, overlapping by a quarter or more: as few as there can be, spread evenly."""
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


def _with_moments(
    norm: nn.GroupNorm, values: Float[Tensor, "b c h w"]
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "2 b groups"]]:
    """A group norm as it is, and the mean and mean square of each group, which it computes anyway."""
    b, c, h, w = values.shape
    values = values if values.device.type == "cpu" else values.float()  # as autocast has it on a GPU
    if not any(values.is_contiguous(memory_format=order) for order in (torch.contiguous_format, torch.channels_last)):
        values = values.contiguous()  # which torch 2.6 asks for
    out, mean, inverse = torch.native_group_norm(values, norm.weight, norm.bias, b, c, h * w, norm.num_groups, norm.eps)
    mean, inverse = mean.float(), inverse.float()
    return out, torch.stack([mean, inverse**-2 - norm.eps + mean.square()])


def _alike(moments: Float[Tensor, "2 b groups"]) -> Forward:
    """A group norm by given moments, whatever those of its input are."""

    def normalise(norm: nn.GroupNorm, values: Tensor) -> Tensor:
        means, squares = moments.repeat_interleave(norm.num_channels // norm.num_groups, dim=2)
        variances = (squares - means.square()).clamp(min=0)
        rows = [  # a batch norm takes the statistics of one row
            F.batch_norm(values[i : i + 1], means[i], variances[i], norm.weight, norm.bias, eps=norm.eps)
            for i in range(len(values))
        ]
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    return normalise


@contextmanager
def _normalising(ways: dict[nn.GroupNorm, Forward]) -> Iterator[None]:
    """Has group norms compute in another way."""
    for norm, way in ways.items():
        norm.forward = partial(way, norm)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm in ways:
            del norm.forward
