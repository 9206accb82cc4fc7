"""Whether a CLIP knows which colour belongs to which thing of Scenes, and what stands where.

    python benchmarks/clip.py asset:scenes_clip --json benchmarks/results/clip.json

For each Scene of `val`, is its picture nearer to its caption than to the same caption with two things' colours swapped,
two shapes swapped, another colour, another shape, another place (chance 1/2), and than to all of these that it has
(chance: one over the number of captions)? Each is measured for captions as Scenes have them and for complete ones.
Beside it: how often the right one of 256 other Scenes' captions is found, and the right one of 256 pictures.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import save_json, show

from composer.scenes import describe, render_batch, swap
from composer.scenes.layout import Dice
from composer.scenes.swaps import KINDS
from composer.training.clip import GALLERY, retrieval
from decomposers import Agreement


def told_apart(reader: Agreement, image: torch.Tensor, complete: float, seed: int) -> dict[str, dict[str, float]]:
    """Share of the pictures that are nearer to their caption than to its swaps, by kind and for all kinds at once.

    Args:
        reader: The CLIP.
        image: Embeddings of the first Scenes of `val`, (b d).
        complete: Share of complete captions.
        seed: Of the swaps.
    """
    true, false, owner, kinds = [], [], [], []
    for index in range(len(image)):
        scene, caption = describe("val", index, complete=complete)
        true.append(caption)
        for number, kind in enumerate(KINDS):
            if (other := swap(Dice(seed, index, number), scene, caption, kind)) is not None:
                false.append(other)
                owner.append(index)
                kinds.append(number)
    rows, numbers = torch.tensor(owner), torch.tensor(kinds)
    own = (image * reader({"caption": true})).sum(1)
    right = own[rows] > (image[rows] * reader({"caption": false})).sum(1)
    found = {name: _share(right[numbers == number], 0.5) for number, name in enumerate(KINDS)}
    several = rows.bincount(minlength=len(image))
    every = (~right).float().new_zeros(len(image)).index_add(0, rows, (~right).float()) == 0
    return found | {"all of them": _share(every, float((1 / (1 + several)).mean()))}


def _share(right: torch.Tensor, chance: float) -> dict[str, float]:
    """A share with the standard error that its number of cases gives it."""
    share = float(right.float().mean())
    return {"share": share, "error": math.sqrt(share * (1 - share) / len(right)), "chance": chance, "count": len(right)}


def found_again(reader: Agreement, image: torch.Tensor, complete: float) -> dict[str, float]:
    """Top-1 among galleries of 256: captions for an image, images for a caption."""
    text = reader({"caption": [describe("val", index, complete=complete)[1] for index in range(len(image))]})
    size = min(GALLERY, len(image))
    hits = [retrieval(image[i : i + size], text[i : i + size]) for i in range(0, len(image) // size * size, size)]
    ways = zip(("caption of an image", "image of a caption"), zip(*hits, strict=True), strict=True)
    return {name: sum(share) / len(share) for name, share in ways}


@torch.no_grad()
def measure(weights: str, count: int, seed: int) -> dict[str, Any]:
    """All figures of a CLIP, for both kinds of captions."""
    reader = Agreement(weights=weights)
    pictures = [render_batch("val", range(at, min(at + 32, count)), 64)["image"] for at in range(0, count, 32)]
    image = torch.cat([reader({"image": part}) for part in pictures])
    return {
        name: {"told apart": told_apart(reader, image, share, seed), "found": found_again(reader, image, share)}
        for name, share in (("captions", 0.0), ("complete captions", 1.0))
    }


def table(found: dict[str, dict[str, Any]]) -> list[dict[str, str]]:
    """A line a figure, a column a CLIP."""
    lines: dict[str, dict[str, str]] = {}
    for weights, kinds in found.items():
        for captions, figures in kinds.items():
            for name, row in figures["told apart"].items():
                line = lines.setdefault(f"{captions}: {name}", {"chance": f"{row['chance']:.2f}"})
                line[weights] = f"{row['share']:.3f} ± {row['error']:.3f}"
            for name, share in figures["found"].items():
                lines.setdefault(f"{captions}: {name}, of {GALLERY}", {"chance": f"{1 / GALLERY:.3f}"})[weights] = (
                    f"{share:.3f}"
                )
    return [{"told apart, or found": name, **line} for name, line in lines.items()]


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="*", default=["asset:scenes_clip"], help="CLIPs (default asset:scenes_clip)")
    parser.add_argument("--count", type=int, default=1024, help="Scenes of val (default 1024)")
    parser.add_argument("--seed", type=int, default=0, help="of the swaps")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    o = parser.parse_args(args)
    torch.set_num_threads(1)
    found = {weights: measure(weights, o.count, o.seed) for weights in o.weights}
    show(table(found), title=f"{o.count} Scenes of val")
    if o.json:
        save_json(o.json, {"about": {"count": o.count, "seed": o.seed}, "clips": found})


if __name__ == "__main__":
    main()
