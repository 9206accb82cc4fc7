"""The progress bar of a training."""

import time
from typing import Any

import lightning as L
import rich.console
import rich.progress
import torch
from lightning.pytorch.callbacks.progress.progress_bar import ProgressBar
from torch import Tensor

from .decomposition import Batch


class Progress(ProgressBar):
    """A bar with loss, images a second, the share of time spent waiting for the data loader, and the time left.

    Where the output is no terminal, a line is printed instead as often as metrics are logged.
    """

    def __init__(self) -> None:
        super().__init__()
        self._console = rich.console.Console(stderr=True, soft_wrap=True)
        self._bar: rich.progress.Progress | None = None
        self._task = rich.progress.TaskID(0)
        self._enabled = True
        self._reset(0)

    def _reset(self, step: int) -> None:
        self._first, self._images, self._waited = step, 0, 0.0
        self._losses: list[Tensor] = []
        self._begun = time.monotonic()

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        total = trainer.max_steps if trainer.max_steps > 0 else None
        if self._enabled and self._console.is_terminal:
            columns = (
                rich.progress.TextColumn("step {task.completed}/{task.total}"),
                rich.progress.BarColumn(None),
                rich.progress.TextColumn("{task.fields[status]}"),
                rich.progress.TimeElapsedColumn(),
                rich.progress.TimeRemainingColumn(),
            )
            self._bar = rich.progress.Progress(*columns, console=self._console, refresh_per_second=4)
            self._task = self._bar.add_task("fit", total=total, completed=trainer.global_step, status="")
            self._bar.start()
        if self._enabled:
            size = sum(p.numel() for p in pl_module.parameters() if p.requires_grad)
            where = f"{trainer.world_size} x {trainer.strategy.root_device.type}, {trainer.precision}"
            start = f"from step {trainer.global_step}" if trainer.global_step else "from the start"
            self._console.print(f"{trainer.default_root_dir}: training {size:,} parameters {start} on {where}")
        self._reset(trainer.global_step)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        self._waited += trainer.datamodule.seconds_waiting

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._images += len(batch["seed"]) * trainer.world_size
        self._losses.append(outputs["loss"].detach())
        accumulating = (batch_idx + 1) % trainer.accumulate_grad_batches
        if not self._enabled or accumulating or trainer.global_step % trainer.log_every_n_steps:
            return
        elapsed = time.monotonic() - self._begun
        loss = float(torch.stack(self._losses).mean())
        status = f"loss {loss:.4f}  {self._images / elapsed:.1f} images/s  data {self._waited / elapsed:.0%}"
        if self._bar is not None:
            self._bar.update(self._task, completed=trainer.global_step, status=status)
        else:
            left = (trainer.max_steps - trainer.global_step) * elapsed / max(1, trainer.global_step - self._first)
            self._console.print(f"step {trainer.global_step}/{trainer.max_steps}  {status}  {left:.0f} s left")
        self._reset(trainer.global_step)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._validating = time.monotonic()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._enabled and not trainer.sanity_checking:
            values = {k.removeprefix("val/"): float(v) for k, v in trainer.callback_metrics.items() if "val/" in k}
            text = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
            self._console.print(f"validation at step {trainer.global_step}: {text}", highlight=False)
        self._begun += time.monotonic() - self._validating  # validation is no training

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
