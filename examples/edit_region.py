"""Redraws a region of a picture in another picture's looks; outside it every pixel stays as it is.

python examples/edit_region.py                                   # two Scenes that no training saw
python examples/edit_region.py photo.png painting.jpg --region mask.png --how palette --keep sketch
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from composer import Cascade, Original, edit, open_region, save_png
from composer.datasets import SceneImages


def main(args: Sequence[str] | None = None) -> None:
    """Edits, and counts the pixels that changed inside and outside the region."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="*", help="the picture to edit, and the one to take looks from")
    parser.add_argument("--region", default="0.25,0.4,0.9,0.9", help="a mask's file, or left,top,right,bottom")
    parser.add_argument("--how", nargs="+", default=["palette", "semantics"], help="conditions of the second picture")
    parser.add_argument("--keep", nargs="*", default=["sketch", "depth"], help="conditions of the first picture")
    parser.add_argument("--model", default="scenes256")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/edit_region"))
    o = parser.parse_args(args)

    model = Cascade.load(o.model)
    if not o.images:
        o.images = [o.out / "scene.png", o.out / "looks.png"]
        for path, index in zip(o.images, (0, 3), strict=True):
            save_png(path, SceneImages("val", 64, 4).row(index, seed=0)["image"])

    original = Original.open(o.images[0])
    height, width = original.image.shape[1:]
    region = open_region(o.region, (height, width))
    looks = model.decompose({"image": model.open(o.images[1])})
    [result] = edit(model, original, region, looks.pick(*o.how), keep=o.keep, seeds=[o.seed])

    save_png(o.out / "edited.png", result)
    changed = (np.asarray(result) != np.asarray(original.picture)).reshape(height, width, -1).any(-1)
    inside = region[0, 0].numpy() > 0
    print(f"changed {changed[inside].mean():.0%} of the pixels inside the region, {changed[~inside].sum()} outside")
    print(f"see {o.out / 'edited.png'}")


if __name__ == "__main__":
    main()
