"""Inversion: how exactly pictures come back from the noise that they are inverted to.

Scenes of the split `val` are inverted under some of their representations and drawn again from there:

    python benchmarks/round_trip.py --json benchmarks/results/round_trip.json

PSNR is that of the picture that comes back, in dB, over values in [-1, 1]; `std` the standard deviation of the inverted
noise, which is 1 where the model has learnt the pictures' distribution.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from composer.cascade import Cascade
from composer.evaluating import sample_of
from composer.files import write_atomically

UNDER = {
    "semantics, palette": ("semantics", "palette"),
    "all but the mask": ("caption", "semantics", "palette", "sketch", "instances", "depth", "intensity"),
    "nothing": (),
}
STEPS = 10, 25, 50


def measure(cascade: Cascade, count: int) -> list[dict[str, Any]]:
    first = cascade.stages[0]
    batch = sample_of("scenes:val", count, first.size)
    image, parts = batch["image"].to(cascade.device), cascade.decompose(batch)
    rows = []
    for under, steps in track([(under, steps) for under in UNDER for steps in STEPS], "inverting"):
        known = parts.pick(*UNDER[under])
        latent = cascade.invert(image, known, steps)
        how: dict[str, Any] = {"sampler": "heun", "steps": steps, "guidance": 1.0, "until": first.name}
        back = cascade.sample(known, seeds=range(count), latent=latent, **how)
        psnr = 10 * torch.log10(4 / (back - image).square().mean((1, 2, 3)))
        row = {"under": under, "steps": steps, "psnr": float(psnr.mean()), "worst": float(psnr.min())}
        rows.append({**row, "std": float(latent.noise.std())})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=8, help="Scenes (default 8)")
    parser.add_argument("--model", default="scenes256", help="a model's folder (default scenes256, which is shipped)")
    parser.add_argument("--json", type=Path, help="file to write the rows to")
    args = parser.parse_args()
    cascade = Cascade.load(args.model).to("cuda" if torch.cuda.is_available() else "cpu")
    rows = measure(cascade, args.count)
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)
    if args.json:
        found = {"about": {"model": cascade.sha256, "count": args.count, "precision": "fp32"}, "rows": rows}
        write_atomically(args.json, (json.dumps(found, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
