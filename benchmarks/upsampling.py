"""How good the upsampler's images are, beside bicubic interpolation's, on Scenes rendered at its own size.

The truth is rendered at 256 px and made small; what comes back from the small image is compared with it. Back: the
result made small again, against the small image (PSNR). Edges: the mean squared difference of neighbouring pixels, as a
share of the truth's. KID: in the features of the small CLIP of Scenes, of whole images and of tiles of 64 px, which is
what that network reads without shrinking.

    python benchmarks/upsampling.py --json benchmarks/results/upsampling.json --picture out/upsampled.png
"""

import argparse
import json
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from composer.cascade.cascade import Cascade
from composer.cascade.composition import Composition
from composer.cascade.low_res import shrink
from composer.cascade.options import SampleOptions
from composer.cascade.start import SmallImage
from composer.data.datasets import SceneImages
from composer.devices import pick_device
from composer.evaluation.adherence import quantise
from composer.evaluation.metrics import kid, read_by, tiles
from composer.images.sheet import save_png, sheet
from composer.storage.files import write_atomically
from decomposers import Semantics

SHOWN = 5


def psnr(a: Tensor, b: Tensor) -> float:
    """Mean over images, in dB; the range of [-1, 1] is 2."""
    return float((10 * (4 / (a - b).square().mean((1, 2, 3)).clamp(min=1e-12)).log10()).mean())


def edges(image: Tensor) -> float:
    """Mean squared difference of neighbouring pixels."""
    return float(image.diff(dim=2).square().mean() + image.diff(dim=3).square().mean())


def row(image: Tensor, true: Tensor, small: Tensor) -> dict[str, float]:
    image, features = quantise(image), read_by(Semantics(weights="asset:scenes_clip"))
    half = len(true) // 2
    return {
        "back_db": psnr(shrink(image, true.shape[2] // small.shape[2]), small),
        "truth_db": psnr(image, true),
        "edges": edges(image) / edges(true),
        "kid_tiles": kid(tiles(true, 64), tiles(image, 64), features).value,
        "kid_tiles_of_others": kid(tiles(true[:half], 64), tiles(image[half:], 64), features).value,
        "kid_whole": kid(true, image, features).value,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="scenes256", help="a cascade, or an upsampler (default: what ships)")
    parser.add_argument("--split", default="val", choices=("val", "novel"))
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--steps", type=int, nargs="+", help="default: the model's own")
    parser.add_argument("--augmentation", type=float, nargs="+", help="default: the model's own")
    parser.add_argument("--rows", type=int, default=4, help="pictures drawn at a time")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    o = parser.parse_args()
    cascade = Cascade.load(o.model).to(pick_device(), torch.bfloat16)
    stage = cascade.stages[-1]
    assert stage.low_res is not None
    scenes = SceneImages(o.split, stage.size, o.count)
    true = torch.stack([scenes.row(i, 0)["image"] for i in range(o.count)])
    small = shrink(true, stage.low_res.scale)
    bicubic = F.interpolate(small, true.shape[2:], mode="bicubic").clamp(-1, 1)
    rows: dict[str, dict[str, float]] = {"true render": row(true, true, small), "bicubic": row(bicubic, true, small)}
    shown = [F.interpolate(small[:SHOWN], true.shape[2:], mode="nearest"), bicubic[:SHOWN]]
    for steps in o.steps or [stage.sampling.steps]:
        for level in o.augmentation or [stage.sampling.augmentation]:
            how = SampleOptions(steps=steps, augmentation=level)
            started = time.process_time()
            done: list[Tensor] = []
            for i in track(range(0, o.count, o.rows), f"{steps} steps, augmentation {level:g}"):
                some = small[i : i + o.rows]
                drawn = cascade.sample(Composition(start=SmallImage(some)), range(i, i + len(some)), how)
                done.append(drawn.cpu())
            taken = (time.process_time() - started) / o.count
            name = f"ours, {steps} steps, augmentation {level:g}"
            rows[name] = row(torch.cat(done), true, small) | {"seconds": taken}
            last = torch.cat(done)[:SHOWN]
    table = Table("64 -> 256", *rows["bicubic"], "seconds")
    for name, values in rows.items():
        table.add_row(name, *(f"{values.get(key, 0):.4f}" for key in (*rows["bicubic"], "seconds")))
    Console(width=140).print(table)
    if o.json:
        write_atomically(
            o.json, (json.dumps({"split": o.split, "count": o.count, "rows": rows}, indent=2) + "\n").encode()
        )
    if o.picture:
        columns = ["64 px", "bicubic", "ours", "true render"]
        images = [*shown, last, true[:SHOWN]]
        save_png(o.picture, sheet([[c[i] for c in images] for i in range(len(last))], columns=columns))


if __name__ == "__main__":
    main()
