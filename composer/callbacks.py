"""What happens around the training steps: averaged weights, checkpoints, the sample grid."""

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.fabric.plugins.io import CheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from . import checkpoint as checkpoints
from .decomposition import Batch
from .files import replacing
from .gallery import sheet
from .guidance import Term, guide, threshold
from .samplers import dpmpp_2m, latents
from .training import StageTraining

LAST = "last.ckpt"


class EMA(L.Callback):
    """Keeps an exponential moving average of the trained parameters, in float32; validation and samples use it.

    The decay of the n-th update is min(decay, (1 + n) / (10 + n)), so that a short training averages what it has.

    Args:
        decay: Share of the average that an update keeps, in [0, 1).

    Attributes:
        shadow: Parameter name -> its average; None before the training begins.
    """

    def __init__(self, decay: float = 0.9999):
        if not 0 <= decay < 1:
            raise ValueError(f"expected a decay in [0, 1), found {decay}")
        self.decay = decay
        self.shadow: dict[str, Tensor] | None = None
        self._trained: dict[str, Tensor] | None = None  # the weights that the average stands in for at the moment
        self._step = 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        parameters = _trained(pl_module)
        known = self.shadow or parameters
        if missing := sorted(parameters.keys() - known.keys()):
            raise ValueError(f"the checkpoint holds no average of {', '.join(missing[:5])}: it is of another model")
        self.shadow = {n: known[n].detach().to(p.device, torch.float32, copy=True) for n, p in parameters.items()}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step = trainer.global_step  # not known before: Lightning restores it last

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: Batch, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:  # still accumulating
            return
        n = self._step = trainer.global_step
        decay = min(self.decay, (1 + n) / (10 + n))
        shadow, parameters = self._pairs(pl_module)
        torch._foreach_lerp_(shadow, [p.float() for p in parameters], 1 - decay)

    def _pairs(self, pl_module: L.LightningModule) -> tuple[list[Tensor], list[Tensor]]:
        assert self.shadow is not None
        parameters = _trained(pl_module)
        return [self.shadow[name] for name in parameters], [p.detach() for p in parameters.values()]

    @torch.no_grad()
    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.shadow is None:  # not fitting: the checkpoint was loaded with the average in place
            return
        shadow, parameters = self._pairs(pl_module)
        self._trained = {name: p.detach().clone() for name, p in _trained(pl_module).items()}
        torch._foreach_copy_(parameters, shadow)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restore(pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._restore(pl_module)

    @torch.no_grad()
    def _restore(self, pl_module: L.LightningModule) -> None:
        if self._trained is not None:
            torch._foreach_copy_([p.detach() for p in _trained(pl_module).values()], list(self._trained.values()))
            self._trained = None

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["ema"] = dict(self.shadow or {})
        checkpoint["state_dict"] |= self._trained or {}  # a checkpoint amid validation holds the trained weights too

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.shadow = checkpoint.get("ema")


def _trained(pl_module: L.LightningModule) -> dict[str, Tensor]:
    return {name: p for name, p in pl_module.named_parameters() if p.requires_grad}


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's reading and writing of checkpoints, by `composer.checkpoint`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None) -> None:
        checkpoints.save(checkpoint, Path(path))

    def load_checkpoint(
        self, path: str | Path, map_location: object = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return checkpoints.load(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


class Checkpoints(Checkpoint):
    """Writes ``checkpoints/last.ckpt`` in the run's folder: every so many steps, at the end, and on SIGTERM or Ctrl-C.

    A signal ends the training after the step at hand, with exit status 143 or 130; a second Ctrl-C ends it at once.

    Args:
        every: Steps between two writes.
        keep_every: Steps between two checkpoints that are kept beside the last one, a multiple of `every`;
            None keeps none.
    """

    def __init__(self, every: int = 1000, keep_every: int | None = None):
        if every < 1 or (keep_every is not None and keep_every % every):
            raise ValueError(f"expected every >= 1 and keep_every a multiple of it, found {every} and {keep_every}")
        self.every, self.keep_every = every, keep_every
        self._saved = 0
        self._signal = 0
        self._handlers: dict[int, Any] = {}
        self._listening = False
        self._between = True

    def most_at_once(self, max_steps: int) -> int | None:
        """The most checkpoints on the disk in a run of so many steps: kept ones, the last one and its replacement.

        Args:
            max_steps: -1 for a run without end.

        Returns:
            Their number; None where it has no bound.
        """
        if self.keep_every is None:
            return 2
        return None if max_steps < 0 else 2 + max_steps // self.keep_every

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            self._listen()  # before the data loader forks its workers, which must survive Ctrl-C to hand over the batch
            size = checkpoints.expected_size(pl_module)
            last = _folder(trainer) / LAST
            checkpoints.require_space(last.parent, size if last.exists() else 2 * size)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._listen()  # instead of Lightning's handler, which would end without a checkpoint
        self._saved = trainer.global_step

    def _listen(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                before = signal.signal(number, self._flag)
                self._handlers.setdefault(number, before)
            self._listening = True

    def _flag(self, number: int, frame: FrameType | None) -> None:
        if not self._listening or (self._signal and number == signal.SIGINT):
            signal.signal(number, self._handlers[number])  # Lightning may have put this handler back after the training
            signal.raise_signal(number)
        self._signal = number

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: Batch, batch_idx: int
    ) -> None:
        step = trainer.global_step
        self._between = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if step != self._saved and step % self.every == 0:
            self._save(trainer)
            if self.keep_every and step % self.keep_every == 0:
                trainer.save_checkpoint(_folder(trainer) / f"step-{step:07d}.ckpt")
        self._obey(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._obey(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step != self._saved:
            self._save(trainer)

    def _obey(self, trainer: L.Trainer) -> None:
        if not self._between:  # what was accumulated is in no checkpoint
            return
        number: int = trainer.strategy.reduce_boolean_decision(bool(self._signal), all=False) and (
            self._signal or signal.SIGTERM
        )
        if number:
            self._save(trainer)
            raise SystemExit(128 + number)

    def _save(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(_folder(trainer) / LAST)
        self._saved = trainer.global_step

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._unlisten()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._unlisten()

    def _unlisten(self) -> None:
        if self._listening:
            self._listening = False
            for number, handler in self._handlers.items():
                signal.signal(number, handler)


def _folder(trainer: L.Trainer) -> Path:
    return Path(trainer.default_root_dir) / "checkpoints"


class SampleGrid(L.Callback):
    """Draws, after each validation, a row for each of its first images: original, representations, samples.

    The picture goes to ``samples/`` in the run's folder and to TensorBoard. Seeds are fixed, so pictures compare.

    Args:
        count: Rows.
        samples: Pictures sampled for each row from all of its conditions, with the averaged weights.
        steps: Steps of DPM-Solver++(2M).
        guidance: Weight of classifier-free guidance; 1 is none.
        percentile: Of dynamic thresholding (see `threshold`); None clips.
    """

    def __init__(
        self,
        count: int = 4,
        samples: int = 2,
        steps: int = 20,
        guidance: float = 2.0,
        percentile: float | None = None,
    ):
        if min(count, samples, steps) < 1:
            raise ValueError("expected count, samples and steps of at least 1")
        self.count, self.samples, self.steps = count, samples, steps
        self.guidance, self.percentile = guidance, percentile
        self._batch: Batch = {}

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if batch_idx == 0:
            reps = {name: value[: self.count] for name, value in batch["representations"].items()}
            self._batch = {"image": batch["image"][: self.count], "representations": reps}

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Runs before `EMA` puts the trained weights back."""
        if trainer.sanity_checking or not trainer.is_global_zero or not isinstance(pl_module, StageTraining):
            return  # what trains something else than a stage has nothing to sample
        decomposition = trainer.datamodule.decomposition
        reps = {name: value for name, value in self._batch["representations"].items() if name in pl_module.conditions}
        image = self._batch["image"]
        columns = {"image": image} | {n: decomposition[n].preview(v) for n, v in reps.items() if n in decomposition}
        for seed in range(self.samples):
            columns[f"sample {seed}"] = self._sample(pl_module, reps, image, seed)
        grid = sheet([[column[i] for column in columns.values()] for i in range(len(image))], columns=list(columns))
        with replacing(Path(trainer.default_root_dir) / "samples" / f"{trainer.global_step:07d}.png") as f:
            grid.save(f, "png")
        if isinstance(trainer.logger, L.pytorch.loggers.TensorBoardLogger):
            trainer.logger.experiment.add_image("samples", np.asarray(grid), trainer.global_step, dataformats="HWC")

    def _sample(self, stage: StageTraining, reps: dict[str, Tensor], image: Tensor, seed: int) -> Tensor:
        b, size = len(image), (image.shape[-2], image.shape[-1])
        sigmas = stage.denoiser.sigmas(self.steps)
        with torch.no_grad():
            cond = stage.conditions(reps, size)
            nothing = stage.conditions(reps, size, stage.conditions.keep_only([], b, image.device))
            terms = [Term(cond, self.guidance), Term(nothing, 1 - self.guidance)]
            noise = latents([seed * self.count + row for row in range(b)], tuple(image.shape[1:]), image.device)
            bounded = threshold(guide(stage.denoiser, terms), self.percentile)
            return dpmpp_2m(bounded, stage.denoiser.start(noise, sigmas[0], nothing), sigmas)
