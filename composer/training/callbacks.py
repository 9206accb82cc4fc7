"""Lightning callbacks: averaged weights and checkpoints."""

import os
import signal
import stat
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io import CheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from composer.decomposition import Batch
from composer.storage.files import remove_abandoned
from composer.terminal import note
from composer.training import checkpoint as checkpoints
from composer.training.checkpoint import AT_ONCE, LAST, PREVIOUS
from composer.training.sharding import own, spread_as, trained_parameters, whole

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP") if hasattr(signal, name))
"""Signals that end a training after it has saved. SLURM announces the end of a job's time by SIGUSR1."""

QUICK = 2.0
"""Seconds after a signal within which another Ctrl-C is taken for the same."""


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
        self._begin(pl_module, self.shadow or trained_parameters(pl_module))

    def _begin(self, pl_module: L.LightningModule, known: Mapping[str, Tensor]) -> None:
        """Begins with known averages: the parameters themselves, or what a checkpoint holds."""
        parameters = trained_parameters(pl_module)
        if missing := sorted(parameters.keys() - known.keys()):
            raise ValueError(f"the checkpoint holds no average of {', '.join(missing[:5])}: it is of another model")
        own_copies = {n: known[n].detach().to(p.device, torch.float32, copy=True) for n, p in parameters.items()}
        self.shadow = {name: spread_as(value, parameters[name]) for name, value in own_copies.items()}

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
        parameters = trained_parameters(pl_module)
        return [own(self.shadow[name]) for name in parameters], [own(p.detach()) for p in parameters.values()]

    @torch.no_grad()
    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.shadow is None:  # not fitting: the checkpoint was loaded with the average in place
            return
        shadow, parameters = self._pairs(pl_module)
        self._trained = {name: p.detach().clone() for name, p in trained_parameters(pl_module).items()}
        torch._foreach_copy_(parameters, shadow)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restore(pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._restore(pl_module)

    @torch.no_grad()
    def _restore(self, pl_module: L.LightningModule) -> None:
        if self._trained is not None:
            kept = [own(value) for value in self._trained.values()]
            torch._foreach_copy_([own(p.detach()) for p in trained_parameters(pl_module).values()], kept)
            self._trained = None

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["ema"] = self._gather(trainer, self.shadow)
        # A checkpoint amid validation holds the trained weights too
        checkpoint["state_dict"] |= self._gather(trainer, self._trained)

    @staticmethod
    def _gather(trainer: L.Trainer, values: dict[str, Tensor] | None) -> dict[str, Tensor]:
        """Puts together what is spread over the processes, for the first of them, which writes it."""
        gathered = {}
        for name, value in (values or {}).items():
            full = whole(value)
            if full is not value:
                full = full.cpu() if trainer.is_global_zero else full.new_empty(0)
            gathered[name] = full
        return gathered

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.shadow is None or not checkpoint.get("ema"):
            self.shadow = checkpoint.get("ema")
        else:  # the fit has begun: of a model that is spread over processes, checkpoints are read later
            self._begin(pl_module, checkpoint["ema"])


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's reading and writing of checkpoints, by `composer.training.checkpoint`.

    Writing the last one keeps the one before, unless that is damaged.
    """

    def __init__(self) -> None:
        self._written: set[Path] = set()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None) -> None:
        path = Path(path)
        kept = path.name == LAST and path.is_file() and (path in self._written or checkpoints.is_sound(path))
        checkpoints.save(checkpoint, path, path.with_name(PREVIOUS) if kept else None)
        self._written.add(path)

    def load_checkpoint(
        self, path: str | Path, map_location: object = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return checkpoints.load(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


class Checkpoints(Checkpoint):
    """Writes ``checkpoints/last.ckpt`` in the run's folder: every so many steps, at the end, and on a signal.

    The one before is kept as ``previous.ckpt``. Ctrl-C, SIGTERM, SIGUSR1 and SIGHUP end the training after the step at
    hand, with an exit status of 128 and the signal's number: on Linux 130, 143, 138 and 129. Another Ctrl-C, after two
    seconds or more, ends it at once.

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
        self._since = 0.0  # when the first signal came
        self._process = 0
        self._terminals: list[int] = []
        self._handlers: dict[int, Any] = {}
        self._listening = False
        self._between = True
        self._speaks = self._began = False

    def most_at_once(self, max_steps: int) -> int | None:
        """Maximum number of checkpoints on the disk in a run of so many steps: kept ones, the last two, the next one.

        Args:
            max_steps: -1 for a run without end.

        Returns:
            Their number; None where it has no bound.
        """
        if self.keep_every is None:
            return AT_ONCE
        return None if max_steps < 0 else AT_ONCE + max_steps // self.keep_every

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            self._speaks = trainer.is_global_zero
            self._listen()  # before the data loader forks its workers, which must survive Ctrl-C to hand over the batch
            if trainer.is_global_zero:
                remove_abandoned(_folder(trainer))
            checkpoints.require_space(_folder(trainer), checkpoints.expected_size(pl_module))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._listen()  # instead of Lightning's handler, which would end without a checkpoint
        self._saved, self._began = trainer.global_step, True

    def _listen(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        self._process, self._terminals = os.getpid(), [handle for handle in (1, 2) if os.isatty(handle)]
        for number in SIGNALS:
            if number.name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN:
                continue  # nohup
            before = signal.signal(number, self._flag)
            self._handlers.setdefault(number, before or signal.SIG_DFL)
        self._listening = True

    def _flag(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a worker of the data loader: it ends with the training
            return
        again = self._signal and number == signal.SIGINT and time.monotonic() - self._since > QUICK
        if not self._listening or again:
            signal.signal(number, self._handlers[number])  # Lightning may have put this handler back after the training
            signal.raise_signal(number)
        elif not self._signal:
            self._since = time.monotonic()
            if self._speaks:
                more = f"; once more after {QUICK:g} s ends at once, without saving" if number == signal.SIGINT else ""
                text = f"\n{signal.Signals(number).name}: saving after this step{more}\n"
                with suppress(OSError):
                    os.write(2, text.encode())  # print may not be called amid a print
            if signal.Signals(number).name == "SIGHUP":
                self._fall_silent()
        self._signal = number

    def _fall_silent(self) -> None:
        """Stops writing to a terminal that was closed and to pipes, which end with it: the next write would fail."""
        for handle in (1, 2):
            closed = handle in self._terminals and not os.isatty(handle)
            if closed or stat.S_ISFIFO(os.fstat(handle).st_mode):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, handle)
                os.close(nowhere)

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
        root = trainer.default_root_dir
        export = f". Make a model of it: composer export {root} models/{Path(root).name}"
        has_config = getattr(pl_module, "config", None) is not None
        self._say(f"done: step {self._saved} saved in {_folder(trainer) / LAST}{export if has_config else ''}")

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._began:
            step, last = trainer.global_step, trainer.max_steps
            self._say(f"nothing to train: the run is at step {step} of {last}; to go on, raise --trainer.max_steps")

    def _obey(self, trainer: L.Trainer) -> None:
        if not self._between:  # what was accumulated is in no checkpoint
            return
        if trainer.strategy.reduce_boolean_decision(bool(self._signal), all=False):
            received = torch.tensor(self._signal, device=trainer.strategy.root_device)
            number = int(trainer.strategy.reduce(received, reduce_op="max"))  # a signal may reach one process alone
            self._save(trainer)
            self._say(
                f"{signal.Signals(number).name}: step {self._saved} saved in {_folder(trainer) / LAST}. "
                "Continue with the same command and --ckpt_path last"
            )
            raise SystemExit(128 + number)

    def _say(self, text: str) -> None:
        if self._speaks:
            note(text)

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
