"""Checks that keep a training from failing silently."""

import logging
from copy import deepcopy
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from composer.decomposition import Batch
from composer.training.checkpoint import averaged_weights
from composer.training.sharding import NAME, FullyShard, whole

log = logging.getLogger(__name__)

PATIENCE = 5
"""Steps in a row without a finite gradient after which a training gives up."""

FLOAT16 = ("16-mixed", "16-true")


def require_rates(learning_rate: float, weight_decay: float, drop: float) -> None:
    """Checks what trainings on captions have in common.

    Args:
        learning_rate: Peak learning rate.
        weight_decay: Decoupled weight decay.
        drop: Probability that a row loses its text.

    Raises:
        ValueError: A value is out of its range.
    """
    if learning_rate <= 0 or weight_decay < 0 or not 0 <= drop <= 1:
        raise ValueError(
            "expected learning_rate > 0, weight_decay >= 0 and drop in [0, 1], found "
            f"{learning_rate:g}, {weight_decay:g} and {drop:g}"
        )


class SafeTraining(L.LightningModule):
    """The base of all trainings: refuses float16, skips steps without a finite gradient, finds the averaged weights.

    Attributes:
        config: The ``model`` and ``data`` sections of the configuration this was built from, as plain values. They
            travel with the checkpoint; None if it was built in Python.
        skipped: Steps that were skipped for want of a finite gradient.
        grad_norm: The norm of all gradients of the last step, before clipping.
    """

    def __init__(self) -> None:
        super().__init__()
        self.config: dict[str, Any] | None = None
        self.skipped = 0
        self.grad_norm = torch.zeros(())
        self._failed: list[list[int]] = []  # the samples of each failed step since the last good one
        self._samples: list[Tensor] = []  # the samples of this step

    def setup(self, stage: str) -> None:
        """Refuses float16.

        Raises:
            ValueError: float16 was asked for, or a strategy that this training does not know.
        """
        if (
            isinstance(self.trainer.strategy, FullyShard)
            and type(self).configure_model is L.LightningModule.configure_model
        ):
            raise ValueError(
                f"{type(self).__name__} fits one device: expected another strategy than {NAME}, such as ddp"
            )
        if self.trainer.precision in FLOAT16:
            raise ValueError("float16 loses small gradients: use --trainer.precision bf16-mixed or 32-true")

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        self._samples.append(batch["seed"])

    def clipped_parts(self) -> list[list[nn.Parameter]]:
        """Parameters whose gradients are clipped together: all of them, unless a training has several losses."""
        return [list(self.parameters())]

    def place_of(self, rows: int, batch_idx: int) -> tuple[int, int]:
        """The place of this batch's first row among all rows of the step, and their number.

        What is drawn for a row depends on that place and on the row's own seed, whatever processes and accumulated
        batches the step is spread over.
        """
        accumulated = self.trainer.accumulate_grad_batches
        number = batch_idx % accumulated * self.trainer.world_size + self.global_rank
        return number * rows, accumulated * self.trainer.world_size * rows

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips the norm of all gradients, or of each part's, and skips the step if it is not finite.

        Ranks agree on this without communication: the gradients are already averaged over them.

        Raises:
            FloatingPointError: So many steps in a row were skipped that the training has diverged.
            ValueError: Gradients were to be clipped by something else than their norm.
        """
        if gradient_clip_algorithm not in (None, "norm"):
            raise ValueError(
                f"gradients are clipped by their norm, found gradient_clip_algorithm={gradient_clip_algorithm}"
            )
        parts = [[p for p in part if p.grad is not None] for part in self.clipped_parts()]
        norms = [whole(torch.nn.utils.get_total_norm([p.grad for p in part if p.grad is not None])) for part in parts]
        self.grad_norm = norms[0] if len(norms) == 1 else torch.stack(norms).norm()
        samples, self._samples = self._samples, []
        if bool(self.grad_norm.isfinite()):
            self._failed = []
            if gradient_clip_val:
                for part, norm in zip(parts, norms, strict=True):
                    torch.nn.utils.clip_grads_with_norm_(part, gradient_clip_val, norm)
            return
        optimizer.zero_grad(set_to_none=True)  # the optimizer passes over parameters without a gradient
        self.skipped += 1
        self._failed.append(torch.cat(samples).tolist())
        log.warning("step %d: loss or gradient is not finite, skipped; samples %s", self.global_step, self._failed[-1])
        if len(self._failed) >= PATIENCE:
            raise FloatingPointError(
                f"no finite gradient in {PATIENCE} steps in a row, up to step {self.global_step}; the samples (by "
                f"seed) were {self._failed}. The "
                "last checkpoint is sound; look at these samples, or lower the learning rate"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["skipped"] = self.skipped
        if self.config is not None:
            checkpoint["config"] = self.config

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continues with the trained weights when fitting; anything else uses the averaged ones."""
        self.skipped = checkpoint.get("skipped", 0)
        if self.trainer.strategy.root_device.type == "cpu":  # the optimizer keeps these very tensors, not the file's
            checkpoint["optimizer_states"] = deepcopy(checkpoint.get("optimizer_states", []))
        if self.trainer.state.fn != "fit":
            checkpoint["state_dict"] = averaged_weights(checkpoint)
