"""What a stage needs before it is trained: parameters, floating-point operations, memory."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .conditioning import ConditionSet
from .denoiser import Denoiser
from .dry_run import Device, Kernels, Step, sampling_step, training_step

PRECISIONS: dict[str, torch.dtype | None] = {"32-true": None, "bf16-mixed": torch.bfloat16}
"""Precisions of a training, and what mixed precision computes in."""


@dataclass(frozen=True)
class Memory:
    """Bytes on a device at the fullest moment of a training step.

    Attributes:
        weights: Parameters and buffers.
        gradients: One a trainable parameter.
        moments: AdamW's two.
        average: Of the weights (`EMA`), in float32.
        kept: Tensors that the way back waits for when it begins.
        passing: What comes on top of all that for a moment.
    """

    weights: int
    gradients: int
    moments: int
    average: int
    kept: int
    passing: int

    @property
    def total(self) -> int:
        return sum(asdict(self).values())


@dataclass(frozen=True)
class Training:
    """What training takes, with checkpointing or without.

    Attributes:
        checkpointing: Whether blocks are computed again on the way back.
        forward: Operations of the way there, an image.
        operations: Operations of a step, an image, with what is computed again.
        memory: Of a step of the batch that was asked for.
        totals: Batch -> bytes in all; for one image, for the batch that was asked for, and for 16 times as many.
    """

    checkpointing: bool
    forward: int
    operations: int
    memory: Memory
    totals: dict[int, int]

    @property
    def an_image(self) -> int:
        """Bytes that an image more takes, where the batch is large."""
        (few, less), (many, more) = sorted(self.totals.items())[-2:]
        return (more - less) // (many - few)

    def largest_batch(self, space: float) -> int:
        """The most images of a batch for which a device with so many bytes suffices; 0 if not even one fits.

        On straight lines between the totals. The truth is the greatest of several lines, one for each moment that may
        be the fullest, so it lies below them.
        """
        points = sorted(self.totals.items())
        few, less = max((point for point in points[:-1] if point[1] <= space), default=(0, 0))
        many, more = next(point for point in points if point[0] > few)
        return few and int(few + (space - less) * (many - few) / (more - less))


@dataclass(frozen=True)
class Sampling:
    """What drawing one image takes, in float32.

    Attributes:
        rows: 2 with guidance, whose terms are one batch, else 1.
        operations: Of a step.
        weights: Bytes of the weights.
        passing: Bytes that come on top at the fullest moment.
    """

    rows: int
    operations: int
    weights: int
    passing: int


@dataclass(frozen=True)
class Report:
    """What a stage needs.

    Attributes:
        network: Parameters of the denoiser's network.
        conditions: Parameters of each condition.
        trainable: Parameters that training changes.
        size: Side of the images that the stage samples, in pixels.
        side: Side of those that it trains on.
        batch: Images a batch and device.
        accumulate: Batches a step.
        precision: Of the training, as the trainer names it.
        device: Whose rules of mixed precision apply.
        configured: What training takes as the stage was built.
        otherwise: The same with checkpointing if there is none, and without if there is.
        sampling: What drawing an image takes.
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
    configured: Training
    otherwise: Training
    sampling: Sampling

    @property
    def parameters(self) -> int:
        return self.network + sum(self.conditions.values())

    def as_json(self) -> dict[str, Any]:
        """All of it, sums included."""
        found = asdict(self) | {"parameters": self.parameters}
        for name, plan in (("configured", self.configured), ("otherwise", self.otherwise)):
            found[name]["memory"]["total"] = plan.memory.total
        return found


RUNS = 7
"""Runs on the meta device that `examine` makes at the most."""


def examine(
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
) -> Report:
    """Examines a stage that was built on the meta device.

    Args:
        denoiser: The stage's.
        conditions: The stage's.
        size: Side of the images that it samples, in pixels.
        side: Side of those that it trains on.
        batch: Images a batch and device.
        accumulate: Batches a step.
        precision: Of the training, as the trainer names it.
        device: Whose rules of mixed precision apply.
        guided: Whether sampling is guided, which doubles its rows.
        progress: Called after each run, of which there are `RUNS` at the most.

    Raises:
        ValueError: `batch` is not positive, or `precision` is none of `PRECISIONS`.
    """
    if batch < 1:
        raise ValueError(f"expected a batch of at least 1 image, found {batch}")
    if precision not in PRECISIONS:
        raise ValueError(f"expected a precision of {', '.join(PRECISIONS)}, found {precision}")
    stage = nn.ModuleList([denoiser, conditions])
    configured = denoiser.network.checkpointing

    def run(images: int, checkpointing: bool) -> Step:
        denoiser.network.checkpointing = checkpointing
        step = training_step(denoiser, conditions, side, images, Kernels(device, PRECISIONS[precision]))
        denoiser.network.checkpointing = configured
        progress()
        return step

    def train(checkpointing: bool) -> Training:
        steps = {images: run(images, checkpointing) for images in {1, batch, 16 * batch}}
        memories = {n: Memory(**_static(stage), kept=s.kept, passing=s.peak - s.kept) for n, s in steps.items()}
        return Training(
            checkpointing=checkpointing,
            forward=steps[1].forward,
            operations=steps[1].operations,
            memory=memories[batch],
            totals={images: memory.total for images, memory in sorted(memories.items())},
        )

    as_configured, otherwise = train(configured), train(not configured)
    rows = 2 if guided else 1
    step = sampling_step(denoiser, conditions, size, rows, Kernels(device, None))
    progress()
    return Report(
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
        sampling=Sampling(rows, step.operations, as_configured.memory.weights, step.peak),
    )


