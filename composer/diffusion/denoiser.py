"""The denoiser: an estimate of the clean image from a noisy one, and how it is trained.

Noise is sigma throughout: x = x0 + sigma * noise (Karras et al. 2022). The papers' variance-preserving
z = alpha * x0 + s * noise is x = z / alpha with sigma = s / alpha.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import nullcontext
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from composer.conditioning import Conditioning
from composer.devices import to_float64
from composer.diffusion.samplers import karras_sigmas
from composer.networks.interface import Network
from composer.storage.building import Buildable

Target = Literal["eps", "x0", "v"]


@runtime_checkable
class Estimator(Protocol):
    """What guidance calls: a `Denoiser`, or a wrapper of one."""

    def __call__(self, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """Estimates the clean image from a noisy one, its noise level and its conditioning."""

    def prepare(self, cond: Conditioning) -> Conditioning:
        """Precomputes what depends on `cond` alone, so that sampling steps do not repeat it."""


class NoiseLevels(Buildable, ABC):
    """A distribution of noise levels, as its quantile function."""

    @abstractmethod
    def sigma(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """The quantile of the noise levels: a share `u` in (0, 1) of them lies below it."""

    def step(self, sigma: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Where a noise level lies between the steps of the schedule, in thousandths: step 250 is 0.25.

        Raises:
            ValueError: This distribution has no steps.
        """
        raise ValueError(f"{type(self).__name__} has no steps: leave the denoiser's time at cosine")


