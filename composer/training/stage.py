"""Training a stage.

Every random draw is a function of (seed, step, micro-batch, rank, name of the stream), never of a generator's past, so
a run that was killed and resumed is the run that was not.
"""

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from composer.cascade.stage import require_codec
from composer.conditioning import Condition, ConditionSet, Keep
from composer.decomposition import Batch, Representations
from composer.diffusion.denoiser import Denoiser, NoiseLevels, shares
from composer.names import LATENTS
from composer.networks.autoencoder import Autoencoder
from composer.networks.codec import Codec, Pixels
from composer.networks.dropout import seed_dropout
from composer.networks.stored import specification
from composer.terminal import note
from composer.training.muon import make_optimizer
from composer.training.reader_loss import ReaderLoss
from composer.training.safety import SafeTraining
from composer.training.schedule import Schedule
from composer.training.sharding import FullyShard, shard
from composer.training.warm_start import warm_start

FIRST = "first"
"""The network's first layer, as `train_only` names it."""

GROUNDING = "grounding"
"""The network's layers that read objects, as `train_only` names them."""


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


CACHE = "Delete the *.latents.npy, and run `composer cache` again, or go without them"

DIFFERENT = 0.05
"""Relative error of latents beside an image from which on they are those of another codec; float16 makes 0.001."""


