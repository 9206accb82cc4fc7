"""A training's progress bar and messages."""

import time
from datetime import timedelta
from typing import Any

import lightning as L
import rich.progress
import torch
from lightning.pytorch.callbacks.progress.progress_bar import ProgressBar
from torch import Tensor

from composer.data.folder import find_folders
from composer.decomposition import Batch
from composer.terminal import console, note

EARLY = (1, 3, 10)
"""Steps after which a training is measured at once: its first step is often the slowest by far."""


class Messages(L.Callback):
    """Reports what is trained, and the results of each validation."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        size = sum(p.numel() for p in pl_module.parameters() if p.requires_grad)
        where = f"{trainer.world_size} x {trainer.strategy.root_device.type}, {trainer.precision}"
        start = f"from step {trainer.global_step}" if trainer.global_step else "from the start"
        _say(trainer, f"{trainer.default_root_dir}: training {size:,} parameters {start} on {where}")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            values = {k.removeprefix("val/"): float(v) for k, v in trainer.callback_metrics.items() if "val/" in k}
            text = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
            _say(trainer, f"validation at step {trainer.global_step}: {text}")


def _say(trainer: L.Trainer, text: str) -> None:
    if trainer.is_global_zero:
        note(text)


SLOW = 0.2
"""Share of the time, for reading and decomposing, from which it is worth doing that beforehand."""


class Progress(ProgressBar):
    """A bar with loss, images per second, the share of time spent waiting for the data loader, and the time left.

    They are measured after steps 1, 3 and 10, then as often as metrics are logged. Where the output is no terminal, a
    line is printed each time. The time left is that of the steps alone, without validations. A training that spends
    much of its time on a folder of images is told, once, of `composer prepare`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._console = console(stderr=True, soft_wrap=True)
        self._bar: rich.progress.Progress | None = None
        self._task = rich.progress.TaskID(0)
        self._enabled, self._told = True, False
        self._start = 0
        self._status, self._pace = "", 0.0  # as last measured; the latter in seconds per step
        self._reset(0)

    def _reset(self, step: int) -> None:
        self._first, self._images, self._waited, self._decomposed = step, 0, 0.0, 0.0
        self._losses: list[Tensor] = []
        self._begun = time.monotonic()

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._enabled and self._console.is_terminal:
            columns = (
                rich.progress.TextColumn("step {task.completed}/{task.total}"),
                rich.progress.BarColumn(None),
                rich.progress.TextColumn("{task.fields[status]}{task.fields[left]}"),
                rich.progress.TimeElapsedColumn(),
            )
            total = trainer.max_steps if trainer.max_steps > 0 else None
            self._bar = rich.progress.Progress(*columns, console=self._console, refresh_per_second=4)
            done = trainer.global_step
            self._task = self._bar.add_task("fit", total=total, completed=done, status="first step", left="")
            self._bar.start()
        self._start = trainer.global_step
        self._reset(trainer.global_step)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        self._waited += trainer.datamodule.seconds_waiting
        self._decomposed += trainer.datamodule.seconds_decomposing

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if not self._enabled:
            return
        self._images += len(batch["seed"]) * trainer.world_size
        self._losses.append(outputs["loss"].detach())
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        step, last = trainer.global_step, trainer.max_steps
        measured = step - self._start in EARLY or step % trainer.log_every_n_steps == 0
        if measured:
            reading, decomposing = self._measure(step)
            if step - self._start not in EARLY and next(find_folders(trainer.datamodule.train), None) is not None:
                self._advise(reading, decomposing)
        left = f"  about {timedelta(seconds=round((last - step) * self._pace))} left" if last > 0 else ""
        if self._bar is not None:
            self._bar.update(self._task, completed=step, status=self._status, left=left)
        elif measured:
            self._console.print(f"step {step}{f'/{last}' if last > 0 else ''}  {self._status}{left}")

    def _advise(self, reading: float, decomposing: float) -> None:
        if self._told or reading + decomposing <= SLOW:
            return
        self._told = True
        self._console.print(
            f"note: reading images takes {reading:.0%} of the time, decomposing them {decomposing:.0%}: "
            "`composer prepare` does both once, beforehand (docs/own_images.md)"
        )

    def _measure(self, step: int) -> tuple[float, float]:
        """Measures what is shown; returns the shares of the time for reading and for decomposing."""
        elapsed = time.monotonic() - self._begun
        loss, images = float(torch.stack(self._losses).mean()), self._images / elapsed
        waited, decomposed = self._waited / elapsed, self._decomposed / elapsed
        self._pace = elapsed / (step - self._first)
        self._reset(step)
        self._status = f"loss {loss:.4f}  {images:.1f} images/s  data {waited:.0%}"
        return waited, decomposed

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._validating = time.monotonic()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begun += time.monotonic() - self._validating  # validation is no training

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
