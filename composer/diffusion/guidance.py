"""Guidance, thresholding and region locks: functions from denoisers to denoisers.

Guidance is one idea, a sum of w_k D(x | c_k) whose weights sum to 1. Classifier-free guidance is
[(all, w), (none, 1 - w)] (Ho and Salimans 2021); Composer's two-sided guidance [(c2, w), (c1, 1 - w)] (eq. 2);
strengths of single conditions, AND, NOT, intervals of noise levels and regions are the same list.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from composer.conditioning import Conditioning, stack
from composer.diffusion.denoiser import Estimator
from composer.diffusion.samplers import Denoise

Weight = float | Tensor | Callable[[float], float | Tensor]
"""A number, a map (b 1 h w) or (1 1 h w), or one of them as a function of sigma."""


class Term(NamedTuple):
    """A conditioning, the weight of its estimate, and the denoiser that makes it; None is the guided one."""

    cond: Conditioning
    weight: Weight
    by: Estimator | None = None


def guide(denoiser: Estimator, terms: Sequence[Term]) -> Denoise:
    """Sums w_k D(x | c_k); per step, all terms of one network are evaluated in one call.

    Conditionings are stacked, and their keys and values computed, at the first step; a term whose weight is exactly 0
    at a noise level is not evaluated there.

    Args:
        denoiser: D(x; sigma, cond).
        terms: Conditionings of 1 or b rows and their weights.

    Raises:
        ValueError: no terms, or the weights of a step do not sum to 1.
    """
    terms = list(terms)
    if not terms:
        raise ValueError("guidance needs at least one term")
    prepared: dict[tuple[int, tuple[int, ...]], Conditioning] = {}

    def estimate_all(by: Estimator, x: Tensor, sigma: Tensor, used: tuple[int, ...]) -> tuple[Tensor, ...]:
        key = (len(x), used)
        if key not in prepared:
            prepared[key] = by.prepare(stack([terms[i].cond for i in used], len(x)))
        k = len(used)
        estimates: tuple[Tensor, ...] = by(x.repeat(k, 1, 1, 1), sigma.repeat(k), prepared[key]).chunk(k)
        return estimates

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        weights = [_at(term.weight, float(sigma[0])) for term in terms]
        _check(weights)
        used = [i for i, w in enumerate(weights) if isinstance(w, Tensor) or w != 0]
        estimates: dict[int, Tensor] = {}
        for by in {id(terms[i].by): terms[i].by for i in used}.values():
            own = tuple(i for i in used if terms[i].by is by)
            estimates |= zip(own, estimate_all(by or denoiser, x, sigma, own), strict=True)
        if len(used) == 1 and not isinstance(weights[used[0]], Tensor):
            return estimates[used[0]]
        total = torch.zeros_like(estimates[used[0]])
        for i in used:
            estimate = estimates[i]
            w = weights[i]
            total += estimate * (w.to(estimate) if isinstance(w, Tensor) else w)
        return total

    return denoise


def _at(weight: Weight, sigma: float) -> float | Tensor:
    return weight if isinstance(weight, (int, float, Tensor)) else weight(sigma)


def _check(weights: Sequence[float | Tensor]) -> None:
    total = sum(weights[1:], start=weights[0])
    error = float((total - 1).abs().max()) if isinstance(total, Tensor) else abs(total - 1)
    if error > 1e-4:
        raise ValueError(f"the weights of a guided step must sum to 1; the sum differs from it by {error:.3g}")


def threshold(denoise: Denoise, percentile: float | None = None) -> Denoise:
    """Keeps the estimate within [-1, 1] (Imagen, section 2.3).

    Args:
        denoise: What to bound.
        percentile: None clips (static). Else, in (0, 1), the share of values that stay unclipped (dynamic): with s that
            quantile of |x0| in an image, at least 1, the image is clipped to [-s, s] and divided by s. Imagen: 0.995.
            An image with a NaN becomes NaN everywhere; the others of its batch are not affected.
    """
    if percentile is None:
        return lambda x, sigma: denoise(x, sigma).clamp(-1, 1)
    if not 0 < percentile < 1:
        raise ValueError(f"expected a percentile in (0, 1), such as 0.995, found {percentile}")

    def bounded(x: Tensor, sigma: Tensor) -> Tensor:
        clean = denoise(x, sigma)
        wide = clean.float()
        s = quantile(wide.abs().flatten(1), percentile).clamp(min=1)
        return (wide / s[:, None, None, None]).clamp(-1, 1).to(clean.dtype)

    return bounded


def quantile(values: Float[Tensor, "b n"], share: float) -> Float[Tensor, " b"]:
    """The quantile of each row as `torch.quantile` defines it: linear between two values, NaN if the row has one.

    Exact, at any size. On a CPU, large rows and shares near 1 take a fraction of `torch.quantile`'s time; see
    `benchmarks/thresholding.py`.
    """
    n = values.shape[1]
    position = share * (n - 1)
    low = int(position)
    if values.device.type == "cpu" and n >= 2**16:  # elsewhere a branch on values would wait for the device
        top = torch.stack([_top(row, n - low) for row in values])
    else:
        top = values.topk(n - low, dim=1, sorted=False).values
    ends = top.topk(min(2, n - low), dim=1, largest=False).values
    found = ends[:, 0] if low == position else torch.lerp(ends[:, 0], ends[:, 1], position - low)
    largest = top.amax(1)
    return torch.where(largest.isnan(), largest, found)


def _top(row: Float[Tensor, " n"], k: int) -> Float[Tensor, " k"]:
    """The k largest values in any order, searched among values above a bound from a sample of the row.

    The bound is lowered by four standard deviations of the sample's count. If still fewer than k values reach it, or
    too many to save time, the whole row is searched: the sample affects only the time.
    """
    known = row.detach().float()
    step = len(row) // 2**15 | 1  # odd, to sample all columns of an image
    expected = k / step
    sample = known[::step]
    within = min(len(sample), math.ceil(expected + 4 * math.sqrt(expected)))
    bound = sample.topk(within, sorted=False).values.amin()
    reached = ~(known.numpy() < bound.numpy())  # selecting is several times faster in numpy; NaN reaches every bound
    if k <= np.count_nonzero(reached) <= len(row) // 4:
        row = row[torch.from_numpy(np.flatnonzero(reached))]
    return row.topk(k, sorted=False).values


def lock(denoise: Denoise, image: Float[Tensor, "#b c h w"], keep: Float[Tensor, "#b 1 h w"]) -> Denoise:
    """Fixes a region: the estimate is `image` where `keep` is 1, free where it is 0, and a blend in between.

    Args:
        denoise: What to lock.
        image: Content of the kept region, in [-1, 1].
        keep: 1 where the image stays.
    """
    return lambda x, sigma: torch.lerp(denoise(x, sigma), image.to(x), keep.to(x))
