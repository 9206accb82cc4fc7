"""Estimates what a training needs before it starts: parameters, FLOPs, memory of a device, decomposers, disk."""

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from composer.conditioning import ConditionSet
from composer.diffusion.denoiser import Denoiser
from composer.networks.codec import Codec, Pixels
from composer.storage.building import build
from composer.storage.finding import find_model, read_config
from composer.training.checkpoint import AT_ONCE, expected_size
from composer.training.decomposer_costs import DecomposerCost, measure_decomposers
from composer.training.doctor_strategies import Strategies, gathered_bytes
from composer.training.dry_run import Device, Kernels, encoding_flops, sampling_step, training_flops, training_memory

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
    """What a stage needs.

    Attributes:
        network: Parameters of the denoiser's network.
        conditions: Parameters of each condition.
        trainable: Parameters that training changes.
        size: Side of the images that the stage samples, in pixels.
        side: Side of those that it trains on.
        batch: Images per batch and device.
        accumulate: Batches per step.
        precision: Of the training, as the trainer names it.
        device: Whose rules of mixed precision apply.
        configured: What training takes as the stage was built.
        otherwise: The same with checkpointing switched.
        sampling: What sampling an image takes.
        codec: Parameters of the codec, 0 for a stage that works on pixels; the figures above leave it out.
        encoding_flops: FLOPs of encoding an image whose latents do not lie beside it.
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
    otherwise: TrainingCost
    sampling: SamplingCost
    codec: int = 0
    encoding_flops: int = 0
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
    if batch < 1:
        raise ValueError(f"expected a batch of at least 1 image, found {batch}")
    if precision not in PRECISIONS:
        raise ValueError(f"expected a precision of {', '.join(PRECISIONS)}, found {precision}")
    stage = nn.ModuleList([denoiser, conditions])
    configured, codec = denoiser.network.checkpointing, codec or Pixels()

    def train(checkpointing: bool) -> TrainingCost:
        denoiser.network.checkpointing = checkpointing
        forward_flops, flops = training_flops(denoiser, conditions, side // codec.factor)
        progress()
        memories = {}
        for images in sorted({1, batch, 16 * batch}):
            kept, peak = training_memory(
                denoiser, conditions, side // codec.factor, images, Kernels(device, PRECISIONS[precision])
            )
            memories[images] = MemoryNeed(**_static(stage), kept=kept, transient=peak - kept)
            progress()
        denoiser.network.checkpointing = configured
        totals = {images: memory.total for images, memory in memories.items()}
        return TrainingCost(checkpointing, forward_flops, flops, memories[batch], totals)

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


def estimate_training_needs(
    words: Sequence[str],
    plugins: Sequence[str] = (),
    batch: int | None = None,
    device: Device = "cuda",
    progress: Callable[[], object] = lambda: None,
) -> TrainingNeeds:
    """Estimates a training's needs: its stage, those of its decomposers that are on this machine, its checkpoints.

    Args:
        words: Of the training's command line: ``-c FILE`` and what it changes.
        plugins: Modules that the user trusts.
        batch: Images per batch and device; None for the configuration's.
        device: Whose rules of mixed precision apply.
        progress: Called after each of at most `RUNS` runs, and once when the decomposers are measured.

    Raises:
        ValueError: The configuration trains no stage.
    """
    from composer.training.cli import ModelAlone
    from composer.training.stage import StageTraining

    read = ModelAlone(words, plugins)
    model, data, trainer = read.model, read.config.data, read.config.trainer
    if not isinstance(model, StageTraining):
        raise ValueError(f"expected a configuration of StageTraining, found one of {type(model).__name__}")
    side = model.crop or model.size
    report = estimate_needs(
        model.denoiser,
        model.conditions,
        model.size,
        side,
        data.batch_size if batch is None else batch,
        trainer.accumulate_grad_batches,
        str(trainer.precision or "32-true"),
        device,
        guided=read.config.grid.guidance != 1,
        progress=progress,
        codec=_codec_of(model.codec_folder),
    )
    specs = {name: spec.as_dict() for name, spec in data.decomposers.items() if name in model.conditions}
    costs, weights = measure_decomposers(specs, data.source or side, plugins)
    progress()
    most = read.config_init.checkpoints.most_at_once(trainer.max_steps)
    disk = disk_of(Path(read.run_folder(read.config)), expected_size(model), most)
    return replace(report, decomposers=costs, decomposer_weights=weights, disk=disk)


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
    spec = read_config(find_model(folder), "autoencoders")["autoencoders"][0]
    with torch.device("meta"):
        return build(spec, Codec)


def _count(parameters: Iterable[Tensor]) -> int:
    return sum(p.numel() for p in parameters)


def _static(stage: nn.Module) -> dict[str, int]:
    """What lies on the device all the time, under the names of `MemoryNeed`."""
    trained = [p for p in stage.parameters() if p.requires_grad]
    gradients = sum(p.nbytes for p in trained)
    weights = sum(t.nbytes for t in (*stage.parameters(), *stage.buffers()))
    return {"weights": weights, "gradients": gradients, "moments": 2 * gradients, "average": 4 * _count(trained)}
