"""The training steps of autoencoders, DALL-E's transformer and priors, see `dry_run`."""

import torch
from torch import Tensor, nn

from composer.autoregressive.dvae import dvae_loss
from composer.autoregressive.image_tokens import ImageTokens
from composer.networks.autoencoder import Autoencoder
from composer.networks.discriminator import PatchDiscriminator
from composer.networks.dvae import DVAE
from composer.prior.interface import Prior
from composer.training.autoencoder_loss import autoencoder_loss, oppose
from composer.training.dry_run import Step


def autoencoder_step(autoencoder: Autoencoder, side: int, discriminator: PatchDiscriminator | None = None) -> Step:
    """Does what `AutoencoderTraining.training_step` does, without the perceptual distance.

    Args:
        autoencoder: What is trained.
        side: Height and width of the images, in pixels.
        discriminator: What it is trained against.
    """

    def loss(image: Tensor) -> Tensor:
        mean, log_variance = autoencoder.moments(image)
        latents = mean + (log_variance / 2).exp() * torch.empty_like(mean)
        found = autoencoder.reconstruct(latents).float()
        own = autoencoder_loss(image, found, mean.float(), log_variance.float()).mean()
        if discriminator is None:
            return own
        adversarial, _, apart = oppose(discriminator, autoencoder.last_weight, image, found, own)
        return own + adversarial + apart

    network = autoencoder if discriminator is None else nn.ModuleList([autoencoder, discriminator])
    return Step(network.train(), lambda images: _images(images, side), loss)


def dvae_step(dvae: DVAE, side: int) -> Step:
    """Does what `DVAETraining.training_step` does.

    Args:
        dvae: What is trained.
        side: Height and width of the images, in pixels.
    """

    def loss(image: Tensor) -> Tensor:
        return dvae_loss(dvae, image, 1.0, 1.0, torch.Generator()).total.mean()

    return Step(dvae.train(), lambda images: _images(images, side), loss)


def image_tokens_step(tokens: ImageTokens) -> Step:
    """Does what `ImageTokensTraining.training_step` does with codes that are known."""

    def inputs(images: int) -> tuple[Tensor, Tensor, Tensor]:
        with torch.device("meta"):
            text = torch.empty(images, tokens.text_length, dtype=torch.long)
            codes = torch.empty(images, tokens.rows, tokens.columns, dtype=torch.long)
            return text, codes, torch.ones(images, dtype=torch.bool)

    return Step(tokens.train(), inputs, lambda text, codes, keep: tokens.loss(text, codes, keep).mean())


def prior_step(prior: Prior) -> Step:
    """Does what `PriorTraining.training_step` does, with captions of the greatest length.

    Args:
        prior: Not on the meta device, where autocast does not work.
    """
    captions = prior.captions

    def inputs(rows: int) -> tuple[Tensor, Tensor, Tensor]:
        with next(prior.parameters()).device:
            encoded = torch.ones(rows, captions.length + 1, captions.caption_dim + 1)
            return torch.ones(rows, prior.dim), encoded, torch.ones(rows, dtype=torch.bool)

    def loss(semantics: Tensor, caption: Tensor, keep: Tensor) -> Tensor:
        return prior.loss(semantics, caption, keep, torch.Generator()).mean()

    return Step(prior.train(), inputs, loss)


def _images(count: int, side: int) -> tuple[Tensor]:
    return (torch.empty(count, 3, side, side, device="meta"),)
