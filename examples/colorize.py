"""Colours an image anew: its brightness stays, its colours come from a list.

python examples/colorize.py                                      # a Scene that no training saw
python examples/colorize.py photo.jpg --palette "#aa3311 0.6, #224488 0.4"
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from composer import Cascade, save_png, sheet
from composer.adherence import distances
from composer.datasets import SceneImages


def main(args: Sequence[str] | None = None) -> None:
    """Draws the image in the asked colours, and says how far its palette and its brightness are from what was asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", nargs="?", help="a file (default: a Scene)")
    parser.add_argument("--palette", default="#d9a441 3, #3b6ea5 2, #f2efe6 1", help="colours and their weights")
    parser.add_argument("--model", default="scenes256")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("out/colorize.png"))
    o = parser.parse_args(args)

    model = Cascade.load(o.model)
    scene = SceneImages("val", model.stages[0].size, 1).row(0, seed=0)["image"]
    image = model.open(o.image)[0] if o.image else scene

    palette = dict(model.decomposition.named())["palette"]
    asked = model.decompose({"image": image[None]}).pick("intensity") | {"palette": palette.from_text(o.palette)}
    results = model.sample(asked, seeds=o.seeds)

    shown = [image, palette.preview(asked["palette"])[0], *results]
    save_png(o.out, sheet([shown], columns=["before", "palette", *(f"seed {seed}" for seed in o.seeds)]))
    for name, (before, *after) in distances(model, asked, torch.cat([image[None], results])).items():
        print(f"{name}: off by {before:.3f} before, by {sum(after) / len(after):.3f} on average after")
    print(f"see {o.out}")


if __name__ == "__main__":
    main()
