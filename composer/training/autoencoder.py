"""Training the KL autoencoder of latent diffusion."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from composer.decomposition import Batch
from composer.images.similarity import psnr
from composer.networks.autoencoder import Autoencoder
from composer.networks.discriminator import PatchDiscriminator
from composer.networks.exporting import LATENT_MOMENTS
from composer.training.autoencoder_loss import KL_WEIGHT, autoencoder_loss, oppose
from composer.training.feature_maps import FeatureMaps
from composer.training.muon import make_optimizer
from composer.training.safety import SafeTraining
from composer.training.schedule import Schedule
from composer.training.stage import noise_like, stream

MEMORY = 0.99
"""How much of what is known of the latents' moments a training step keeps."""


class AutoencoderTraining(SafeTraining):
    """Trains an autoencoder: absolute error, perceptual distance, KL divergence, optionally against a discriminator.

    See Rombach et al. 2022, section 3.1 and appendix G. The released code trains the discriminator in a step of its own
    after the autoencoder's; here both learn from the same reconstructions in one step.

    The latents' `scale`, 1 over their standard deviation on the training data, is measured over the last hundred steps
    or so and goes into the exported autoencoder.

    Args:
        autoencoder: What is trained; its `scale` stays 1 until export.
        features: The frozen network that gives the perceptual distance; None leaves it out.
        perceptual_weight: Weight of that distance against the absolute error.
        kl_weight: Weight of the KL divergence, as the paper states it: against sums over an image's values.
        learning_rate: Peak learning rate of AdamW.
        betas: Decay of AdamW's two moments.
        weight_decay: Decoupled weight decay.
        muon_rate: Peak learning rate of Muon for all convolutions but those at the ends, such as 0.02; all else stays
            with AdamW. None trains everything by AdamW.
        warmup_steps: Steps over which the learning rate rises from 0.
        decay_steps: Step at which a cosine from the peak reaches 0; None holds the peak.
        seed: Decides the noise of the latents.
        discriminator: Tells true images from reconstructions, and is trained to, by AdamW; None leaves it out.
        adversarial_weight: Weight of the adversarial loss, besides the adaptive one (`adaptive_weight`).
        adversarial_start: Step from which the discriminator counts and learns.

    Attributes:
        latent_moments: (2,) mean and mean square of the training's latents, without scale.

    Raises:
        ValueError: A rate or weight is out of its range, or the autoencoder has a scale already.
    """

    latent_moments: Tensor

    def __init__(
        self,
        autoencoder: Autoencoder,
        features: FeatureMaps | None = None,
        perceptual_weight: float = 1.0,
        kl_weight: float = KL_WEIGHT,
        learning_rate: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        muon_rate: float | None = None,
        warmup_steps: int = 500,
        decay_steps: int | None = None,
        seed: int = 0,
        discriminator: PatchDiscriminator | None = None,
        adversarial_weight: float = 0.5,
        adversarial_start: int = 50_000,
    ):
        super().__init__()
        if learning_rate <= 0 or min(weight_decay, perceptual_weight, kl_weight, adversarial_weight) < 0:
            raise ValueError(
                "expected learning_rate > 0, and weight_decay, perceptual_weight, kl_weight and adversarial_weight >= 0"
            )
        if autoencoder.scale != 1:
            raise ValueError(f"the scale is measured in the training: leave it out, found {autoencoder.scale}")
        self.autoencoder, self.features = autoencoder, features
        self.perceptual_weight, self.kl_weight = perceptual_weight, kl_weight
        self.learning_rate, self.betas, self.weight_decay = learning_rate, betas, weight_decay
        self.muon_rate, self.discriminator = muon_rate, discriminator
        self.adversarial_weight, self.adversarial_start = adversarial_weight, adversarial_start
        self.schedule, self.seed = Schedule(warmup_steps, decay_steps), seed
        self.register_buffer(LATENT_MOMENTS, torch.tensor([0.0, 1.0]))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        image: Tensor = batch["image"]
        mean, log_variance = (part.float() for part in self.autoencoder.moments(image))
        noise = noise_like(mean, [stream("noise", self.seed, seed) for seed in batch["seed"].tolist()])
        latents = mean + (log_variance / 2).exp() * noise
        found = self.autoencoder.reconstruct(latents).float()
        perceptual = None if self.features is None else self.features.distance
        per_image = autoencoder_loss(
            image, found, mean, log_variance, perceptual, self.perceptual_weight, self.kl_weight
        )
        own = per_image.mean()
        against = torch.zeros(()) if self.discriminator is None else self._oppose(self.discriminator, image, found, own)
        loss = own / image[0].numel()  # per value, so that clipping does not depend on the crops' size
        self.log_dict({"train/loss": loss, "train/error": (image - found).detach().abs().mean()})
        self._measure(latents.detach())
        return loss + against

    def _oppose(self, discriminator: PatchDiscriminator, image: Tensor, found: Tensor, own: Tensor) -> Tensor:
        """The adversarial loss of the reconstructions, per value, and the discriminator's own loss.

        Args:
            discriminator: What tells them apart.
            image: True images.
            found: Their reconstructions.
            own: The autoencoder's loss without a discriminator.
        """
        if self.global_step < self.adversarial_start:  # several processes expect a gradient of all that is trained
            return 0 * torch.stack([p.sum() for p in discriminator.parameters()]).sum()
        against, weight, apart = oppose(discriminator, self.autoencoder.last_weight, image, found, own)
        self.log_dict({"train/adversarial": against, "train/discriminator": apart, "train/adaptive_weight": weight})
        return self.adversarial_weight * weight * against / image[0].numel() + apart

    def clipped_parts(self) -> list[list[nn.Parameter]]:
        parts = [self.autoencoder, *([self.discriminator] if self.discriminator is not None else [])]
        return [list(part.parameters()) for part in parts]

    def _measure(self, latents: Tensor) -> None:
        """Updates the moments of the latents; latents that are not finite belong to a step that is skipped."""
        found = torch.stack([latents.mean(), latents.square().mean()])
        keep = min(MEMORY, (1 + self.global_step) / (10 + self.global_step))
        if bool(found.isfinite().all()):
            self.latent_moments.lerp_(found, 1 - keep)

    def reconstruct(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """The images after encoding and decoding, in [-1, 1]."""
        return self.autoencoder.decode(self.autoencoder.encode(images)).float().clamp(-1, 1)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Logs the mean PSNR of the reconstructions, in dB, from the most likely latents."""
        image: Tensor = batch["image"]
        found = psnr(self.reconstruct(image), image).mean()
        self.log("val/psnr", found, prog_bar=True, batch_size=len(image), on_epoch=True, sync_dist=True)

    def configure_optimizers(self) -> dict[str, Any]:
        inner, trained = self.autoencoder.inner_convolutions(), list(self.parameters())
        adamw: dict[str, Any] = {"lr": self.learning_rate, "betas": self.betas, "fused": True}
        optimizer = make_optimizer(trained, inner, self.muon_rate, weight_decay=self.weight_decay, **adamw)
        return self.schedule.drive(optimizer)
