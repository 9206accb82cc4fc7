"""The learning rate of every training."""

import math
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


@dataclass(frozen=True)
class Schedule:
    """A linear warm-up to the peak, then a constant rate, or a cosine to 0.

    Args:
        warmup_steps: Steps over which the learning rate rises from 0.
        decay_steps: Step at which the cosine reaches 0; None holds the peak.

    Raises:
        ValueError: The numbers of steps do not fit together.
    """

    warmup_steps: int
    decay_steps: int | None = None

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise ValueError(f"expected warmup_steps >= 0, found {self.warmup_steps}")
        if self.decay_steps is not None and self.decay_steps <= self.warmup_steps:
            raise ValueError(f"decay_steps={self.decay_steps} must lie beyond warmup_steps={self.warmup_steps}")

    def rate(self, step: int) -> float:
        """The learning rate at a step, counted from 0, as a share of its peak."""
        rising = min(1.0, (step + 1) / (self.warmup_steps + 1))
        if self.decay_steps is None or step < self.warmup_steps:
            return rising
        done = (step - self.warmup_steps) / (self.decay_steps - self.warmup_steps)
        return 0.5 + 0.5 * math.cos(math.pi * min(1.0, done))

    def drive(self, optimizer: Optimizer) -> dict[str, Any]:
        """Makes an optimizer follow this schedule, in the form that `configure_optimizers` returns."""
        scheduler = LambdaLR(optimizer, lambda step: self.rate(step))  # a lambda, so that it is not saved
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def over_whole_training(warmup_steps: int, total: int) -> Schedule:
    """The schedule whose cosine reaches 0 at the end of a training of `total` steps; a shorter one only warms up."""
    return Schedule(warmup_steps, max(total, warmup_steps + 1))