class Cosine(NoiseLevels):
    """The cosine schedule in continuous time: sigma = tan(pi t / 2), t ~ U(0, 1).

    Nichol and Dhariwal (2021) without their offset, as Imagen uses it.

    Args:
        t_min: Smallest time, in [0, 1]; keeps sigma away from 0.
        t_max: Largest time; keeps sigma finite.
    """

    def __init__(self, t_min: float = 1e-3, t_max: float = 0.9946):
        if not 0 < t_min < t_max < 1:
            raise ValueError(f"expected 0 < t_min < t_max < 1, found {t_min} and {t_max}")
        self.t_min, self.t_max = t_min, t_max

    def sigma(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return torch.tan(math.pi / 2 * torch.lerp(torch.full_like(u, self.t_min), torch.full_like(u, self.t_max), u))


class Stepped(NoiseLevels):
    """The noise levels of a schedule with steps; between the steps ln(sigma) is interpolated.

    Args:
        betas: One per step: the share of the variance that becomes noise.
    """

    def __init__(self, betas: Float[Tensor, " n"]):
        kept = (1 - betas.double()).cumprod(0)
        self.table = ((1 - kept) / kept).log() / 2

    def sigma(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        position = to_float64(u) * (len(self.table) - 1)
        table = self.table.to(position.device)
        low = position.long().clamp(max=len(table) - 2)
        return torch.lerp(table[low], table[low + 1], position - low).exp().float().to(u.device)

    def step(self, sigma: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        wanted = to_float64(sigma).log()
        table = self.table.to(wanted.device)
        high = torch.searchsorted(table, wanted).clamp(1, len(table) - 1)
        share = (wanted - table[high - 1]) / (table[high] - table[high - 1])
        return ((high - 1 + share).clamp(0, len(table) - 1) / 1000).float().to(sigma.device)


class Linear(Stepped):
    """The linear schedule of DDPM (Ho et al. 2020): betas rise from `beta_start` to `beta_end` over `steps` steps."""

    def __init__(self, beta_start: float = 1e-4, beta_end: float = 0.02, steps: int = 1000):
        super().__init__(torch.linspace(beta_start, beta_end, steps, dtype=torch.float64))


class ScaledLinear(Stepped):
    """Latent diffusion's schedule (Rombach et al. 2022, released code): the square roots of betas rise linearly.

    Args:
        beta_start: Of the first step; 0.00085 and 0.012 are those of the text-to-image model, and of Stable Diffusion.
        beta_end: Of the last step.
        steps: Number of steps.
    """

    def __init__(self, beta_start: float = 0.00085, beta_end: float = 0.012, steps: int = 1000):
        super().__init__(torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float64).square())


class SquaredCosine(Stepped):
    """The cosine schedule as its authors' code has it: in steps, with an offset (Nichol and Dhariwal 2021, eq. 17).

    GLIDE, Karlo and unCLIP were trained with it. sigma is from 0.0064 to 20,291.

    Args:
        steps: Number of steps.
        offset: s in cos^2((t + s) / (1 + s) pi / 2); keeps the first steps from being too small.
        most: Maximum of a step's beta.
    """

    def __init__(self, steps: int = 1000, offset: float = 0.008, most: float = 0.999):
        time = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        kept = ((time + offset) / (1 + offset) * math.pi / 2).cos().square()
        super().__init__((1 - kept[1:] / kept[:-1]).clamp(max=most))


class LogNormal(NoiseLevels):
    """ln(sigma) ~ N(mean, std^2) (Karras et al. 2022, table 1)."""

    def __init__(self, mean: float = -1.2, std: float = 1.2):
        if std <= 0:
            raise ValueError(f"expected std > 0, found {std}")
        self.mean, self.std = mean, std

    def sigma(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        score: Tensor = torch.special.ndtri(to_float64(u))
        return (self.mean + self.std * score).exp().float().to(u.device)


class Denoiser(nn.Module, Buildable):
    """D(x; sigma, cond), an estimate of the clean image.

    The network F sees x scaled to unit variance and the noise level as a time in [0, 1].
    Only this class knows what F predicts (Karras et al. 2022, eq. 7; with sigma_data 1, `v` is
    the v of Salimans and Ho 2022, with any sigma_data it is EDM's target up to its sign):

    ======  ==================================================================
    target  D(x)
    ======  ==================================================================
    eps     x - sigma F
    x0      F
    v       (sd^2 x - sigma sd sqrt(sigma^2 + sd^2) F) / (sigma^2 + sd^2)
    ======  ==================================================================

    Attributes:
        precision: The reduced precision to run the network in while sampling, such as torch.bfloat16; None leaves it to
            the caller (Lightning's mixed precision while training).

    Args:
        network: F(x, level, cond) with the shape of x; float32 in, any precision inside.
        target: What F predicts: eps, x0 or v.
        noise: Distribution of the noise levels of training.
        sigma_data: Standard deviation of the images, in [-1, 1] units. Not in the papers; 0.5 fits photographs.
        min_snr: Gamma of min-SNR weighting (Hang et al. 2023): the error of x0 has the weight
            min(1 / sigma^2, gamma). None weights the error of F uniformly.
        residual: For upsamplers: denoises the image minus `Conditioning.origin`, the enlarged small image, in this
            unit of images and noise levels, about twice the standard deviation of that difference. A change of
            variables that leaves only detail to learn (SRDiff, Li et al. 2022). Not in the papers; None is theirs.
        time: What F is told of the noise level: ``cosine``, the time of the continuous cosine schedule, whatever
            `noise` is; or ``step``, the place between the steps of `noise`, as in published weights.
    """

    def __init__(
        self,
        network: Network,
        noise: NoiseLevels,
        target: Target = "v",
        sigma_data: float = 0.5,
        min_snr: float | None = None,
        residual: float | None = None,
        time: Literal["cosine", "step"] = "cosine",
    ):
        super().__init__()
        time_of(torch.ones(1), noise, time)  # raises where there is no such time
        self.time = time
        if target not in ("eps", "x0", "v"):
            raise ValueError(f"expected the target eps, x0 or v, found {target!r}")
        if sigma_data <= 0 or (min_snr is not None and min_snr <= 0):
            raise ValueError(f"expected sigma_data and min_snr above 0, found {sigma_data} and {min_snr}")
        if residual is not None and residual <= 0:
            raise ValueError(f"expected residual above 0, found {residual}")
        self.network, self.noise, self.target, self.residual = network, noise, target, residual
        self.sigma_data, self.min_snr = sigma_data, min_snr
        self.precision: torch.dtype | None = None

    def scales(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(c_skip, c_out) of D = c_skip x + c_out F."""
        if self.target == "eps":
            return torch.ones_like(sigma), -sigma
        if self.target == "x0":
            return torch.zeros_like(sigma), torch.ones_like(sigma)
        variance = sigma**2 + self.sigma_data**2
        return self.sigma_data**2 / variance, -sigma * self.sigma_data / variance.sqrt()

    def forward(
        self, x: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"], cond: Conditioning
    ) -> Float[Tensor, "b c h w"]:
        """Estimates the clean image.

        Args:
            x: Noisy images, x0 + sigma * noise.
            sigma: Noise levels, in image units.
            cond: The conditioning.
        """
        if self.residual is None:
            return self._estimate(x.float(), sigma.float(), cond)
        origin = 0 if cond.origin is None else cond.origin.float()
        estimate = self._estimate((x.float() - origin) / self.residual, sigma.float() / self.residual, cond)
        return origin + self.residual * estimate

    def _estimate(self, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        s = sigma[:, None, None, None]
        c_skip, c_out = self.scales(s)
        c_in = (s**2 + self.sigma_data**2).rsqrt()
        reduced = nullcontext() if self.precision is None else torch.autocast(x.device.type, self.precision)
        with reduced:
            out: Tensor = self.network(c_in * x, time_of(sigma, self.noise, self.time), cond)
        return c_skip * x + c_out * out.float()

    def start(
        self, noise: Float[Tensor, "b c h w"], sigma: float | Tensor, cond: Conditioning
    ) -> Float[Tensor, "b c h w"]:
        """Returns the noisy image from which sampling starts: pure noise, centred on `origin` for a residual.

        Args:
            noise: Standard normal.
            sigma: The highest noise level.
            cond: The conditioning.
        """
        x = noise * sigma
        return x if self.residual is None or cond.origin is None else x + cond.origin

    def sigmas(self, steps: int) -> Float[Tensor, " n"]:
        """Decreasing noise levels for sampling: Karras et al. (2022), eq. 5, then 0."""
        return karras_sigmas(steps) * (self.residual or 1.0)

    def prepare(self, cond: Conditioning) -> Conditioning:
        """Precomputes what depends on `cond` alone, so that sampling steps do not repeat it."""
        return self.network.prepare(cond)

    def draw(self, b: int, generator: torch.Generator | None = None) -> Float[Tensor, " b"]:
        """Draws noise levels, one from each of b equal shares of the distribution (see `shares`)."""
        return self.quantile(shares(b, generator))

    def quantile(self, u: Float[Tensor, " b"], noise: NoiseLevels | None = None) -> Float[Tensor, " b"]:
        """The quantile of the training's noise levels, in image units: a share `u` in (0, 1) lies below it.

        Args:
            u: Shares.
            noise: A distribution to use instead of the denoiser's.
        """
        return (noise or self.noise).sigma(u) * (self.residual or 1.0)

    def weight(self, sigma: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """The weight of the squared error of x0 in the loss."""
        if self.residual is not None:
            return self._weight(sigma / self.residual) / self.residual**2
        return self._weight(sigma)

    def _weight(self, sigma: Tensor) -> Tensor:
        if self.min_snr is not None:
            return sigma**-2.0 if self.min_snr == math.inf else (sigma**-2.0).clamp(max=self.min_snr)
        return self.scales(sigma)[1] ** -2.0

    def loss(
        self,
        image: Float[Tensor, "b c h w"],
        cond: Conditioning,
        sigma: Float[Tensor, " b"],
        noise: Float[Tensor, "b c h w"],
        further: Callable[[Tensor], Tensor] | None = None,
    ) -> Float[Tensor, " b"]:
        """The weighted squared error per row. The caller draws sigma and noise.

        Args:
            image: Clean images.
            cond: The conditioning.
            sigma: Noise levels.
            noise: Standard normal.
            further: Computes a loss per row, to be added, from the estimate of the clean images.
        """
        estimate = self(image + sigma[:, None, None, None] * noise, sigma, cond)
        loss: Tensor = self.weight(sigma) * _squared(estimate - image)
        return loss if further is None else loss + further(estimate)

    def error(
        self,
        image: Float[Tensor, "b c h w"],
        cond: Conditioning,
        sigma: Float[Tensor, " b"],
        noise: Float[Tensor, "b c h w"],
    ) -> Float[Tensor, " b"]:
        """The mean squared error of the estimate per row."""
        return _squared(self(image + sigma[:, None, None, None] * noise, sigma, cond) - image)

    def unlearnt(self, sigma: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """The error of the best linear estimate that knows only `sigma_data` of the images.

        Errors divided by it can be compared between noise levels and targets: 1 means nothing learnt. It is the
        weight of the target `v`.
        """
        deviation = self.sigma_data * (self.residual or 1.0)
        return (sigma * deviation) ** 2 / (sigma**2 + deviation**2)


def _squared(x: Tensor) -> Float[Tensor, " b"]:
    return x.square().flatten(1).mean(1)


def shares(b: int, generator: torch.Generator | None = None) -> Float[Tensor, " b"]:
    """Draws numbers in (0, 1), one from each of b equal parts, in random order (Kingma et al. 2021, section I.1)."""
    u = (torch.arange(b) + torch.rand(b, generator=generator)) / b
    return u[torch.randperm(b, generator=generator)].clamp(1e-6, 1 - 1e-6)


def time_of(sigma: Tensor, noise: NoiseLevels, time: str) -> Tensor:
    """What a network is told of a noise level: a time in [0, 1], see `Denoiser`.

    Args:
        sigma: Noise levels.
        noise: Those of training.
        time: ``cosine`` or ``step``.

    Raises:
        ValueError: It is neither, or the noise levels of training have no steps.
    """
    if time not in ("cosine", "step"):
        raise ValueError(f"expected the time cosine or step, found {time!r}")
    return noise.step(sigma) if time == "step" else level(sigma)


def level(sigma: Tensor) -> Tensor:
    """A noise level as the time of the cosine schedule, in [0, 1]."""
    return sigma.atan() * (2 / math.pi)
