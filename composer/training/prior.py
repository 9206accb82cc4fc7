"""Training a prior."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from composer.decomposition import Batch
from composer.prior.interface import SEMANTICS, TEXT, Prior
from composer.storage.pretrained import load_tensors
from composer.training.safety import SafeTraining, require_rates
from composer.training.schedule import Schedule
from composer.training.stage import stream


class PriorTraining(SafeTraining):
    """Trains a prior on captions and image embeddings (unCLIP, section 2.2).

    The data has to give ``text``, captions as `decomposers.Caption` encodes them, and ``semantics``, image embeddings
    of the same CLIP; no images are needed (see `Embeddings`). Every draw is a function of the seed and the step.

    Args:
        prior: What is trained.
        statistics: A file with what was measured on the training data beforehand, such as the principal components that
            `composer pca` writes; None for a prior that needs none.
        learning_rate: Peak learning rate of AdamW.
        betas: Decay of AdamW's two moments.
        eps: What AdamW adds to the root of the second moment.
        weight_decay: Decoupled weight decay.
        warmup_steps: Steps over which the learning rate rises from 0.
        decay_steps: Step at which a cosine from the peak reaches 0; None holds the peak.
        drop: Probability that a row loses its text, for guidance; 0.1 in the paper.
        seed: Decides all draws of the training besides the data's.

    Raises:
        ValueError: A rate is out of its range.
    """

    def __init__(
        self,
        prior: Prior,
        statistics: str | None = None,
        learning_rate: float = 1.1e-4,
        betas: tuple[float, float] = (0.9, 0.96),
        eps: float = 1e-6,
        weight_decay: float = 0.06,
        warmup_steps: int = 1000,
        decay_steps: int | None = None,
        drop: float = 0.1,
        seed: int = 0,
    ):
        super().__init__()
        require_rates(learning_rate, weight_decay, drop)
        self.prior, self.statistics, self.drop, self.seed = prior, statistics, drop, seed
        self.learning_rate, self.betas, self.eps, self.weight_decay = learning_rate, betas, eps, weight_decay
        self.schedule = Schedule(warmup_steps, decay_steps)

    def setup(self, stage: str) -> None:
        """Checks that the data fits the prior, and takes over the statistics.

        Raises:
            ValueError: float16 was asked for, the data lacks text or embeddings, or statistics are missing or foreign.
            FileNotFoundError: There are no statistics at that place.
        """
        super().setup(stage)
        if missing := {TEXT, SEMANTICS} - self.trainer.datamodule.names:
            raise ValueError(f"a prior trains on {TEXT} and {SEMANTICS}; the data has no {', '.join(sorted(missing))}")
        if stage == "fit" and self.trainer.ckpt_path is None:
            if self.statistics is not None:
                if not Path(self.statistics).is_file():
                    raise FileNotFoundError(
                        f"expected statistics at {self.statistics}; `composer pca -c CONFIG --out "
                        f"{self.statistics}` writes them"
                    )
                self.prior.adopt(load_tensors(Path(self.statistics)))
            self.prior.check_ready()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        b, key = len(batch["seed"]), (self.seed, self.global_step, 0, 0)
        first, total = self.place_of(b, batch_idx)
        keep = torch.rand(total, generator=stream("keep", *key))[first : first + b] >= self.drop
        loss = self._loss(batch, keep, stream("noise", *key), (first, total))
        self.log("train/loss", loss)
        return loss

    def _loss(
        self,
        batch: Batch,
        keep: Bool[Tensor, " b"],
        generator: torch.Generator,
        among: tuple[int, int] | None = None,
    ) -> Tensor:
        semantics, text = (batch["representations"][name].float() for name in (SEMANTICS, TEXT))
        return self.prior.loss(semantics, text, keep.to(semantics.device), generator, among).mean()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Logs the loss with all captions and with none; the noise depends on the batch's index alone."""
        b = len(batch["seed"])
        for name, keep in (("val/loss", torch.ones(b)), ("val/none", torch.zeros(b))):
            loss = self._loss(batch, keep.bool(), stream("validation", batch_idx))
            self.log(name, loss, batch_size=b, on_epoch=True, sync_dist=True)

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.AdamW(
            self.parameters(),
            lr=self.learning_rate,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            fused=True,
        )
        return self.schedule.drive(optimizer)