class StageTraining(SafeTraining):
    """Trains a denoiser and its conditions together (Composer, section 2.3).

    A stage with a codec trains on latents (Rombach et al. 2022). Those that lie beside the images as the column
    ``latents`` (`composer cache`) are taken as they are, the others are encoded in every step.

    Args:
        denoiser: What is trained.
        conditions: Name -> adapter; the data module needs a decomposer under every one of these names.
        size: Side of the images that the stage samples, in pixels.
        codec: Folder of a trained autoencoder, on whose latents the stage works; it stays as it is, and becomes a part
            of the model. None trains on pixels.
        crop: Side of the crops of them that it trains on, as the papers' larger stages do; None trains on whole images.
        start_from: A model whose weights the training begins with: a folder, such as one that was exported before its
            run was lost, or the name of one that ships. Of several stages the one of this size is meant. Conditions
            that it lacks may be added: they start silent (`warm_start`). None begins with fresh weights.
        train_only: Names of the conditions that are trained while all else stays as `start_from` has it; ``first``
            among them is the network's first layer, which new maps need where the trained model had none, and
            ``grounding`` are its layers that read objects, with their gates. None trains everything.
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

    Raises:
        ValueError: A rate, share or level is out of its range, or a name is that of no condition of this stage.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        conditions: dict[str, Condition],
        size: int,
        codec: str | None = None,
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
        if learning_rate <= 0 or weight_decay < 0:
            raise ValueError("expected learning_rate > 0 and weight_decay >= 0")
        if muon_rate is not None and muon_rate <= 0:
            raise ValueError(f"expected muon_rate > 0, or null for AdamW alone, found {muon_rate}")
        self.denoiser, self.size, self.crop, self.start_from = denoiser, size, crop, start_from
        if not validation_levels or min(validation_levels) <= 0 or sorted(validation_levels) != [*validation_levels]:
            raise ValueError(f"expected validation_levels above 0, in rising order, found {validation_levels}")
        self.validation_levels = tuple(validation_levels)
        self.conditions = ConditionSet(conditions, drop_all, keep_all, keep_one, keep_two_global, keep_weights)
        self.noise_without_maps, self.reader_loss = noise_without_maps, reader_loss
        self.codec_folder = codec
        self.codec: Codec = Pixels()  # until `setup`
        self._compared = False
        if train_only is not None:
            self._freeze(train_only)
        self.learning_rate, self.betas, self.weight_decay = learning_rate, betas, weight_decay
        self.muon_rate = muon_rate
        self.schedule, self.seed = Schedule(warmup_steps, decay_steps), seed
        self._origin = ""
        self._sums = torch.zeros(2, 1 + len(conditions))  # since the last log: losses, rows; all, then by condition
        self._validated = 0

    def setup(self, stage: str) -> None:
        """Refuses settings that would silently train badly, and loads the weights to start from.

        Raises:
            ValueError: float16 was asked for, weights are of another architecture, the codec does not fit, or a reader
                has no gradient.
            FileNotFoundError: There is no codec, or no model to start from.
        """
        super().setup(stage)
        if self.codec_folder is not None and isinstance(self.codec, Pixels):
            if self.reader_loss is not None:
                raise ValueError(
                    "reader_loss reads pictures, and a stage with a codec estimates latents: leave out one of them"
                )
            # Nothing in it differs in training, and Lightning warns of modules in eval mode.
            self.codec = Autoencoder.load(self.codec_folder).requires_grad_(False).train()
            for side in (self.size, self.crop or self.size):
                require_codec(self.codec, self.denoiser, side, "in training")
        if self.reader_loss is not None:
            self.reader_loss.check(self.conditions, self.crop or self.size)
        if self.start_from is not None and stage == "fit":  # a checkpoint to resume from is loaded after this
            file, new = warm_start(self.denoiser, self.conditions, self.size, self.start_from, self.codec)
            added = f"; new and silent at first: {', '.join(new)}" if new else ""
            self._origin = f"starting from {file} of {self.start_from}{added}"

    def configure_model(self) -> None:
        """Spreads the weights over the processes where the trainer's strategy does that.

        Raises:
            ValueError: Muon, which needs whole matrices, was asked for.
        """
        if not isinstance(self.trainer.strategy, FullyShard):
            return
        if self.muon_rate is not None:
            raise ValueError("Muon needs whole matrices: expected muon_rate: null with this strategy")
        assert self.conditions.maps is not None  # found while the weights are whole
        device = self.trainer.strategy.root_device
        shard(self.denoiser.network, device)
        shard(self.conditions, device)

    def on_train_start(self) -> None:
        """Reports which weights the training starts from, unless it is resumed."""
        if self._origin and self.trainer.global_step == 0 and self.trainer.is_global_zero:
            note(self._origin)

    def _freeze(self, but: Collection[str]) -> None:
        """Keeps everything from the optimiser and the average, except for some conditions."""
        if self.start_from is None:
            raise ValueError("train_only leaves the rest as a trained model has it: name that model with start_from")
        first, grounding = getattr(self.denoiser.network, FIRST, None), self.denoiser.network.object_layers()
        known: dict[str, nn.Module] = dict(self.conditions) | ({} if first is None else {FIRST: first})
        known |= {GROUNDING: nn.ModuleList(grounding)} if grounding else {}
        if not but or (unknown := sorted(set(but) - set(known))):
            found = ", ".join(unknown) if but else "none"
            raise ValueError(f"expected train_only out of {', '.join(known)}; found {found}")
        self.requires_grad_(False)
        for name in but:
            known[name].requires_grad_(True)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        image, reps = self._read(batch)
        key, (first, total) = (self.seed, self.global_step), self.place_of(len(image), batch_idx)
        has = self._has(reps, batch)
        drawn = self.conditions.draw_keep(len(image), image.device, stream("keep", *key), has, (first, total))
        keep = _known(drawn, batch)
        sigma = self._sigma(shares(total, stream("sigma", *key))[first : first + len(image)], keep, reps)
        noise = noise_like(image, [stream("noise", self.seed, seed) for seed in batch["seed"].tolist()])
        seed_dropout(self, batch["seed"])
        torch.manual_seed(_hash("others", *key, first))  # what else modules draw inside has no generator of its own
        read = None if self.reader_loss is None else partial(self.reader_loss, reps, keep, sigma, batch["seed"])
        loss = self.denoiser.loss(image, self.conditions(reps, _size(image), keep), sigma, noise, read)
        self._record(loss.detach(), keep)
        return loss.mean()

    def _read(self, batch: Batch) -> tuple[Float[Tensor, "b c h w"], Representations]:
        """Takes the image, or its latents, and the representations that this model has conditions for."""
        image: Tensor = batch["image"]
        side = self.crop or self.size
        if _size(image) != (side, side):
            found = "{} x {}".format(*_size(image))
            raise ValueError(f"this stage trains on {side} x {side} pixels, the data gives {found}")
        reps = {name: value for name, value in batch["representations"].items() if name in self.conditions}
        return self._encode(image, batch), reps

    @torch.no_grad()
    def _encode(self, image: Float[Tensor, "b 3 h w"], batch: Batch) -> Float[Tensor, "b c h2 w2"]:
        """The images' most likely latents, from beside the images where they lie there."""
        column: Tensor | None = batch.get(LATENTS)
        known: Tensor | None = batch.get("known", {}).get(LATENTS)
        with torch.autocast(image.device.type, enabled=False):
            if isinstance(self.codec, Pixels) or column is None:
                return self.codec.encode(image)
            self._compare(image, column, 0 if known is None else int(known.nonzero()[0]))
            if known is None:
                return column
            return column.index_put((~known,), self.codec.encode(image[~known]))

    def _compare(self, image: Tensor, column: Tensor, row: int) -> None:
        """Checks once that latents beside the images are those of this codec."""
        shape = self.codec.channels, *(side // self.codec.factor for side in _size(image))
        if column.shape[1:] != shape:
            raise ValueError(
                f"expected latents of shape {shape} beside the images, found {tuple(column.shape[1:])}: they are of "
                f"another autoencoder, or of whole images where crops are trained on. {CACHE}"
            )
        if not self._compared:
            own = self.codec.encode(image[row : row + 1])
            error = float((column[row] - own).norm() / own.norm())
            if error > DIFFERENT:
                raise ValueError(
                    f"the latents beside the images are not those of {self.codec_folder}: they differ by {error:.0%}. "
                    f"{CACHE}"
                )
            self._compared = True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds how the codec is built: its weights are in the checkpoint, its folder may be gone when it is read."""
        super().on_save_checkpoint(checkpoint)
        if isinstance(self.codec, Autoencoder) and self.config is not None:
            model = self.config["model"]
            model = {**model, "init_args": {**model["init_args"], "codec": _spec(self.codec)}}
            checkpoint["config"] = {**self.config, "model": model}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See `SafeTraining`.

        Raises:
            ValueError: The run works on the latents of another codec.
        """
        super().on_load_checkpoint(checkpoint)
        trained = checkpoint.get("config", {}).get("model", {}).get("init_args", {}).get("codec")
        own = _spec(self.codec) if isinstance(self.codec, Autoencoder) else None
        if self.config is not None and trained != own:
            raise ValueError(
                f"this run works on the latents of another codec: expected {trained}, found {own} in "
                f"{self.codec_folder}"
            )

    def _has(self, reps: Representations, batch: Batch) -> Keep:
        """Which rows have a representation, for names where some have not."""
        missing = torch.zeros(len(batch["image"]), dtype=torch.bool)
        known: dict[str, Tensor] = batch.get("known", {})
        return {name: missing for name in self.conditions if name not in reps} | known

    def _sigma(self, u: Float[Tensor, " b"], keep: Keep, reps: Representations) -> Float[Tensor, " b"]:
        """The noise levels of training at quantiles `u`, row by row."""
        sigma = self.denoiser.quantile(u).to(self.device)
        if self.noise_without_maps is None:
            return sigma
        bare = torch.ones_like(sigma, dtype=torch.bool)
        for name in self.conditions.maps & reps.keys():
            bare &= ~keep[name]
        return torch.where(bare, self.denoiser.quantile(u, self.noise_without_maps).to(self.device), sigma)

    def _record(self, loss: Float[Tensor, " b"], keep: Keep) -> None:
        rows = torch.stack([torch.ones_like(loss), *(k.float() for k in keep.values())]) * loss.isfinite()
        self._sums = self._sums.to(loss.device) + torch.stack([rows @ loss.nan_to_num(0, 0, 0), rows.sum(1)])

    def on_train_batch_end(self, outputs: object, batch: Batch, batch_idx: int) -> None:
        """Logs means since the last log, over all rows and over the rows that kept each condition."""
        accumulating = (batch_idx + 1) % self.trainer.accumulate_grad_batches
        if accumulating or self.global_step % self.trainer.log_every_n_steps or not self.loggers:
            return
        total, rows = self.trainer.strategy.reduce(self._sums, reduce_op="sum").tolist()
        self._sums = torch.zeros_like(self._sums)
        names = ["train/loss", *(f"train/kept/{name}" for name in self.conditions)]
        metrics = {name: t / n for name, t, n in zip(names, total, rows, strict=True) if n}
        metrics |= {"train/grad_norm": float(self.grad_norm), "train/skipped": self.skipped}
        metrics["train/learning_rate"] = self.trainer.optimizers[0].param_groups[0]["lr"]
        for logger in self.loggers:
            logger.log_metrics(metrics, step=self.global_step)

    def on_validation_epoch_start(self) -> None:
        self._validated = 0
        self._errors: dict[str, Tensor] = {}

    def on_validation_epoch_end(self) -> None:
        """Logs the means over all processes, which may have different numbers of rows; not those of no row."""
        sums = self.trainer.strategy.reduce(torch.stack([*self._errors.values()]), reduce_op="sum")
        found = {n: total / rows for n, (total, rows) in zip(self._errors, sums, strict=True) if rows}
        self.log_dict(found, sync_dist=True)  # equal everywhere; Lightning warns otherwise

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
        noise = noise_like(image, generators)

        def error(keep: Keep, sigma: Tensor) -> Tensor:
            return self.denoiser.error(image, self.conditions(reps, _size(image), keep), sigma, noise)

        once = torch.tensor(items, device=image.device) < len(self.trainer.datamodule.validation)

        def log(name: str, errors: Tensor, rows: Bool[Tensor, " b"]) -> None:
            rows = rows & once  # several processes fill up their last batches with the first items
            found = torch.stack([errors.where(rows, 0).sum(), rows.sum()])
            self._errors[name] = self._errors.get(name, 0) + found

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
        inner = self.denoiser.network.inner_convolutions()
        optimizer = make_optimizer(trained, inner, self.muon_rate, weight_decay=self.weight_decay, **adamw)
        return self.schedule.drive(optimizer)


def noise_like(like: Float[Tensor, "b c h w"], generators: Sequence[torch.Generator]) -> Float[Tensor, "b c h w"]:
    """Standard normal noise, each row from its own generator."""
    return torch.stack([torch.randn(like.shape[1:], generator=g) for g in generators]).to(like)


def _known(keep: Keep, batch: Mapping[str, Any]) -> Keep:
    """Drops what a dataset does not know of a row: in a mixture, not every source has every representation."""
    known: dict[str, Tensor] = batch.get("known", {})
    return {name: rows & known[name].to(rows.device) if name in known else rows for name, rows in keep.items()}


def _spec(codec: Autoencoder) -> dict[str, Any]:
    """How a codec is built, as the specification of a stage has it."""
    spec = specification(type(codec), **codec.arguments())
    return {key: value for key, value in spec.items() if key != "file"}


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[-2], image.shape[-1]