def examine_training(
    words: Sequence[str],
    plugins: Sequence[str] = (),
    batch: int | None = None,
    device: Device = "cuda",
    progress: Callable[[], object] = lambda: None,
) -> Report:
    """Examines the stage of a training's configuration.

    Args:
        words: Of the training's command line: ``-c FILE`` and what it changes.
        plugins: Modules that the user trusts.
        batch: Images a batch and device; None for the configuration's.
        device: Whose rules of mixed precision apply.
        progress: Called after each run, of which there are `RUNS` at the most.

    Raises:
        ValueError: The configuration trains no stage.
    """
    from .cli import ModelAlone
    from .training import StageTraining

    read = ModelAlone(words, plugins)
    model, data, trainer = read.model, read.config.data, read.config.trainer
    if not isinstance(model, StageTraining):
        raise ValueError(f"expected a configuration of StageTraining, found one of {type(model).__name__}")
    return examine(
        model.denoiser,
        model.conditions,
        model.size,
        model.crop or model.size,
        data.batch_size if batch is None else batch,
        trainer.accumulate_grad_batches,
        str(trainer.precision or "32-true"),
        device,
        guided=read.config.grid.guidance != 1,
        progress=progress,
    )


def _count(parameters: Iterable[Tensor]) -> int:
    return sum(p.numel() for p in parameters)


def _static(stage: nn.Module) -> dict[str, int]:
    """What lies on the device all the time, under the names of `Memory`."""
    trained = [p for p in stage.parameters() if p.requires_grad]
    gradients = sum(p.nbytes for p in trained)
    weights = sum(t.nbytes for t in (*stage.parameters(), *stage.buffers()))
    return {"weights": weights, "gradients": gradients, "moments": 2 * gradients, "average": 4 * _count(trained)}


def tables(report: Report) -> list[Any]:
    """Says it all in tables of rich."""
    from rich.table import Table

    parameters = Table("parameters", "")
    for name, count in {"network": report.network, **report.conditions, "in all": report.parameters}.items():
        parameters.add_row(name, f"{count:,}")
    parameters.add_row("share that is trained", f"{report.trainable / report.parameters:.1%}")

    operations = Table("operations (a multiply-add is two)", "billions")
    plan, drawing = report.configured, report.sampling
    again = ", computing blocks again" if plan.checkpointing else ""
    guided = ", guided" if drawing.rows == 2 else ""
    step = plan.operations * report.batch * report.accumulate
    for says, count in {
        f"training, an image of {report.side} px: forward": plan.forward,
        f"forward and backward{again}": plan.operations,
        f"a step on a device: {report.batch} images x {report.accumulate}": step,
        f"drawing, a step of an image of {report.size} px{guided}": drawing.operations,
    }.items():
        operations.add_row(says, _rounded(count / 1e9))

    plans = sorted((report.configured, report.otherwise), key=lambda plan: plan.checkpointing)
    heads = [f"{'with' if p.checkpointing else 'no'} checkpointing{' (configured)' * (p is plan)}" for p in plans]
    memory = Table(f"memory of a device in GB ({report.device}, {report.precision})", *heads)
    for name, says in ROWS.items():
        memory.add_row(says, *(_gigabytes(getattr(p.memory, name)) for p in plans))
    memory.add_row(f"training on {report.batch} images", *(_gigabytes(p.memory.total) for p in plans), style="bold")
    memory.add_row("an image more", *(_gigabytes(p.an_image) for p in plans))
    for space in SPACES:
        memory.add_row(f"images that fit in {space} GB", *(f"{p.largest_batch(space * 1e9):,}" for p in plans))
    drawn = _gigabytes(drawing.weights + drawing.passing)
    memory.add_row(f"drawing an image of {report.size} px{guided}", drawn, drawn)
    return [parameters, operations, memory]


SPACES = (16, 24, 40, 80)
"""Memories of usual devices, in GB. Theirs are of 2^30 bytes, 7% more: room for the allocator's gaps."""

ROWS = {
    "weights": "weights",
    "gradients": "gradients",
    "moments": "AdamW's moments",
    "average": "averaged weights",
    "kept": "kept for the way back",
    "passing": "passing, at the most",
}


def _gigabytes(size: int) -> str:
    return _rounded(size / 1e9)


def _rounded(x: float) -> str:
    """Three digits, or all before the point."""
    return f"{x:,.{max(0, 2 - math.floor(math.log10(x))) if x > 0 else 0}f}"
