"""Convolutions and group norms tile by tile, with the result of the whole."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise, product
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from composer.networks.norm import GroupNorm, Way, normalising


class _Span(NamedTuple):
    """A tile along one side: where it lies, with what it has to see around it, and of that the tile itself."""

    own: slice
    seen: slice
    within: slice


class _Measured(Exception):
    """A norm has seen its input: what comes after it need not be computed."""


@torch.no_grad()
def run_in_tiles(
    network: Callable[[Tensor], Tensor],
    norms: Sequence[GroupNorm],
    x: Float[Tensor, "b c h w"],
    tile: int,
    reach: int,
) -> Float[Tensor, "b c2 h2 w2"]:
    """Runs a network on tiles of its input, with the outcome of running it on the whole, up to rounding.

    Each norm's statistics are those of the whole, measured norm after norm: for each the tiles are run up to it, with
    the statistics of those before it. So time grows by about half the number of norms; memory is that of the input, the
    output, and the largest tile.

    Args:
        network: Convolutions, group norms, and what works on each place alone; it may enlarge, by a whole factor.
        norms: All its group norms, in the order in which they compute.
        x: Its input.
        tile: Side of the tiles, in places of the input.
        reach: How far around a place the network looks, in places of the input; tiles are run with so much around them.

    Raises:
        ValueError: `tile` is below 1.
    """
    if tile < 1:
        raise ValueError(f"expected tiles of at least 1, found {tile}")
    h, w = x.shape[2:]
    if max(h, w) <= tile:
        return network(x)
    tiles = list(product(_spans(h, tile, reach), _spans(w, tile, reach)))
    known: dict[GroupNorm, Way] = dict.fromkeys(norms, _too_early)
    for norm in norms:
        moments = _measure(network, norm, known, x, tiles)
        known[norm] = partial(GroupNorm.by_moments, moments=moments)
    out = x.new_empty(())
    with normalising(known):
        for rows, columns in tiles:
            found = network(x[..., rows.seen, columns.seen])
            factor = found.shape[2] // (rows.seen.stop - rows.seen.start)
            if not out.ndim:
                out = found.new_empty(len(x), found.shape[1], h * factor, w * factor)
            inside = found[..., _times(rows.within, factor), _times(columns.within, factor)]
            out[..., _times(rows.own, factor), _times(columns.own, factor)] = inside
    return out


def _measure(
    network: Callable[[Tensor], Tensor],
    norm: GroupNorm,
    known: dict[GroupNorm, Way],
    x: Tensor,
    tiles: Sequence[tuple[_Span, _Span]],
) -> Float[Tensor, "2 b groups"]:
    """The mean and the mean square of each group of a norm's input, over all tiles."""
    total, places = torch.zeros(2, len(x), norm.num_groups, dtype=torch.float64, device=x.device), 0
    for rows, columns in tiles:

        def add(own: GroupNorm, values: Tensor, rows: _Span = rows, columns: _Span = columns) -> Tensor:
            nonlocal total, places
            factor = values.shape[2] // (rows.seen.stop - rows.seen.start)
            inside = values[..., _times(rows.within, factor), _times(columns.within, factor)]
            groups = inside.float().reshape(len(inside), own.num_groups, -1)
            count = groups.shape[2]
            total = total + torch.stack([groups.mean(2), groups.square().mean(2)]).double() * count
            places += count
            raise _Measured

        try:
            with normalising({**known, norm: add}):
                network(x[..., rows.seen, columns.seen])
        except _Measured:
            continue
        raise AssertionError("the network does not use this norm")
    return (total / places).float()


def _too_early(norm: GroupNorm, values: Tensor) -> Tensor:
    raise AssertionError("a norm computes before those that stand before it in the order")


def _spans(side: int, tile: int, reach: int) -> list[_Span]:
    """Tiles along one side, of much the same length."""
    n = math.ceil(side / tile)
    ends = [round(i * side / n) for i in range(n + 1)]
    spans = []
    for start, stop in pairwise(ends):
        seen = slice(max(0, start - reach), min(side, stop + reach))
        spans.append(_Span(slice(start, stop), seen, slice(start - seen.start, stop - seen.start)))
    return spans


def _times(span: slice, factor: int) -> slice:
    return slice(span.start * factor, span.stop * factor)
