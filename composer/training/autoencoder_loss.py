"""The losses of the KL autoencoder and of its discriminator (Rombach et al. 2022, section 3.1 and appendix G).

All terms but the adversarial ones are sums over an image's values, as in the released code, whose weight of the KL
term, 1e-6, belongs to sums.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

Features = Callable[[Tensor], Sequence[Tensor]]
"""(b 3 h w) images in [-1, 1] -> feature maps (b c h' w') of a frozen network, from one layer or several."""

Distance = Callable[[Tensor, Tensor], Tensor]
"""True images, reconstructions (b 3 h w) -> how far apart they look (b), at least 0."""

KL_WEIGHT = 1e-6


def kl_divergence(mean: Float[Tensor, "b c h w"], log_variance: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
    """The KL divergence of normal distributions of latents from the standard normal one, in nats, summed per image."""
    return (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(1) / 2


def perceptual_distance(
    images: Float[Tensor, "b 3 h w"], found: Float[Tensor, "b 3 h w"], features: Features
) -> Float[Tensor, " b"]:
    """How far apart two images are in the features of a frozen network (Zhang et al. 2018, eq. 1, all weights 1).

    Features are scaled to unit length at each place; squared differences are summed over channels, averaged
    over places, summed over layers.

    Args:
        images: The true images, in [-1, 1]; no gradient flows to them.
        found: Their reconstructions.
        features: The network's layers.
    """
    with torch.no_grad():
        true = [F.normalize(layer, dim=1, eps=1e-6) for layer in features(images)]
    own = [F.normalize(layer, dim=1, eps=1e-6) for layer in features(found)]
    layers = [(a - b).square().sum(1).flatten(1).mean(1) for a, b in zip(true, own, strict=True)]
    return torch.stack(layers).sum(0)


def autoencoder_loss(
    images: Float[Tensor, "b 3 h w"],
    found: Float[Tensor, "b 3 h w"],
    mean: Float[Tensor, "b c h2 w2"],
    log_variance: Float[Tensor, "b c h2 w2"],
    perceptual: Distance | None = None,
    perceptual_weight: float = 1.0,
    kl_weight: float = KL_WEIGHT,
) -> Float[Tensor, " b"]:
    """The loss per image: absolute error, perceptual distance and KL divergence.

    Args:
        images: The true images, in [-1, 1].
        found: Reconstructed from latents that were sampled.
        mean: Of the latents, see `Autoencoder.moments`.
        log_variance: Logarithms of their variances.
        perceptual: See `composer.training.feature_maps.FeatureMaps.distance`; None leaves the term out.
        perceptual_weight: Weight of the perceptual distance against the absolute error of each value.
        kl_weight: Weight of the KL divergence.
    """
    error = (images - found).abs()
    loss = error.flatten(1).sum(1) + kl_weight * kl_divergence(mean, log_variance)
    if perceptual is None:
        return loss
    return loss + perceptual_weight * error[0].numel() * perceptual(images, found)


def hinge_loss(real: Float[Tensor, "b 1 h w"], fake: Float[Tensor, "b 1 h w"]) -> Float[Tensor, ""]:
    """The discriminator's loss: half of mean max(0, 1 - D(x)) + mean max(0, 1 + D(x')) (Lim and Ye 2017, eq. 13).

    Args:
        real: Logits of patches of true images.
        fake: Logits of patches of reconstructions.
    """
    return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2


LARGEST_WEIGHT = 1e4


def adaptive_weight(
    loss: Float[Tensor, ""], adversarial: Float[Tensor, ""], last: Float[Tensor, "*b"]
) -> Float[Tensor, ""]:
    """The weight that gives the adversarial loss as large a gradient as the rest has (Esser et al. 2021, eq. 7).

    |d loss / d last| / (|d adversarial / d last| + 1e-4), at most 10,000; no gradient flows through it. The KL
    divergence may be a part of the loss, since it does not depend on the decoder.

    Args:
        loss: Reconstruction loss.
        adversarial: Adversarial loss of the reconstructions.
        last: Weights of the decoder's last layer.
    """
    own, others = (torch.autograd.grad(value, last, retain_graph=True)[0].norm() for value in (loss, adversarial))
    weight: Tensor = (own / (others + 1e-4)).clamp(max=LARGEST_WEIGHT).detach()
    return weight


class Opposed(NamedTuple):
    """What a discriminator adds to a training.

    Attributes:
        adversarial: The autoencoder's loss; no gradient flows to the discriminator.
        weight: That of the adversarial loss, see `adaptive_weight`.
        apart: The discriminator's own loss; no gradient flows to the autoencoder.
    """

    adversarial: Float[Tensor, ""]
    weight: Float[Tensor, ""]
    apart: Float[Tensor, ""]


def oppose(
    discriminator: nn.Module,
    last: Float[Tensor, "*b"],
    images: Float[Tensor, "b 3 h w"],
    found: Float[Tensor, "b 3 h w"],
    loss: Float[Tensor, ""],
) -> Opposed:
    """Computes the losses of an autoencoder and a discriminator against each other.

    Args:
        discriminator: Gives a logit per patch, high where it looks real.
        last: Weights of the decoder's last layer.
        images: True images.
        found: Their reconstructions.
        loss: The autoencoder's loss without a discriminator.
    """
    frozen = {name: p.detach() for name, p in discriminator.named_parameters()}
    adversarial = -functional_call(discriminator, frozen, (found,)).mean()
    apart = hinge_loss(discriminator(images), discriminator(found.detach()))
    return Opposed(adversarial, adaptive_weight(loss, adversarial, last), apart)
