"""Training DALL-E's transformer over the tokens of a text and the codes of an image."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from composer.autoregressive.image_tokens import ImageTokens
from composer.cascade.token_stage import TokenSampling, TokenStage, require_codes, to_text
from composer.decomposition import Batch
from composer.networks.dvae import DVAE
from composer.networks.stored import specification
from composer.training.safety import SafeTraining, require_rates
from composer.training.schedule import Schedule
from composer.training.stage import stream


class ImageTokensTraining(SafeTraining):
    """Trains a transformer on captions and the codes of their images (Ramesh et al. 2021, section 2.2).

    A trained dVAE, which stays as it is, encodes the images in every step; it becomes a part of the checkpoints and of
    the exported model. The loss is 1/8 of the mean over text tokens and 7/8 of the mean over codes of -ln p.

    Args:
        tokens: What is trained.
        autoencoder: The folder of the dVAE, as `composer export` wrote it.
        size: Height and width of the images, in pixels.
        condition: Name of the captions' token ids (`decomposers.Tokens`) in the data.
        learning_rate: Peak learning rate of AdamW.
        betas: Decay of AdamW's two moments.
        weight_decay: Decoupled weight decay.
        warmup_steps: Steps over which the learning rate rises from 0.
        decay_steps: Step at which a cosine from the peak reaches 0; None holds the peak. The paper halves the rate
            where the loss stops falling.
        drop: Probability that a row loses its text, for guidance; not in the paper.
        seed: Decides which rows lose their texts.

    Raises:
        ValueError: A rate or probability is out of its range.
    """

    def __init__(
        self,
        tokens: ImageTokens,
        autoencoder: str,
        size: int,
        condition: str = "caption",
        learning_rate: float = 4.5e-4,
        betas: tuple[float, float] = (0.9, 0.96),
        weight_decay: float = 0.045,
        warmup_steps: int = 5000,
        decay_steps: int | None = None,
        drop: float = 0.1,
        seed: int = 0,
    ):
        super().__init__()
        require_rates(learning_rate, weight_decay, drop)
        self.tokens, self.autoencoder_folder, self.size, self.condition = tokens, autoencoder, size, condition
        self.learning_rate, self.betas, self.weight_decay = learning_rate, betas, weight_decay
        self.schedule, self.drop, self.seed = Schedule(warmup_steps, decay_steps), drop, seed
        self.autoencoder: DVAE | None = None

    @property
    def dvae(self) -> DVAE:
        """The frozen dVAE, from `setup` on."""
        assert self.autoencoder is not None
        return self.autoencoder

    def setup(self, stage: str) -> None:
        """Checks that the data has captions, and loads the dVAE.

        Raises:
            ValueError: float16 was asked for, the data has no captions, or the dVAE does not fit.
            FileNotFoundError: There is no dVAE at that place.
        """
        super().setup(stage)
        if self.condition not in (names := self.trainer.datamodule.names):
            raise ValueError(
                f"expected token ids of captions named {self.condition} in the data, such as a decomposer Tokens, "
                f"found {', '.join(sorted(names)) or 'nothing'}"
            )
        if self.autoencoder is None:
            autoencoder = DVAE.load(self.autoencoder_folder).requires_grad_(False).train()  # it has no modes
            require_codes(self.tokens, autoencoder, self.size)
            self.autoencoder = autoencoder.to(memory_format=torch.channels_last)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        text, codes, known = self._read(batch)
        first, total = self.place_of(len(text), batch_idx)
        drawn = torch.rand(total, generator=stream("keep", self.seed, self.global_step, 0, 0))
        keep = drawn[first : first + len(text)] >= self.drop
        loss = self.tokens.loss(text, codes, keep.to(text.device) & known).mean()
        self.log("train/loss", loss)
        return loss

    def _read(self, batch: Batch) -> tuple[Int[Tensor, "b t"], Int[Tensor, "b h w"], Bool[Tensor, " b"]]:
        """Texts, codes, and which rows have a caption."""
        images: Tensor = batch["image"]
        if images.shape[2:] != (self.size, self.size):
            found = "{} x {}".format(*images.shape[2:])
            raise ValueError(f"this training is of {self.size} x {self.size} pixels, the data gives {found}")
        with torch.autocast(images.device.type, enabled=False):
            codes = self.dvae.encode(images.contiguous(memory_format=torch.channels_last))
        value = batch["representations"][self.condition]
        text = to_text(value, self.tokens.padding, self.tokens.text_length, self.condition)
        known = batch.get("known", {}).get(self.condition, torch.ones(len(text), dtype=torch.bool))
        return text, codes, known.to(text.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Measures nats per text token, per code, and per code without the text; padding counts as text."""
        text, codes, known = self._read(batch)
        of_text, of_codes = self.tokens.negative_log_likelihood(text, codes)
        _, alone = self.tokens.negative_log_likelihood(torch.full_like(text, self.tokens.padding), codes)
        self._log("text", of_text[known])
        self._log("codes", of_codes)
        self._log("codes_without_text", alone)

    def _log(self, name: str, nats: Float[Tensor, "b n"]) -> None:
        mean = nats.sum() / max(1, nats.numel())
        self.log(f"val/{name}", mean, prog_bar=name == "codes", batch_size=len(nats), on_epoch=True, sync_dist=True)

    def stage(self, guidance: float) -> TokenStage:
        """The transformer in training and its dVAE, as the stage that they are going to be."""
        sampling = TokenSampling(guidance=guidance)
        return TokenStage(self.tokens, self.dvae, [self.condition], self.size, sampling, {"file": "training"})

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.AdamW(
            self.tokens.parameters(), self.learning_rate, self.betas, weight_decay=self.weight_decay, fused=True
        )
        return self.schedule.drive(optimizer)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds how the dVAE is built: its weights are in the checkpoint, its folder may be gone when it is read."""
        super().on_save_checkpoint(checkpoint)
        if self.config is not None:
            spec = specification(DVAE, **self.dvae.arguments())
            built = {key: value for key, value in spec.items() if key != "file"}
            model = self.config["model"]
            model = {**model, "init_args": {**model["init_args"], "autoencoder": built}}
            checkpoint["config"] = {**self.config, "model": model}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See `SafeTraining`.

        Raises:
            ValueError: The run learnt the codes of another dVAE.
        """
        super().on_load_checkpoint(checkpoint)
        stored: dict[str, Tensor] = checkpoint["state_dict"]
        own = {f"autoencoder.{name}": value for name, value in self.dvae.state_dict().items()}
        found = {name: value for name, value in stored.items() if name.startswith("autoencoder.")}
        alike = own.keys() == found.keys()
        if not alike or any(not torch.equal(value.cpu(), found[name].cpu()) for name, value in own.items()):
            raise ValueError(
                f"this run learnt the codes of another dVAE than that in {self.autoencoder_folder}: give "
                "--model.autoencoder the folder of the one it began with, or start another run"
            )
