"""Seams of edits: how much larger the step across a region's border is than the steps beside it.

A box in the middle of Scenes of the split `val` is drawn again under their own captions, as `composer edit` does:

    python benchmarks/seams.py --json benchmarks/results/seams.json

A step is the mean absolute difference of two neighbouring pixels, one on each side of the border; beside it means two
to four pixels away, inside and outside, in the same direction. `ratio` divides the one by the other, over all pictures;
`true` is the ratio of the pictures before the edit. A picture whose edit cannot be found has about the same.
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


def sides(image: Float[Tensor, "3 h w"]) -> Iterator[Float[Tensor, "3 n 8"]]:
    """The eight pixels across each side of the box, four outside and then four inside, all along it."""
    h, w = image.shape[1:]
    left, top, right, bottom = (round(share * side) for share, side in zip(BOX, (w, h, w, h), strict=True))
    rows, columns = slice(top, bottom), slice(left, right)
    yield image[:, rows, left - 4 : left + 4]
    yield image[:, rows, right - 4 : right + 4].flip(2)
    yield image[:, top - 4 : top + 4, columns].transpose(1, 2)
    yield image[:, bottom - 4 : bottom + 4, columns].flip(1).transpose(1, 2)


def steps_across(image: Float[Tensor, "3 h w"]) -> Tensor:
    """The mean step across the border, and that beside it."""
    steps = torch.stack([side.diff(dim=2).abs().mean((0, 1)) for side in sides(image)]).mean(0)
    return torch.stack([steps[3], steps[[0, 1, 5, 6]].mean()])


def ratio(images: list[Tensor]) -> float:
    across, beside = torch.stack([steps_across(image) for image in images]).mean(0)
    return float(across / beside)


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
        rows.append({"size": stage.size, "ratio": ratio(drawn), "true": ratio(list(batch["image"]))})
    return rows


def main() -> None:
    parser = options(__doc__, count=32, steps=20, plot=False)
    parser.add_argument("--soften", type=int, default=2, help="pixels over which an edit fades in (default 2)")
    args = parser.parse_args()
    cascade = Cascade.load(args.model).to(pick_device(), torch.bfloat16)
    rows = measure(cascade, args.count, args.steps, args.soften)
    show(rows, number=".2f")
    if args.json:
        about = {"model": cascade.sha256, "count": args.count, "steps": args.steps, "soften": args.soften}
        save_json(args.json, {"about": about, "rows": rows})


if __name__ == "__main__":
    main()
