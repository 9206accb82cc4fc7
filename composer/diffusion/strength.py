"""How much, when and where a condition counts, as weights of sets of conditions for guidance.

Strengths s_1 >= s_2 >= ... of conditions, at one pixel and one noise level, stand for the sum of (s_i - s_(i+1)) times
the estimate under conditions 1 to i, and 1 - s_1 times that under none: the weights of the
sets with a condition sum to its strength, all weights sum to 1, and n distinct strengths cost at most n + 1 estimates
(the Choquet integral of the estimates). With strengths of only 0 and 1 this is a plain subset; a strength above 1
guides further towards that condition.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from composer.diffusion.denoiser import level

Names = frozenset[str]


@dataclass(frozen=True)
class Strength:
    """How much, when and where one condition counts.

    Attributes:
        weight: 0 leaves the condition out, 1 is full, more guides further towards it.
        interval: Lowest and highest noise level at which it counts, as the cosine schedule's time in [0, 1]; sampling
            starts at 1, layout is decided around 0.8, details below 0.3.
        region: (1 1 h w) in [0, 1], where it counts; None is everywhere.

    Raises:
        ValueError: A number is out of its range.
    """

    weight: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    region: Float[Tensor, "1 1 h w"] | None = None

    def __post_init__(self) -> None:
        weight: Any = self.weight
        if not isinstance(weight, float | int):
            raise ValueError(f"expected a weight such as Strength(0.5), found {weight!r}")
        ends: Any = self.interval
        if not isinstance(ends, Sequence) or len(ends) != 2 or isinstance(ends, str):
            raise ValueError(f"expected an interval of two times such as (0.2, 0.8), found {ends!r}")
        region: Any = self.region
        if not isinstance(region, Tensor | None):
            raise ValueError(f'expected a region of numbers such as open_region("0.1,0.2,0.6,0.9"), found {region!r}')
        low, high = self.interval
        if self.weight < 0 or not 0 <= low < high <= 1:
            raise ValueError(
                f"expected a weight of at least 0 and an interval within 0-1, found {self.weight} and {low}-{high}"
            )

    def counts(self, time: float) -> bool:
        """Whether it counts at a noise level, given as the cosine schedule's time."""
        return self.interval[0] <= time <= self.interval[1]

    def map(self, size: tuple[int, int]) -> Float[Tensor, "1 1 #h #w"]:
        """The strength as a map of that size, or as a single number, where it counts."""
        if self.region is None:
            return torch.full((1, 1, 1, 1), self.weight)
        return self.weight * F.interpolate(self.region, size, mode="bilinear", antialias=True)


def weigh(
    names: Sequence[str], strengths: Mapping[str, Strength], size: tuple[int, int]
) -> dict[Names, Callable[[float], float | Tensor]]:
    """The sets of conditions that count somewhere, at some noise level, each with its weight as a function of sigma.

    Args:
        names: The given conditions.
        strengths: Of the conditions; 1 by default.
        size: Height and width of the images.
    """

    def counting(time: float) -> Names:
        return frozenset(name for name in names if name not in strengths or strengths[name].counts(time))

    ends = sorted({0.0, 1.0, *(end for s in strengths.values() for end in s.interval)})
    times = [*ends, *((a + b) / 2 for a, b in pairwise(ends))]  # one within each interval between ends
    maps = {name: strengths[name].map(size) if name in strengths else torch.ones(1, 1, 1, 1) for name in names}
    stretches = dict.fromkeys(counting(time) for time in times)
    shares = {now: _shares({name: maps[name] * (name in now) for name in names}) for now in stretches}

    def weight(subset: Names) -> Callable[[float], float | Tensor]:
        return lambda sigma: shares[counting(float(level(torch.tensor(sigma))))].get(subset, 0.0)

    return {subset: weight(subset) for subset in dict.fromkeys(s for part in shares.values() for s in part)}


def _shares(maps: Mapping[str, Tensor]) -> dict[Names, float | Tensor]:
    """The weight of each set of conditions at one noise level: a number, or a map (1 1 h w)."""
    names, shape = list(maps), max((m.shape for m in maps.values()), key=math.prod, default=torch.Size((1, 1, 1, 1)))
    flat = [m.expand(shape).flatten() for m in maps.values()]
    strengths = torch.stack(flat, 1) if names else torch.empty(1, 0)
    falling, order = strengths.sort(1, descending=True)
    steps = F.pad(F.pad(falling, (1, 0), value=1.0), (0, 1)).diff(dim=1).neg()  # 1 - s_1, s_1 - s_2, ..., s_n - 0
    bits = F.pad((1 << order).cumsum(1), (1, 0))  # the sets: none, the strongest, the two strongest, ...
    found: dict[Names, float | Tensor] = {}
    for code in sorted(set(bits[steps != 0].tolist())):
        share = torch.where(bits == code, steps, 0.0).sum(1)
        subset = frozenset(name for i, name in enumerate(names) if code >> i & 1)
        found[subset] = float(share[0]) if len(share) == 1 else share.view(shape)
    return found
