"""Samplers. A sampler takes x, decreasing noise levels and `denoise(x, sigma)`, which includes conditions, guidance and
thresholds. A last level of 0 ends on the clean image; increasing levels invert (Composer, section 3.4).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(x (b c h w), sigma (b,)) -> estimate of the clean image (b c h w)."""

Progress = Callable[[Sequence[int]], Iterator[int] | Sequence[int]]
"""Wraps the sampling steps to show progress, such as `rich.progress.track` or tqdm."""


@runtime_checkable
class Watcher(Protocol):
    """A `Progress` that also sees the running estimates. What it raises ends the sampling."""

    def __call__(self, steps: Sequence[int]) -> Iterator[int] | Sequence[int]:
        """Wraps the sampling steps."""

    def see(self, estimate: Callable[[], Tensor]) -> None:
        """Takes the latest estimate of the clean images, (b 3 h w) about [-1, 1], which is decoded if it is called."""


def watched(denoise: Denoise, progress: Progress | None, decode: Callable[[Tensor], Tensor]) -> Denoise:
    """Shows each estimate to a `Watcher`; any other progress leaves `denoise` as it is.

    Args:
        denoise: What a sampler calls.
        progress: Wraps the steps.
        decode: Makes images of estimates.
    """
    if not isinstance(progress, Watcher):
        return denoise
    see = progress.see

    def seen(x: Tensor, sigma: Tensor) -> Tensor:
        clean = denoise(x, sigma)
        see(lambda: decode(clean))
        return clean

    return seen


class Sampler(Protocol):
    """The signature of `euler`, `heun` and `dpmpp_2m`."""

    def __call__(self, denoise: Denoise, x: Tensor, sigmas: Tensor, progress: Progress = ...) -> Tensor: ...


def cosine_sigmas(steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0) -> Float[Tensor, " n"]:
    """Noise levels evenly spaced in the cosine schedule's time, from sigma_max down, then 0: `steps + 1` values."""
    t = torch.linspace(math.atan(sigma_max), math.atan(sigma_min), steps, dtype=torch.float64)
    return torch.cat([t.tan(), t.new_zeros(1)]).float()


def karras_sigmas(
    steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Float[Tensor, " n"]:
    """Noise levels of Karras et al. (2022), eq. 5, from sigma_max down, then 0: `steps + 1` values."""
    if steps < 1:
        raise ValueError(f"expected at least 1 step, found {steps}")
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return torch.cat([(high + ramp * (low - high)) ** rho, ramp.new_zeros(1)]).float()


def latents(seeds: Sequence[int], shape: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
    """Draws standard normal noise, each row from its own seed on the CPU, whatever the batch and the device."""
    rows = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows).to(device)


def _silent(steps: Sequence[int]) -> Sequence[int]:
    return steps


@torch.no_grad()
def euler(denoise: Denoise, x: Tensor, sigmas: Tensor, progress: Progress = _silent) -> Tensor:
    """Euler's method on the probability flow (Karras et al. 2022, algorithm 1 without the correction): DDIM, eta 0."""
    for i in progress(range(len(sigmas) - 1)):
        sigma, to = float(sigmas[i]), float(sigmas[i + 1])
        x = torch.lerp(denoise(x, _rows(sigma, x)), x, to / sigma)
    return x


@torch.no_grad()
def heun(denoise: Denoise, x: Tensor, sigmas: Tensor, progress: Progress = _silent) -> Tensor:
    """Heun's second-order method (Karras et al. 2022, algorithm 1): two network calls per step."""
    for i in progress(range(len(sigmas) - 1)):
        sigma, to = float(sigmas[i]), float(sigmas[i + 1])
        slope = (x - denoise(x, _rows(sigma, x))) / sigma
        ahead = x + slope * (to - sigma)
        if to > 0:
            slope = (slope + (ahead - denoise(ahead, _rows(to, x))) / to) / 2
            ahead = x + slope * (to - sigma)
        x = ahead
    return x


@torch.no_grad()
def dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Tensor, progress: Progress = _silent) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2) in sigma space: one network call per step, second order.

    The step to 0 is of first order, where the second-order formula has no limit.
    """
    before: Tensor | None = None
    h_before = 0.0
    for i in progress(range(len(sigmas) - 1)):
        sigma, to = float(sigmas[i]), float(sigmas[i + 1])
        clean = denoise(x, _rows(sigma, x))
        if to == 0:
            return clean
        h = math.log(sigma / to)
        estimate = clean if before is None else clean + (clean - before) * (h / (2 * h_before))
        x = torch.lerp(estimate, x, to / sigma)
        before, h_before = clean, h
    return x


@torch.no_grad()
def ancestral(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    seeds: Sequence[int],
    eta: float = 1.0,
    progress: Progress = _silent,
) -> Tensor:
    """Ancestral sampling: DDPM at eta 1, DDIM at eta 0 (Song et al. 2021, eq. 16, in sigma space).

    Args:
        denoise: (x, sigma) -> estimate of the clean image.
        x: (b c h w) start, of noise level sigmas[0].
        sigmas: Decreasing noise levels.
        seeds: b seeds; each row's noise comes from its own generator, independent of `latents`.
        eta: Share of the fresh noise, in [0, 1].
        progress: Wraps the steps.
    """
    generators = [torch.Generator().manual_seed(seed ^ 0x5EED) for seed in seeds]
    for i in progress(range(len(sigmas) - 1)):
        sigma, to = float(sigmas[i]), float(sigmas[i + 1])
        up = eta * to * math.sqrt(max(0.0, 1 - (to / sigma) ** 2))
        down = math.sqrt(max(0.0, to**2 - up**2))
        x = torch.lerp(denoise(x, _rows(sigma, x)), x, down / sigma)
        if up > 0:
            fresh = torch.stack([torch.randn(x.shape[1:], generator=generator) for generator in generators])
            x = x + up * fresh.to(x)
    return x


def _rows(sigma: float, x: Tensor) -> Tensor:
    return x.new_full((len(x),), sigma)
