"""Training a stage.

Every random draw is a function of (seed, step, micro-batch, rank, name of the stream), never of a generator's past, so
a run that was killed and resumed is the run that was not.
"""

import hashlib
import logging
import math
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import lightning as L
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from composer.conditioning import Condition, ConditionSet, Keep
from composer.decomposition import Batch, Representations
from composer.diffusion.denoiser import Denoiser, NoiseLevels, shares
from composer.terminal import note
from composer.training.muon import Muon
from composer.training.reader_loss import ReaderLoss
from composer.training.warm_start import warm_start

log = logging.getLogger(__name__)

PATIENCE = 5
"""Steps in a row without a finite gradient after which a training gives up."""


def stream(name: str, *key: int) -> torch.Generator:
    """A generator on the CPU that is a function of its arguments alone.

    Args:
        name: What is drawn from it.
        key: What the draw depends on, such as the seed and the step.
    """
    return torch.Generator().manual_seed(_hash(name, *key))


def _hash(name: str, *key: int) -> int:
    text = "/".join([name, *map(str, key)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")  # mt19937 takes 32 bits


class StageTraining(L.LightningModule):
    """Trains a denoiser and its conditions together (Composer, section 2.3).

    Args:
        denoiser: What is trained.
        conditions: Name -> adapter; the data module needs a decomposer under every one of these names.
        size: Side of the images that the stage samples, in pixels.
        crop: Side of the crops of them that it trains on, as the papers' larger stages do; None trains on whole images.
        start_from: A model whose weights the training begins with: a folder, such as one that was exported before its
            run was lost, or the name of one that ships. Of several stages the one of this size is meant. Conditions
            that it lacks may be added: they start silent (`warm_start`). None begins with fresh weights.
        train_only: Names of the conditions that are trained while all else stays as `start_from` has it; None trains
            everything.
        learning_rate: Peak learning rate of AdamW.
        betas: Decay of AdamW's two moments.
        weight_decay: Decoupled weight decay.
        muon_rate: Peak learning rate of Muon for the U-Net's convolutions except the first and the last, such as 0.02;
            all else stays with AdamW. None trains everything by AdamW, as the papers do.
        warmup_steps: Steps over which the learning rate rises from 0.
        decay_steps: Step at which a cosine from the peak reaches 0; None holds the peak.
        drop_all: Share of the rows that lose every condition (see `ConditionSet` for this and the next four).
        keep_all: Share of the rows that keep every condition.
        keep_one: Share of the rows that keep exactly one.
        keep_two_global: Share of the rows that keep exactly two of those without a map.
        keep_weights: Name -> how much more often than others a condition is among those one or two.
        noise_without_maps: Distribution of the noise levels of rows that keep no condition with a map (a sketch, depth
            and the like); None takes the denoiser's for every row. What words and other global conditions say shows at
            higher noise than the pixels' own redundancy asks for.
        reader_loss: Adds to the loss what frozen readers find amiss in the estimate; None adds nothing, as the papers.
        validation_levels: Noise levels that validation measures at, whatever the training draws, in rising order. The
            rows of the validation set take turns at them; a residual stage takes them in its own unit.
        seed: Decides all draws of the training besides the data's; the same for every rank.

    Attributes:
        config: The ``model`` and ``data`` sections of the configuration this was built from, as plain values. They
            travel with the checkpoint; None if it was built in Python.
        skipped: Steps that were skipped for want of a finite gradient.

    Raises:
        ValueError: A rate, share or level is out of its range, or a name is that of no condition of this stage.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        conditions: dict[str, Condition],
        size: int,
        crop: int | None = None,
        start_from: str | None = None,
        train_only: list[str] | None = None,
        learning_rate: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.01,
        muon_rate: float | None = None,
        warmup_steps: int = 1000,
        decay_steps: int | None = None,
        drop_all: float = 0.1,
        keep_all: float = 0.1,
        keep_one: float = 0.0,
        keep_two_global: float = 0.0,
        keep_weights: dict[str, float] | None = None,
        noise_without_maps: NoiseLevels | None = None,
        reader_loss: ReaderLoss | None = None,
        validation_levels: Sequence[float] = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0),
        seed: int = 0,
    ):
        super().__init__()
        if learning_rate <= 0 or weight_decay < 0 or warmup_steps < 0:
            raise ValueError("expected learning_rate > 0, weight_decay >= 0 and warmup_steps >= 0")
        if muon_rate is not None and muon_rate <= 0:
            raise ValueError(f"expected muon_rate > 0, or null for AdamW alone, found {muon_rate}")
        if decay_steps is not None and decay_steps <= warmup_steps:
            raise ValueError(f"decay_steps={decay_steps} must lie beyond warmup_steps={warmup_steps}")
        self.denoiser, self.size, self.crop, self.start_from = denoiser, size, crop, start_from
        if not validation_levels or min(validation_levels) <= 0 or sorted(validation_levels) != [*validation_levels]:
            raise ValueError(f"expected validation_levels above 0, in rising order, found {validation_levels}")
        self.validation_levels = tuple(validation_levels)
        self.conditions = ConditionSet(conditions, drop_all, keep_all, keep_one, keep_two_global, keep_weights)
        self.noise_without_maps, self.reader_loss = noise_without_maps, reader_loss
        if train_only is not None:
            self._freeze(train_only)
        self.learning_rate, self.betas, self.weight_decay = learning_rate, betas, weight_decay
        self.muon_rate = muon_rate
        self.warmup_steps, self.decay_steps, self.seed = warmup_steps, decay_steps, seed
        self.config: dict[str, Any] | None = None
        self._origin = ""
        self.skipped = 0
        self._failed: list[list[int]] = []  # the samples of each failed step since the last good one
        self._samples: list[Tensor] = []  # the samples of this step
        self._sums = torch.zeros(2, 1 + len(conditions))  # since the last log: losses, rows; in all, then by condition
        self._grad_norm = torch.zeros(())
        self._validated = 0

    def setup(self, stage: str) -> None:
        """Refuses what would train badly in silence, and loads the weights to start from.

        Raises:
            ValueError: float16 was asked for, the weights are those of another plan, or a reader has no gradient.
        """
        if self.trainer.precision == "16-mixed":
            raise ValueError("float16 loses small gradients: use --trainer.precision bf16-mixed or 32-true")
        if self.reader_loss is not None:
            self.reader_loss.check(self.conditions, self.crop or self.size)
        if self.start_from is not None and stage == "fit":  # a checkpoint to resume from is loaded after this
            file, new = warm_start(self.denoiser, self.conditions, self.size, self.start_from)
            added = f"; new and silent at first: {', '.join(new)}" if new else ""
            self._origin = f"starting from {file} of {self.start_from}{added}"

    def on_train_start(self) -> None:
        """Says what the weights were begun with, unless the training is resumed."""
        if self._origin and self.trainer.global_step == 0 and self.trainer.is_global_zero:
            note(self._origin)

    def _freeze(self, but: Collection[str]) -> None:
        """Keeps everything from the optimiser and the average, except for some conditions."""
        if self.start_from is None:
            raise ValueError("train_only leaves the rest as a trained model has it: name that model with start_from")
        if not but or (unknown := sorted(set(but) - set(self.conditions))):
            found = ", ".join(unknown) if but else "none"
            raise ValueError(f"expected train_only out of {', '.join(self.conditions)}; found {found}")
        self.requires_grad_(False)
        for name in but:
            self.conditions[name].requires_grad_(True)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        image, reps = self._read(batch)
        key = (self.seed, self.global_step, batch_idx % self.trainer.accumulate_grad_batches, self.global_rank)
        drawn = self.conditions.draw_keep(len(image), image.device, stream("keep", *key), self._has(reps, batch))
        keep = _known(drawn, batch)
        sigma = self._sigma(shares(len(image), stream("sigma", *key)), keep, reps)
        noise = torch.randn(image.shape, generator=stream("noise", *key)).to(image.device)
        torch.manual_seed(_hash("dropout", *key))  # what modules draw inside has no generator of its own
        read = None if self.reader_loss is None else partial(self.reader_loss, reps, keep, sigma, batch["seed"])
        loss = self.denoiser.loss(image, self.conditions(reps, _size(image), keep), sigma, noise, read)
        self._record(loss.detach(), keep, batch)
        return loss.mean()

    def _read(self, batch: Batch) -> tuple[Float[Tensor, "b 3 h w"], Representations]:
        """Takes the image and the representations that this model has conditions for."""
        image: Tensor = batch["image"]
        side = self.crop or self.size
        if _size(image) != (side, side):
            found = "{} x {}".format(*_size(image))
            raise ValueError(f"this stage trains on {side} x {side} pixels, the data gives {found}")
        return image, {name: value for name, value in batch["representations"].items() if name in self.conditions}

    def _has(self, reps: Representations, batch: Batch) -> Keep:
        """Which rows have a representation, for names where some have not."""
        missing = torch.zeros(len(batch["image"]), dtype=torch.bool)
        known: dict[str, Tensor] = batch.get("known", {})
        return {name: missing for name in self.conditions if name not in reps} | known

    def _sigma(self, u: Float[Tensor, " b"], keep: Keep, reps: Representations) -> Float[Tensor, " b"]:
        """The noise levels that training gives to shares `u` of the draws, row by row."""
        sigma = self.denoiser.quantile(u).to(self.device)
        if self.noise_without_maps is None:
            return sigma
        bare = torch.ones_like(sigma, dtype=torch.bool)
        for name in self.conditions.maps & reps.keys():
            bare &= ~keep[name]
        return torch.where(bare, self.denoiser.quantile(u, self.noise_without_maps).to(self.device), sigma)

    def _record(self, loss: Float[Tensor, " b"], keep: Keep, batch: Batch) -> None:
        rows = torch.stack([torch.ones_like(loss), *(k.float() for k in keep.values())]) * loss.isfinite()
        self._sums = self._sums.to(loss.device) + torch.stack([rows @ loss.nan_to_num(0, 0, 0), rows.sum(1)])
        self._samples.append(batch["seed"])

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips the norm of all gradients, and skips the step if it is not finite.

        Ranks agree on this without a word: the gradients are already averaged over them.

        Raises:
            FloatingPointError: So many steps in a row were skipped that the training has diverged.
        """
        if gradient_clip_algorithm not in (None, "norm"):
            raise ValueError(
                f"gradients are clipped by their norm, found gradient_clip_algorithm={gradient_clip_algorithm}"
            )
        parameters = [p for p in self.parameters() if p.grad is not None]
        self._grad_norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        samples, self._samples = self._samples, []
        if bool(self._grad_norm.isfinite()):
            self._failed = []
            if gradient_clip_val:
                torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, self._grad_norm)
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

    def on_train_batch_end(self, outputs: object, batch: Batch, batch_idx: int) -> None:
        """Logs means since the last log, over all rows and over the rows that kept each condition."""
        accumulating = (batch_idx + 1) % self.trainer.accumulate_grad_batches
        if accumulating or self.global_step % self.trainer.log_every_n_steps or not self.loggers:
            return
        total, rows = self.trainer.strategy.reduce(self._sums, reduce_op="sum").tolist()
        self._sums = torch.zeros_like(self._sums)
        names = ["train/loss", *(f"train/kept/{name}" for name in self.conditions)]
        metrics = {name: t / n for name, t, n in zip(names, total, rows, strict=True) if n}
        metrics |= {"train/grad_norm": float(self._grad_norm), "train/skipped": self.skipped}
        metrics["train/learning_rate"] = self.trainer.optimizers[0].param_groups[0]["lr"]
        for logger in self.loggers:
            logger.log_metrics(metrics, step=self.global_step)

    def on_validation_epoch_start(self) -> None:
        self._validated = 0

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Measures the loss as in training, and the error with all conditions, with none, and with each alone.

        The errors are shares of what a model that learnt nothing makes (`Denoiser.unlearnt`), at `validation_levels`:
        they compare between runs, whatever those draw in training. What has no map is also logged at the two highest
        levels, where it is decided. Level, noise and drops of an item depend on its place in the validation set alone.
        """
        image, reps = self._read(batch)
        items = [(self._validated + i) * self.trainer.world_size + self.global_rank for i in range(len(image))]
        self._validated += len(image)
        generators = [stream("validation", item) for item in items]
        noise = torch.stack([torch.randn(image.shape[1:], generator=g) for g in generators]).to(image)

        def error(keep: Keep, sigma: Tensor) -> Tensor:
            return self.denoiser.error(image, self.conditions(reps, _size(image), keep), sigma, noise)

        def log(name: str, errors: Tensor, rows: Bool[Tensor, " b"]) -> None:
            chosen = errors[rows]
            self.log(name, chosen.sum() / max(1, len(chosen)), batch_size=len(chosen), on_epoch=True, sync_dist=True)

        every = torch.ones(len(image), dtype=torch.bool, device=image.device)
        has = self._has(reps, batch)
        rows = [{name: known[i : i + 1] for name, known in has.items()} for i in range(len(image))]
        drawn = [self.conditions.draw_keep(1, image.device, g, r) for g, r in zip(generators, rows, strict=True)]
        keep = _known({name: torch.cat([k[name] for k in drawn]) for name in self.conditions}, batch)
        # The golden ratio's multiples fill (0, 1) evenly, however many there are.
        u = torch.tensor([(0.5 + item * (math.sqrt(5) - 1) / 2) % 1 for item in items], dtype=torch.float64)
        sigma = self._sigma(u.float(), keep, reps)
        log("val/loss", self.denoiser.weight(sigma) * error(keep, sigma), every)

        place = torch.tensor(items, device=image.device) % len(self.validation_levels)
        sigma = image.new_tensor(self.validation_levels)[place] * (self.denoiser.residual or 1.0)
        spared = {name for name, condition in self.conditions.named() if condition.always}
        alone = [name for name in self.conditions if name in reps and name not in spared]
        sets = [("all", {*self.conditions}, every), ("none", set(), every)]
        sets += [(f"alone/{name}", {name}, _known({name: every}, batch)[name]) for name in alone]
        for label, names, measured in sets:
            keep = _known(self.conditions.keep_only(names, len(image), image.device), batch)
            errors = error(keep, sigma) / self.denoiser.unlearnt(sigma)
            log(f"val/{label}", errors, measured)
            if not self.conditions.maps & (spared | names):
                for i, level in [*enumerate(self.validation_levels)][-2:]:
                    log(f"val/{label}/{level:g}", errors, measured & (place == i))

    def configure_optimizers(self) -> dict[str, Any]:
        trained = [p for p in self.parameters() if p.requires_grad]
        adamw: dict[str, Any] = {"lr": self.learning_rate, "betas": self.betas, "fused": True}
        optimizer: torch.optim.Optimizer
        if self.muon_rate is None:
            optimizer = torch.optim.AdamW(trained, weight_decay=self.weight_decay, **adamw)
        else:
            inner = {id(weight) for weight in self.denoiser.network.inner_convolutions()}
            convolutions = [p for p in trained if id(p) in inner]
            others = [p for p in trained if id(p) not in inner]
            optimizer = Muon(convolutions, others, self.muon_rate, weight_decay=self.weight_decay, **adamw)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.rate(step))  # not saved
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def rate(self, step: int) -> float:
        """The learning rate at a step, as a share of its peak."""
        return rate(step, self.warmup_steps, self.decay_steps)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["skipped"] = self.skipped
        if self.config is not None:
            checkpoint["config"] = self.config

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Goes on with the trained weights when fitting; anything else sees the averaged ones."""
        self.skipped = checkpoint.get("skipped", 0)
        if self.trainer.state.fn != "fit":
            checkpoint["state_dict"] = checkpoint["state_dict"] | checkpoint.get("ema", {})


def rate(step: int, warmup_steps: int, decay_steps: int | None) -> float:
    """A learning rate as a share of its peak: rising for `warmup_steps`, then a cosine that reaches 0 at `decay_steps`.

    Args:
        step: Counted from 0.
        warmup_steps: Steps of the rise.
        decay_steps: None holds the peak.
    """
    rising = min(1.0, (step + 1) / (warmup_steps + 1))
    if decay_steps is None or step < warmup_steps:
        return rising
    return 0.5 + 0.5 * math.cos(math.pi * min(1.0, (step - warmup_steps) / (decay_steps - warmup_steps)))


def _known(keep: Keep, batch: Mapping[str, Any]) -> Keep:
    """Drops what a dataset does not know of a row: in a mixture, not every source has every representation."""
    known: dict[str, Tensor] = batch.get("known", {})
    return {name: rows & known[name].to(rows.device) if name in known else rows for name, rows in keep.items()}


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[-2], image.shape[-1]
