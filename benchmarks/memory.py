"""Memory and time at 1024 px, on a CPU: a step of sampling as a whole and by tiles, a step of training on a crop.

The stages are those of the configurations, with random weights; sampling is `Cascade.sample` of one image by one step,
in two rows where it is guided. Each row of the table is a process of its own, on one thread. Memory is the most that
the process had during the step (VmHWM), less the weights; it includes what the process had before, for Python, its
libraries and, in training, gradients and moments: `idle`. The time is that of the processor, so that what else runs
disturbs little. Linux alone; nine minutes, with --quick, which leaves float32 sampling out, five:

    python benchmarks/memory.py --json benchmarks/results/memory.json
"""

import argparse
import gc
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import conditions  # noqa: F401 (short names in the configurations)
import decomposers  # noqa: F401
from composer import Cascade, Composition, Degradation, Linear, Parts, Sampling, SmallImage, Stage
from composer.cascade.low_res import LowRes
from composer.decomposition import Decomposition
from composer.training.cli import ModelAlone
from composer.training.stage import StageTraining

COMPOSER, IMAGEN = "configs/paper/composer_up1024.yaml", "configs/imagen1024.yaml"
NETWORK = "--model.init_args.denoiser.init_args.network.init_args"


@dataclass(frozen=True)
class Case:
    """What one process measures.

    Attributes:
        name: What the table says.
        config: Of the stage.
        precision: Inside the network.
        tile: Side of the tiles; None samples the whole.
        guidance: Other than 1, each tile has two rows.
        width: Of the network, other than its configuration's.
        training: Trains on one crop instead of sampling.
        size: Side of what is sampled, in pixels.
        crop: Side of what is trained on, in pixels.
    """

    name: str
    config: str
    precision: str
    tile: int | None = None
    guidance: float = 1.0
    width: int | None = None
    training: bool = False
    size: int = 1024
    crop: int = 256


CASES = (
    Case("Composer, whole", COMPOSER, "bf16"),
    Case("Composer, tiles of 256", COMPOSER, "bf16", tile=256),
    Case("Composer, tiles of 256", COMPOSER, "fp32", tile=256),
    Case("Imagen, guided, tiles of 256", IMAGEN, "bf16", tile=256, guidance=3.0),
    Case("training Composer's at width 64", COMPOSER, "fp32", width=64, training=True),
)


def shrunk(case: Case) -> Case:
    """A case of little work, to try this script with."""
    return replace(case, width=32, size=128, crop=32, tile=case.tile and 64)


def build(case: Case) -> StageTraining:
    """The configuration's model with small random weights."""
    words = ["-c", case.config] + ([f"{NETWORK}.width={case.width}"] if case.width else [])
    model: StageTraining = ModelAlone(words).model.to_empty(device="cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.normal_(std=0.02)
    return model


def sampling(model: StageTraining, case: Case) -> Callable[[], object]:
    for part in (model.denoiser, model.conditions):
        part.eval().requires_grad_(False)
    how = Sampling(steps=1, guidance=case.guidance, tile=case.tile)
    stage = Stage(model.denoiser, model.conditions, case.size, how, {"file": "up1024.safetensors"}, LowRes())
    cascade = Cascade([stage], Decomposition({}), Decomposition({}))
    cascade.to("cpu", torch.bfloat16 if case.precision == "bf16" else None)
    reps = {n: c.example(1, (case.size, case.size)) for n, c in model.conditions.named() if n != "low_res"}
    image = torch.rand(1, 3, case.size // 4, case.size // 4)
    asked = Composition(parts=Parts(reps), start=SmallImage(image))
    return lambda: cascade.sample(asked)


def training(model: StageTraining, crop: int) -> Callable[[], object]:
    """The second of two steps: the first makes the optimizer's moments."""
    model.denoiser.noise = Linear()  # the configuration's, whose table has no numbers on the meta device either
    optimizer = torch.optim.AdamW(model.parameters())
    low_res = LowRes(Degradation())

    def step() -> None:
        batch = {"image": torch.rand(1, 3, crop, crop) * 2 - 1, "seed": torch.zeros(1, dtype=torch.long)}
        cond = model.conditions({"low_res": low_res(batch)}, (crop, crop))
        loss = model.denoiser.loss(batch["image"], cond, model.denoiser.draw(1), torch.randn(1, 3, crop, crop))
        optimizer.zero_grad()
        torch.autograd.backward(loss.mean())
        optimizer.step()

    step()
    return step


def status(field: str) -> int:
    """A field of the process's memory, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def measure(case: Case) -> dict[str, Any]:
    torch.set_num_threads(1)
    model = build(case)
    run = training(model, case.crop) if case.training else sampling(model, case)
    weights = sum(p.nbytes for p in model.parameters())
    gc.collect()
    idle = status("VmRSS") - weights
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    began = time.process_time()
    run()
    seconds = time.process_time() - began
    return asdict(case) | {
        "parameters": sum(p.numel() for p in model.parameters()),
        "weights_gib": round(weights / 2**30, 2),
        "idle_gib": round(idle / 2**30, 2),
        "beyond_weights_gib": round((status("VmHWM") - weights) / 2**30, 2),
        "seconds": round(seconds, 1),
    }


def apart(index: int, small: bool) -> dict[str, Any]:
    """Measures a case in a process of its own."""
    words = [sys.executable, __file__, "--case", str(index), *(["--small"] if small else [])]
    done = subprocess.run(words, check=True, text=True, stdout=subprocess.PIPE)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def show(rows: list[dict[str, Any]]) -> None:
    table = Table("step", title=f"one image of {rows[0]['size']} px; training on a crop of {rows[0]['crop']} px")
    for column in ("parameters", "dtype", "weights GiB", "beyond them", "idle", "seconds"):
        table.add_column(column, justify="right")
    for r in rows:
        memory = (f"{r[k]:.2f}" for k in ("weights_gib", "beyond_weights_gib", "idle_gib"))
        table.add_row(r["name"], f"{r['parameters'] / 1e6:.0f}M", r["precision"], *memory, f"{r['seconds']:.0f}")
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file to write the rows to")
    parser.add_argument("--quick", action="store_true", help="leave out sampling in float32, which takes longest")
    parser.add_argument("--small", action="store_true", help="small networks and images, to try this script")
    parser.add_argument("--case", type=int, help="measure this case alone, in this process, and print its row as JSON")
    args = parser.parse_args()
    if sys.platform != "linux":
        parser.error("expected Linux, which says in /proc how much memory a process took")
    if args.case is not None:
        print(json.dumps(measure(shrunk(CASES[args.case]) if args.small else CASES[args.case])))
        return
    wanted = [i for i, c in enumerate(CASES) if not (args.quick and c.precision == "fp32" and not c.training)]
    rows = [apart(i, args.small) for i in track(wanted, "steps")]
    show(rows)
    if args.json:
        machine = {"processor": platform.machine(), "device": "cpu", "torch": torch.__version__, "threads": 1}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
