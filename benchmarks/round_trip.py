"""Inversion: how exactly pictures come back from the noise that they are inverted to.

Scenes of the split `val` are inverted under some of their representations and drawn again from there:

    python benchmarks/round_trip.py --json benchmarks/results/round_trip.json

PSNR is that of the picture that comes back, in dB, over values in [-1, 1]; `std` the standard deviation of the inverted
noise, which is 1 where the model has learnt the pictures' distribution.
"""

from collections.abc import Sequence
from typing import Any

import torch
from common import options, save_json, show
from rich.progress import track

from composer.cascade.cascade import Cascade
from composer.cascade.composition import Composition
from composer.cascade.options import SampleOptions
from composer.devices import pick_device
from composer.evaluation.samples import sample_of

UNDER = {
    "semantics, palette": ("semantics", "palette"),
    "all but the mask": ("caption", "semantics", "palette", "sketch", "instances", "depth", "intensity"),
    "nothing": (),
}


def measure(cascade: Cascade, count: int, numbers: Sequence[int]) -> list[dict[str, Any]]:
    first = cascade.stages[0]
    batch = sample_of("scenes:val", count, first.size)
    image, parts = batch["image"].to(cascade.device), cascade.decompose(batch)
    rows = []
    for under, steps in track([(under, steps) for under in UNDER for steps in numbers], "inverting"):
        known = parts.pick(*UNDER[under])
        noise = cascade.invert(image, known, steps)
        how = SampleOptions(sampler="heun", steps=steps, guidance=1.0, until=first.name)
        back = cascade.sample(Composition(parts=known, start=noise), range(count), how)
        psnr = 10 * torch.log10(4 / (back - image).square().mean((1, 2, 3)))
        row = {"under": under, "steps": steps, "psnr": float(psnr.mean()), "worst": float(psnr.min())}
        rows.append({**row, "std": float(noise.noise.std())})
    return rows


def main() -> None:
    parser = options(__doc__, count=8, plot=False)
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 25, 50], help="of both ways (default 10 25 50)")
    args = parser.parse_args()
    cascade = Cascade.load(args.model).to(pick_device())
    rows = measure(cascade, args.count, args.steps)
    show(rows, number=".2f")
    if args.json:
        about = {"model": cascade.sha256, "count": args.count, "precision": "fp32"}
        save_json(args.json, {"about": about, "rows": rows})


if __name__ == "__main__":
    main()
