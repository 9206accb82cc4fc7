"""Seams of edits: how much larger the step across a region's border is than the steps beside it.

A box in the middle of Scenes of the split `val` is drawn again under their own captions, as `composer edit` does:

    python benchmarks/seams.py --json benchmarks/results/seams.json

A step is the mean absolute difference of two neighbouring pixels in the direction across the border. The step across is
the largest of those over which the edit fades in; beside it are those three and four pixels outside, and four and five
inside. `ratio` divides the one by the mean of the others, over all pictures; `true` is the ratio of the pictures before
the edit. An edit that cannot be found has about the same.
"""

from collections.abc import Iterator

import torch
from common import options, save_json, show
from jaxtyping import Float
from rich.progress import track
from torch import Tensor

from composer.cascade.cascade import Cascade
from composer.cascade.options import SampleOptions
from composer.cascade.taking import open_picture
from composer.devices import pick_device
from composer.evaluation.samples import sample_of
from composer.images.sheet import to_pil
from composer.tasks.editing import edit

BOX = 0.25, 0.375, 0.75, 0.875
"""Left, top, right, bottom, in shares of the sides."""


def sides(image: Float[Tensor, "3 h w"]) -> Iterator[Float[Tensor, "3 n 12"]]:
    """The twelve pixels across each side of the box, six outside and then six inside, all along it."""
    h, w = image.shape[1:]
    left, top, right, bottom = (round(share * side) for share, side in zip(BOX, (w, h, w, h), strict=True))
    rows, columns = slice(top, bottom), slice(left, right)
    yield image[:, rows, left - 6 : left + 6]
    yield image[:, rows, right - 6 : right + 6].flip(2)
    yield image[:, top - 6 : top + 6, columns].transpose(1, 2)
    yield image[:, bottom - 6 : bottom + 6, columns].flip(1).transpose(1, 2)


def steps_of(image: Float[Tensor, "3 h w"]) -> Float[Tensor, " 11"]:
    """The mean steps from outside to inside, over all four sides."""
    return torch.stack([side.diff(dim=2).abs().mean((0, 1)) for side in sides(image)]).mean(0)


def ratio(images: list[Tensor], soften: int) -> float:
    steps = torch.stack([steps_of(image) for image in images]).mean(0)
    return float(steps[5 : 6 + soften].max() / steps[[1, 2, 9, 10]].mean())


def measure(cascade: Cascade, count: int, steps: int, soften: int) -> list[dict[str, str | int | float]]:
    rows: list[dict[str, str | int | float]] = []
    for stage in cascade.stages:
        batch = sample_of("scenes:val", count, stage.size)
        how, drawn = SampleOptions(until=stage.name, steps=steps), []
        for i in track(range(count), f"editing {stage.size} px"):
            (picture,) = edit(
                cascade,
                to_pil(batch["image"][i]),
                BOX,
                caption=batch["caption"][i],
                seeds=i,
                soften=soften,
                options=how,
            )
            drawn.append(open_picture(picture))
        true = ratio(list(batch["image"]), soften)
        rows.append({"size": stage.size, "ratio": ratio(drawn, soften), "true": true})
    return rows


def main() -> None:
    parser = options(__doc__, count=32, steps=20, plot=False)
    parser.add_argument("--soften", type=int, choices=(0, 1, 2), default=2, help="pixels of fading in (default 2)")
    args = parser.parse_args()
    cascade = Cascade.load(args.model).to(pick_device(), torch.bfloat16)
    rows = measure(cascade, args.count, args.steps, args.soften)
    show(rows, number=".2f")
    if args.json:
        about = {"model": cascade.sha256, "count": args.count, "steps": args.steps, "soften": args.soften}
        save_json(args.json, {"about": about, "rows": rows})


if __name__ == "__main__":
    main()
