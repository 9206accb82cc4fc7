"""Training the discrete autoencoder of DALL-E."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from composer.autoregressive.dvae import (
    KL_STEPS,
    KL_WEIGHT,
    LEARNING_RATE_STEPS,
    LEARNING_RATES,
    TEMPERATURE,
    TEMPERATURE_STEPS,
    dvae_loss,
    image_nats,
    kl_to_uniform,
    kl_weight_at,
    learning_rate_at,
    temperature_at,
)
from composer.decomposition import Batch
from composer.images.similarity import psnr
from composer.networks.dvae import DVAE, map_pixels
from composer.training.safety import SafeTraining
from composer.training.stage import stream


class DVAETraining(SafeTraining):
    """Trains a dVAE by the evidence lower bound with relaxed codes (Ramesh et al. 2021, section 2.1 and appendix A).

    The defaults are the paper's. Weight, temperature and learning rate follow half a period of a cosine and then stay.

    Args:
        autoencoder: What is trained.
        kl_weight: Weight beta of the KL divergence at the end; it rises from 0.
        kl_steps: Steps over which it rises.
        temperature: Temperature of the relaxation at the end; it falls from 1.
        temperature_steps: Steps over which it falls.
        learning_rates: AdamW's learning rate at the beginning and at the end.
        learning_rate_steps: Steps over which it falls.
        betas: Decay of AdamW's two moments.
        weight_decay: Decoupled weight decay.
        seed: Decides the noise of the codes.

    Attributes:
        used: (codes,) how often the validation set uses each code.

    Raises:
        ValueError: A weight, temperature, rate or number of steps is out of its range.
    """

    used: Tensor

    def __init__(
        self,
        autoencoder: DVAE,
        kl_weight: float = KL_WEIGHT,
        kl_steps: int = KL_STEPS,
        temperature: float = TEMPERATURE,
        temperature_steps: int = TEMPERATURE_STEPS,
        learning_rates: tuple[float, float] = LEARNING_RATES,
        learning_rate_steps: int = LEARNING_RATE_STEPS,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 1e-4,
        seed: int = 0,
    ):
        super().__init__()
        if min(learning_rates) <= 0 or min(kl_weight, weight_decay) < 0 or not 0 < temperature <= 1:
            raise ValueError(
                "expected learning_rates > 0, kl_weight and weight_decay >= 0 and a temperature in (0, 1], found "
                f"{learning_rates}, {kl_weight}, {weight_decay} and {temperature}"
            )
        if min(kl_steps, temperature_steps, learning_rate_steps) < 1:
            raise ValueError(
                "expected kl_steps, temperature_steps and learning_rate_steps of at least 1, found "
                f"{kl_steps}, {temperature_steps} and {learning_rate_steps}"
            )
        self.autoencoder = autoencoder.to(memory_format=torch.channels_last)
        self.kl_weight, self.kl_steps = kl_weight, kl_steps
        self.temperature, self.temperature_steps = temperature, temperature_steps
        self.learning_rates, self.learning_rate_steps = learning_rates, learning_rate_steps
        self.betas, self.weight_decay, self.seed = betas, weight_decay, seed
        self.register_buffer("used", torch.zeros(autoencoder.codes, dtype=torch.long), persistent=False)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images = batch["image"].contiguous(memory_format=torch.channels_last)
        generators = [stream("codes", self.seed, seed) for seed in batch["seed"].tolist()]
        temperature = temperature_at(self.global_step, self.temperature, self.temperature_steps)
        weight = kl_weight_at(self.global_step, self.kl_weight, self.kl_steps)
        loss = dvae_loss(self.autoencoder, images, temperature, weight, generators)
        means = {"loss": loss.total.mean(), "nats": loss.reconstruction.mean(), "kl": loss.kl.mean()}
        self.log_dict({f"train/{name}": value for name, value in means.items()})
        self.log_dict({"train/kl_weight": weight, "train/temperature": temperature})
        return means["loss"]

    def on_validation_epoch_start(self) -> None:
        self.used.zero_()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Measures with the most likely codes: nats per number of the image, PSNR in dB, nats of KL per code."""
        images: Tensor = batch["image"]
        pixels = map_pixels(images)
        logits = self.autoencoder.encoder(pixels).float()
        codes = logits.argmax(1)
        one_hot = F.one_hot(codes, self.autoencoder.codes).movedim(-1, 1).to(images.dtype)
        found = {
            "nats": image_nats(self.autoencoder, pixels, one_hot).mean() / images[0].numel(),
            "kl": kl_to_uniform(logits).mean(),
            "psnr": psnr(self.reconstruct(images), images).mean(),
        }
        self.used += torch.bincount(codes.flatten(), minlength=self.autoencoder.codes)
        for name, value in found.items():
            self.log(
                f"val/{name}", value, prog_bar=name == "psnr", batch_size=len(images), on_epoch=True, sync_dist=True
            )

    def on_validation_epoch_end(self) -> None:
        """Logs how many codes the validation set uses."""
        used = self.trainer.strategy.reduce(self.used, reduce_op="sum")
        self.log("val/codes", (used > 0).sum().float(), prog_bar=True)

    def reconstruct(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """The images after encoding and decoding, in [-1, 1]."""
        return self.autoencoder.decode(self.autoencoder.encode(images)).float()

    def configure_optimizers(self) -> dict[str, Any]:
        first = self.learning_rates[0]
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=first, betas=self.betas, weight_decay=self.weight_decay, fused=True
        )
        schedule = LambdaLR(
            optimizer, lambda step: learning_rate_at(step, self.learning_rates, self.learning_rate_steps) / first
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
