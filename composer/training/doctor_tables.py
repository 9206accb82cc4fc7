"""The doctor's report in tables."""

import math
from collections.abc import Iterator

import rich.table
from rich.text import Text

from composer.images.table import Table
from composer.training.doctor import Disk, TrainingNeeds

SPACES = (16, 24, 40, 80)
"""Memories of usual devices, in GB. Theirs are of 2^30 bytes, 7% more: room for the allocator's gaps."""

MEMORY_ROWS = {
    "weights": "weights",
    "gradients": "gradients",
    "moments": "AdamW's moments",
    "average": "averaged weights",
    "kept": "live when the backward pass starts",
    "transient": "transient, at the peak",
}


def make_tables(report: TrainingNeeds) -> Iterator[rich.table.Table | Text]:
    """Makes tables for a terminal, with a warning where the disk is too small."""
    yield _parameters(report).rich()
    yield _flops(report).rich()
    yield _memory(report).rich()
    if report.left_out:
        yield Text(f"These figures leave out {report.left_out}.")
    if report.sampling is not None:  # only a stage's weights can be spread over devices
        yield _strategies(report).rich()
    if report.decomposers:
        yield _decomposers(report).rich()
    if report.disk is not None:
        yield _disk(report.disk).rich()
        if not report.disk.fits:
            yield Text(_warning(report.disk), style="bold red")


def _parameters(report: TrainingNeeds) -> Table:
    counts = {"network": report.network, **report.conditions, "in total": report.parameters}
    rows = [(name, f"{count:,}") for name, count in counts.items()]
    rows += [("besides, the frozen autoencoder", f"{report.codec:,}")] if report.codec else []
    return Table(("parameters", ""), [*rows, ("share that is trained", f"{report.trainable / report.parameters:.1%}")])


def _flops(report: TrainingNeeds) -> Table:
    plan = report.configured
    again = ", computing blocks again" if plan.checkpointing else ""
    counts = {
        f"training, per image of {report.side} px: forward pass": plan.forward_flops,
        f"in total{again}": plan.flops,
        f"per step of a device: {report.batch} images x {report.accumulate}": (
            plan.flops * report.batch * report.accumulate
        ),
    }
    if report.sampling is not None:
        counts[f"sampling, per step of an image of {report.size} px{_guided(report)}"] = report.sampling.flops
    if report.codec:
        stored = "" if report.sampling is None else " whose latents do not lie beside it"
        counts[f"encoding an image{stored}"] = report.encoding_flops
    rows = [(name, _rounded(flops / 1e9)) for name, flops in counts.items()]
    return Table(("FLOPs (a multiply-add is two)", "billions"), rows)


def _memory(report: TrainingNeeds) -> Table:
    both = [plan for plan in (report.configured, report.otherwise) if plan is not None]
    plans = sorted(both, key=lambda plan: plan.checkpointing)
    heads = [
        f"{'with' if p.checkpointing else 'no'} checkpointing{' (configured)' * (p is report.configured)}"
        for p in plans
    ]
    rows = [
        *([row, *(_gigabytes(getattr(p.memory, name)) for p in plans)] for name, row in MEMORY_ROWS.items()),
        [f"training on {report.batch} images", *(_gigabytes(p.memory.total) for p in plans)],
        ["per further image", *(_gigabytes(p.per_image) for p in plans)],
        *([f"images that fit in {n} GB", *(f"{p.largest_batch(n * 1e9):,}" for p in plans)] for n in SPACES),
    ]
    if report.sampling is not None:
        sampling = _gigabytes(report.sampling.weights + report.sampling.transient)
        rows.append([f"sampling an image of {report.size} px{_guided(report)}", *[sampling] * len(plans)])
    head = [f"memory of a device in GB ({report.device}, {report.precision})", *heads]
    return Table(head, rows, bold=[len(MEMORY_ROWS)])


def _strategies(report: TrainingNeeds) -> Table:
    plans = report.strategies
    rows = [
        ("copy of the trained weights, in validation", _gigabytes(plans.copied)),
        ("weights of decomposers", _gigabytes(plans.decomposers)),
        ("in total, on one device", _gigabytes(plans.alone)),
        ("gradients again, in DDP's buckets", _gigabytes(plans.buckets)),
        ("in total, with --trainer.strategy ddp", _gigabytes(plans.ddp)),
        ("with fully_shard, on each of 8 devices", _gigabytes(plans.sharded(8))),
    ]
    rows += [(f"devices of {space} GB that this fits", plans.advise(space * 1e9)) for space in SPACES[1:]]
    return Table(("memory of each device in GB, on one or several", ""), rows)


def _decomposers(report: TrainingNeeds) -> Table:
    rows = []
    for name, cost in report.decomposers.items():
        parameters = "?" if cost.parameters is None else f"{cost.parameters:,}"
        weights = "?" if cost.weights is None else _gigabytes(cost.weights)
        flops = "?" if cost.flops is None else _rounded(cost.flops / 1e9)
        rows.append((name, parameters, weights, flops, cost.remark))
    total = ("counted, shared weights once", "", _gigabytes(report.decomposer_weights), "", "")
    head = ("decomposer (beside the memory above)", "parameters", "GB of weights", "billion FLOPs per image", "")
    return Table(head, [*rows, total], bold=[len(rows)])


def _disk(disk: Disk) -> Table:
    count = "no bound: a run without end keeps more and more" if disk.most is None else str(disk.most)
    rows = [
        ("one checkpoint", _gigabytes(disk.checkpoint)),
        ("most checkpoints at once", count),
        ("needed for further ones", _gigabytes(disk.needed)),
        (f"free in {disk.folder}", _gigabytes(disk.free)),
    ]
    return Table(("disk", "GB"), rows)


def _warning(disk: Disk) -> str:
    return (
        f"The checkpoints do not fit: {_gigabytes(disk.needed)} GB are needed, {_gigabytes(disk.free)} GB are free in "
        f"{disk.folder}. Make room, keep fewer (a larger --checkpoints.keep_every), or choose another folder with "
        "--trainer.default_root_dir"
    )


def _guided(report: TrainingNeeds) -> str:
    return ", guided" if report.sampling is not None and report.sampling.rows == 2 else ""


def _gigabytes(size: int) -> str:
    return _rounded(size / 1e9)


def _rounded(x: float) -> str:
    """Three digits, or all before the point."""
    return f"{x:,.{max(0, 2 - math.floor(math.log10(x))) if x > 0 else 0}f}"
