"""Recombines two images: where things are from one, how they look from the other.

python examples/recombine.py                                     # two Scenes that no training saw
python examples/recombine.py photo.jpg painting.jpg --where sketch --how palette semantics --seeds 0 1 2
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from composer import Cascade, save_png, sheet
from composer.adherence import distances
from composer.datasets import SceneImages


def main(args: Sequence[str] | None = None) -> None:
    """Draws the recombination, and says how near each condition is to what was asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="*", help="two files (default: two Scenes)")
    parser.add_argument("--where", nargs="+", default=["sketch", "depth"], help="conditions of the first image")
    parser.add_argument("--how", nargs="+", default=["palette", "semantics"], help="conditions of the second image")
    parser.add_argument("--model", default="scenes256")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("out/recombine.png"))
    o = parser.parse_args(args)

    model = Cascade.load(o.model)
    scenes = SceneImages("val", model.stages[0].size, 4)
    image = model.open(*o.images) if o.images else torch.stack([scenes.row(i, 0)["image"] for i in (0, 3)])

    parts = model.decompose({"image": image})
    results = model.sample(parts.row(0).pick(*o.where) | parts.row(1).pick(*o.how), seeds=o.seeds)

    labels = [f"{', '.join(o.where)} from", f"{', '.join(o.how)} from", *(f"seed {seed}" for seed in o.seeds)]
    save_png(o.out, sheet([[*image, *results]], columns=labels))
    read = model.read({"image": image})
    for row, names in enumerate((o.where, o.how)):
        far = distances(model, read.row(row).pick(*names), torch.cat([image[1 - row : 2 - row], results]))
        for name, (other, *ours) in far.items():
            print(f"{name}: off by {sum(ours) / len(ours):.3f} on average; the other image by {other:.3f}")
    print(f"see {o.out}")


if __name__ == "__main__":
    main()
