"""Estimates what a training needs before it starts: parameters, FLOPs, memory of a device, decomposers, disk."""

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from composer.conditioning import ConditionSet
from composer.diffusion.denoiser import Denoiser
from composer.networks.codec import Codec, Pixels
from composer.storage.building import Buildable, build
from composer.storage.finding import find_model, read_config
from composer.training.checkpoint import AT_ONCE, expected_size
from composer.training.decomposer_costs import DecomposerCost, measure_decomposers
from composer.training.doctor_strategies import Strategies, gathered_bytes
from composer.training.dry_run import Device, Kernels, Step, encoding_flops, sampling_step, stage_step

T = TypeVar("T", bound=Buildable)

PRECISIONS: dict[str, torch.dtype | None] = {"32-true": None, "bf16-mixed": torch.bfloat16}
"""Precisions of a training, and what mixed precision computes in."""


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes on a device at the peak of a training step.

    Attributes:
        weights: Parameters and buffers.
        gradients: One per trained parameter.
        moments: AdamW's two.
        average: Of the weights (`EMA`), in float32.
        kept: Other tensors that are live when the backward pass starts.
        transient: What the peak adds to all that.
    """

    weights: int
    gradients: int
    moments: int
    average: int
    kept: int
    transient: int

    @property
    def total(self) -> int:
        return sum(asdict(self).values())


@dataclass(frozen=True)
class TrainingCost:
    """What a training needs, with activation checkpointing or without.

    Attributes:
        checkpointing: Whether the backward pass computes blocks again.
        forward_flops: FLOPs of the forward pass, per image.
        flops: FLOPs of a step in total, per image, with what is computed again.
        memory: Of a step of the batch that was asked for.
        totals: Batch -> bytes in total; for one image, for the batch that was asked for, and for 16 times as many.
    """

    checkpointing: bool
    forward_flops: int
    flops: int
    memory: MemoryNeed
    totals: dict[int, int]

    @property
    def per_image(self) -> int:
        """Bytes per additional image of a large batch."""
        (few, less), (many, more) = sorted(self.totals.items())[-2:]
        return (more - less) // (many - few)

    def largest_batch(self, space: float) -> int:
        """The largest batch that fits on a device with so many bytes; 0 if not even one image fits.

        On straight lines between the totals. The truth is the maximum of several lines, one for each moment that may
        be the peak, so it lies below them.
        """
        points = sorted(self.totals.items())
        few, less = max((point for point in points[:-1] if point[1] <= space), default=(0, 0))
        many, more = next(point for point in points if point[0] > few)
        return few and int(few + (space - less) * (many - few) / (more - less))


@dataclass(frozen=True)
class SamplingCost:
    """What sampling one image needs, in float32.

    Attributes:
        rows: 2 with guidance, whose terms are one batch, else 1.
        flops: FLOPs of a step.
        weights: Bytes of the weights.
        transient: Bytes that the peak adds to them.
    """

    rows: int
    flops: int
    weights: int
    transient: int


@dataclass(frozen=True)
class Disk:
    """What checkpoints need on the disk.

    Attributes:
        folder: The run's.
        checkpoint: Bytes of one.
        most: The largest number at any moment; None where a run without end keeps more and more.
        present: Bytes of this run's existing ones.
        free: Free bytes.
    """

    folder: str
    checkpoint: int
    most: int | None
    present: int
    free: int

    @property
    def needed(self) -> int:
        """Bytes that further checkpoints need; in a run without a last step, the last two and the next one."""
        return max(0, (self.most or AT_ONCE) * self.checkpoint - self.present)

    @property
    def fits(self) -> bool:
        return self.needed <= self.free


@dataclass(frozen=True)
class TrainingNeeds:
    """What a training needs: of a stage, an autoencoder, a dVAE or DALL-E's transformer.

    Attributes:
        network: Parameters of the network: of a stage, the denoiser's.
        conditions: Parameters of each condition of a stage.
        trainable: Parameters that training changes.
        size: Side of the images that a stage samples, in pixels; else the same as `side`.
        side: Side of those that it trains on.
        batch: Images per batch and device.
        accumulate: Batches per step.
        precision: Of the training, as the trainer names it.
        device: Whose rules of mixed precision apply.
        configured: What training takes as the network was built.
        otherwise: The same with checkpointing switched; None for a network without checkpointing.
        sampling: What sampling an image takes; None where that was not measured.
        codec: Parameters of the frozen codec or dVAE, 0 for a training without one; the figures above leave it out.
        encoding_flops: FLOPs of encoding an image by it.
        left_out: What else the figures leave out, in words; "" for nothing.
        decomposers: What each decomposer of the training costs, which the figures above leave out.
        decomposer_weights: Bytes of the weights of those that were counted, shared ones once.
        disk: What checkpoints take; None for a stage without a training.
        gathered: Bytes that a device holds whole where weights are spread over several (`gathered_bytes`).
    """

    network: int
    conditions: dict[str, int]
    trainable: int
    size: int
    side: int
    batch: int
    accumulate: int
    precision: str
    device: Device
    configured: TrainingCost
    otherwise: TrainingCost | None
    sampling: SamplingCost | None
    codec: int = 0
    encoding_flops: int = 0
    left_out: str = ""
    decomposers: dict[str, DecomposerCost] = field(default_factory=dict)
    decomposer_weights: int = 0
    disk: Disk | None = None
    gathered: int = 0

    @property
    def strategies(self) -> Strategies:
        """What a device needs, by strategy."""
        need = self.configured.memory
        static = need.weights + need.gradients + need.moments + need.average
        working = need.kept + need.transient
        copied = need.gradients  # as many bytes as the trained weights
        return Strategies(static, working, copied, need.gradients, self.gathered, self.decomposer_weights)

    @property
    def parameters(self) -> int:
        return self.network + sum(self.conditions.values())

    def as_json(self) -> dict[str, Any]:
        """All of it, sums included."""
        plans = self.strategies
        found = asdict(self) | {"parameters": self.parameters}
        found["strategies"] = asdict(plans) | {"alone": plans.alone, "ddp": plans.ddp}
        for name, plan in (("configured", self.configured), ("otherwise", self.otherwise)):
            if plan is not None:
                found[name]["memory"]["total"] = plan.memory.total
        if self.disk is not None:
            found["disk"] |= {"needed": self.disk.needed, "fits": self.disk.fits}
        return found


RUNS = 9
"""The largest number of runs on the meta device that `estimate_needs` makes."""


def estimate_needs(
    denoiser: Denoiser,
    conditions: ConditionSet,
    size: int,
    side: int,
    batch: int,
    accumulate: int = 1,
    precision: str = "32-true",
    device: Device = "cuda",
    guided: bool = True,
    progress: Callable[[], object] = lambda: None,
    codec: Codec | None = None,
) -> TrainingNeeds:
    """Estimates the needs of a stage that was built on the meta device.

    Args:
        denoiser: The stage's.
        conditions: The stage's.
        size: Side of the images that it samples, in pixels.
        side: Side of those that it trains on.
        batch: Images per batch and device.
        accumulate: Batches per step.
        precision: Of the training, as the trainer names it.
        device: Whose rules of mixed precision apply.
        guided: Whether sampling is guided, which doubles its rows.
        progress: Called after each of at most `RUNS` runs.
        codec: What makes the stage's latents, on the meta device; None for a stage that works on pixels.

    Raises:
        ValueError: `batch` is not positive, or `precision` is none of `PRECISIONS`.
    """
    require_known(batch, precision)
    stage = nn.ModuleList([denoiser, conditions])
    configured, codec = denoiser.network.checkpointing, codec or Pixels()

    def train(checkpointing: bool) -> TrainingCost:
        denoiser.network.checkpointing = checkpointing
        step = stage_step(denoiser, conditions, side // codec.factor)
        cost = measure_step(step, batch, precision, device, checkpointing, progress)
        denoiser.network.checkpointing = configured
        return cost

    as_configured, otherwise = train(configured), train(not configured)
    rows = 2 if guided else 1
    step_flops, peak = sampling_step(denoiser, conditions, size // codec.factor, rows, Kernels(device, None))
    progress()
    return TrainingNeeds(
        network=_count(denoiser.parameters()),
        conditions={name: _count(condition.parameters()) for name, condition in conditions.named()},
        trainable=_count(p for p in stage.parameters() if p.requires_grad),
        size=size,
        side=side,
        batch=batch,
        accumulate=accumulate,
        precision=precision,
        device=device,
        configured=as_configured,
        otherwise=otherwise,
        sampling=SamplingCost(rows, step_flops, as_configured.memory.weights, peak),
        codec=_count(codec.parameters()),
        encoding_flops=encoding_flops(codec, side),
        gathered=gathered_bytes([denoiser.network, conditions]),
    )


def require_known(batch: int, precision: str) -> None:
    """Checks what is estimated for.

    Raises:
        ValueError: `batch` is not positive, or `precision` is none of `PRECISIONS`.
    """
    if batch < 1:
        raise ValueError(f"expected a batch of at least 1 image, found {batch}")
    if precision not in PRECISIONS:
        raise ValueError(f"expected a precision of {', '.join(PRECISIONS)}, found {precision}")


def measure_step(
    step: Step,
    batch: int,
    precision: str,
    device: Device,
    checkpointing: bool = False,
    progress: Callable[[], object] = lambda: None,
) -> TrainingCost:
    """Measures a training step on the meta device, in four runs.

    Args:
        step: The step.
        batch: Images per batch and device.
        precision: Of the training, as the trainer names it.
        device: Whose rules of mixed precision apply.
        checkpointing: Whether the backward pass computes blocks again, as the network is built.
        progress: Called after each run.
    """
    forward_flops, flops = step.flops()
    progress()
    memories = {}
    for images in sorted({1, batch, 16 * batch}):
        kept, peak = step.memory(images, Kernels(device, PRECISIONS[precision]))
        memories[images] = MemoryNeed(**_static(step.network), kept=kept, transient=peak - kept)
        progress()
    totals = {images: memory.total for images, memory in memories.items()}
    return TrainingCost(checkpointing, forward_flops, flops, memories[batch], totals)


def estimate_training_needs(
    words: Sequence[str],
    plugins: Sequence[str] = (),
    batch: int | None = None,
    device: Device = "cuda",
    progress: Callable[[], object] = lambda: None,
) -> TrainingNeeds:
    """Estimates a training's needs: its network, those of its decomposers that are on this machine, its checkpoints.

    Args:
        words: Of the training's command line: ``-c FILE`` and what it changes.
        plugins: Modules that the user trusts.
        batch: Images per batch and device; None for the configuration's.
        device: Whose rules of mixed precision apply.
        progress: Called after each of at most `RUNS` runs, and once when the decomposers are measured.

    Raises:
        ValueError: The configuration trains something else than a stage, an autoencoder, a dVAE or a transformer.
        FileNotFoundError: An autoencoder that it builds on is missing.
    """
    from composer.training.cli import ModelAlone
    from composer.training.stage import StageTraining

    read = ModelAlone(words, plugins)
    model, data, trainer = read.model, read.config.data, read.config.trainer
    images, precision = data.batch_size if batch is None else batch, str(trainer.precision or "32-true")
    if isinstance(model, StageTraining):
        side = model.crop or model.size
        report = estimate_needs(
            model.denoiser,
            model.conditions,
            model.size,
            side,
            images,
            trainer.accumulate_grad_batches,
            precision,
            device,
            guided=read.config.grid.guidance != 1,
            progress=progress,
            codec=_codec_of(model.codec_folder),
        )
        checkpoint = expected_size(model)
        specs = {name: spec.as_dict() for name, spec in data.decomposers.items() if name in model.conditions}
    else:
        report = _estimate_others(model, data, images, trainer.accumulate_grad_batches, precision, device, progress)
        side, checkpoint = report.side, expected_size(model) + 4 * report.codec  # checkpoints have the dVAE's weights
        specs = {name: spec.as_dict() for name, spec in data.decomposers.items()}
    costs, weights = measure_decomposers(specs, data.source or side, plugins)
    progress()
    most = read.config_init.checkpoints.most_at_once(trainer.max_steps)
    disk = disk_of(Path(read.run_folder(read.config)), checkpoint, most)
    return replace(report, decomposers=costs, decomposer_weights=weights, disk=disk)


def _estimate_others(
    model: Any,
    data: Any,
    batch: int,
    accumulate: int,
    precision: str,
    device: Device,
    progress: Callable[[], object],
) -> TrainingNeeds:
    """Estimates the needs of a training of an autoencoder, a dVAE or DALL-E's transformer.

    Raises:
        ValueError: The training is of another class.
    """
    from composer.networks.dvae import DVAE
    from composer.training.autoencoder import AutoencoderTraining
    from composer.training.dry_steps import autoencoder_step, dvae_step, image_tokens_step
    from composer.training.dvae import DVAETraining
    from composer.training.image_tokens import ImageTokensTraining

    require_known(batch, precision)
    parameters, flops, left_out = 0, 0, ""
    if isinstance(model, AutoencoderTraining):
        side = _side_of(data.train)
        step = autoencoder_step(model.autoencoder, side, model.discriminator)
        left_out = "the frozen network of the perceptual distance"
    elif isinstance(model, DVAETraining):
        side = _side_of(data.train)
        step = dvae_step(model.autoencoder, side)
    elif isinstance(model, ImageTokensTraining):
        side, step = model.size, image_tokens_step(model.tokens)
        dvae = _stored(model.autoencoder_folder, DVAE)
        parameters, flops = _count(dvae.parameters()), encoding_flops(dvae, side)
    else:
        raise ValueError(
            "expected a configuration of StageTraining, AutoencoderTraining, DVAETraining or ImageTokensTraining, "
            f"found one of {type(model).__name__}"
        )
    return TrainingNeeds(
        network=_count(step.network.parameters()),
        conditions={},
        trainable=_count(p for p in step.network.parameters() if p.requires_grad),
        size=side,
        side=side,
        batch=batch,
        accumulate=accumulate,
        precision=precision,
        device=device,
        configured=measure_step(step, batch, precision, device, progress=progress),
        otherwise=None,
        sampling=None,
        codec=parameters,
        encoding_flops=flops,
        left_out=left_out,
    )


def _side_of(dataset: Any) -> int:
    """Side of the images that a data set of a configuration gives: of the first one, where it mixes several.

    Raises:
        ValueError: The configuration does not say it.
    """
    arguments = dataset.init_args
    if isinstance(side := arguments.get("size"), int):
        return side
    for inner in arguments.get("datasets") or ():
        return _side_of(inner)
    raise ValueError(f"expected a data set with a size in pixels, found {dataset.class_path} without one")


def disk_of(folder: Path, checkpoint: int, most: int | None) -> Disk:
    """Measures the disk on which a run's folder is or will be.

    Args:
        folder: The run's.
        checkpoint: Bytes of one.
        most: The largest number at any moment; None for no bound.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    present = sum(file.stat().st_size for file in (folder / "checkpoints").glob("*.ckpt"))
    return Disk(str(folder), checkpoint, most, present, shutil.disk_usage(there).free)


def _codec_of(folder: str | None) -> Codec:
    """A training's codec on the meta device."""
    if folder is None:
        return Pixels()
    return _stored(folder, Codec)


def _stored(folder: str, cls: type[T]) -> T:
    """An autoencoder's folder, as a network on the meta device."""
    spec = read_config(find_model(folder), "autoencoders")["autoencoders"][0]
    with torch.device("meta"):
        return build(spec, cls)


def _count(parameters: Iterable[Tensor]) -> int:
    return sum(p.numel() for p in parameters)


def _static(stage: nn.Module) -> dict[str, int]:
    """What lies on the device all the time, under the names of `MemoryNeed`."""
    trained = [p for p in stage.parameters() if p.requires_grad]
    gradients = sum(p.nbytes for p in trained)
    weights = sum(t.nbytes for t in (*stage.parameters(), *stage.buffers()))
    return {"weights": weights, "gradients": gradients, "moments": 2 * gradients, "average": 4 * _count(trained)}
