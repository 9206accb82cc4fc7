"""The training loss of the dVAE and its schedules (Ramesh et al. 2021, section 2.1 and appendix A)."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from composer.networks.dvae import DVAE, map_pixels

KL_WEIGHT, KL_STEPS = 6.6, 5_000
TEMPERATURE, TEMPERATURE_STEPS = 1 / 16, 150_000
LEARNING_RATES, LEARNING_RATE_STEPS = (1e-4, 1.25e-6), 1_200_000


class DVAELoss(NamedTuple):
    """The loss of each image, and the two terms that it is made of.

    Attributes:
        total: What is minimised: (nats of the image + weight * nats of its codes) / numbers in the image.
        reconstruction: -ln p(image | codes), in nats per number of the image.
        kl: Divergence of the codes from the uniform prior, in nats per code; 0 to ln(number of codes).
    """

    total: Float[Tensor, " b"]
    reconstruction: Float[Tensor, " b"]
    kl: Float[Tensor, " b"]


def dvae_loss(
    dvae: DVAE,
    images: Float[Tensor, "b 3 h w"],
    temperature: float,
    kl_weight: float,
    generator: torch.Generator | Sequence[torch.Generator],
) -> DVAELoss:
    """The negative evidence lower bound with relaxed codes (equation 1).

    Args:
        dvae: What is trained.
        images: In [-1, 1]; height and width are multiples of `DVAE.stride`.
        temperature: Of the relaxation, above 0; near 0, the relaxed codes are nearly one-hot (`temperature_at`).
        kl_weight: beta (`kl_weight_at`).
        generator: Of the Gumbel noise, on any device; or one for each row.
    """
    pixels = map_pixels(images)
    logits = dvae.encoder(pixels).float()
    codes = relax(logits, temperature, generator)
    nats = image_nats(dvae, pixels, codes.to(images.dtype))
    per_code = kl_to_uniform(logits).flatten(1)
    numbers = images[0].numel()
    total = (nats + kl_weight * per_code.sum(1)) / numbers
    return DVAELoss(total, nats / numbers, per_code.mean(1))


def image_nats(dvae: DVAE, pixels: Float[Tensor, "b 3 h w"], codes: Float[Tensor, "b k h2 w2"]) -> Float[Tensor, " b"]:
    """-ln p(image | codes), in nats, summed over an image.

    Args:
        dvae: Its decoder gives the distribution of each number of the image.
        pixels: As `map_pixels` gives them.
        codes: One-hot, or mixtures.
    """
    mean, log_scale = dvae.decoder(codes).float().chunk(2, dim=1)
    return -logit_laplace(pixels.float(), mean, log_scale).flatten(1).sum(1)


def relax(
    logits: Float[Tensor, "b k h w"], temperature: float, generator: torch.Generator | Sequence[torch.Generator]
) -> Float[Tensor, "b k h w"]:
    """Draws codes from the Gumbel-softmax distribution: mixtures of codes, differentiable in the logits.

    Args:
        logits: Of k codes at each place.
        temperature: Above 0; towards 0, the mixtures become one-hot and their distribution the softmax of the logits.
        generator: Of the noise, on any device; or one for each row.

    Raises:
        ValueError: The temperature is not above 0.
    """
    if temperature <= 0:
        raise ValueError(f"expected a temperature above 0, found {temperature}")
    generators = [generator] if isinstance(generator, torch.Generator) else generator
    parts = torch.split(logits.detach(), len(logits) // len(generators))
    drawn = [
        torch.empty(part.shape, dtype=part.dtype, device=own.device).exponential_(generator=own)
        for part, own in zip(parts, generators, strict=True)
    ]
    gumbel = -torch.cat(drawn).log().to(logits.device)
    return ((logits + gumbel) / temperature).softmax(1)


def logit_laplace(
    pixels: Float[Tensor, "*b"], mean: Float[Tensor, "*b"], log_scale: Float[Tensor, "*b"]
) -> Float[Tensor, "*b"]:
    """ln of the density of a number whose logit is Laplace-distributed (appendix A.3, equation 2).

    Args:
        pixels: In (0, 1), as `map_pixels` gives them.
        mean: Of the logit.
        log_scale: ln b, the logarithm of the Laplace distribution's scale.
    """
    apart = (pixels.logit() - mean).abs()
    return -apart * (-log_scale).exp() - log_scale - math.log(2) - pixels.log() - (-pixels).log1p()


def kl_to_uniform(logits: Float[Tensor, "b k h w"]) -> Float[Tensor, "b h w"]:
    """KL divergence of each place's distribution of codes from the uniform one, in nats."""
    log_p = F.log_softmax(logits, dim=1)
    return (log_p.exp() * log_p).sum(1) + math.log(logits.shape[1])


def kl_weight_at(step: int, weight: float = KL_WEIGHT, steps: int = KL_STEPS) -> float:
    """The weight beta of the KL divergence: 0 to 6.6 over 5,000 steps (appendix A.2)."""
    return _cosine(0.0, weight, step / steps)


def temperature_at(step: int, temperature: float = TEMPERATURE, steps: int = TEMPERATURE_STEPS) -> float:
    """The temperature of the relaxation: 1 to 1/16 over 150,000 steps (appendix A.2)."""
    return _cosine(1.0, temperature, step / steps)


def learning_rate_at(step: int, rates: tuple[float, float] = LEARNING_RATES, steps: int = LEARNING_RATE_STEPS) -> float:
    """The learning rate: 1e-4 to 1.25e-6 over 1,200,000 steps (appendix A.2)."""
    return _cosine(*rates, step / steps)


def _cosine(start: float, end: float, done: float) -> float:
    """Half a period of a cosine from start to end, then constant.

    Args:
        start: Value where `done` is 0.
        end: Value where `done` is 1 or above.
        done: Share of the way, at least 0.
    """
    return end + (start - end) * (0.5 + 0.5 * math.cos(math.pi * min(1.0, done)))
