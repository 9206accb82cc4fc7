"""What was drawn, arranged as a sheet."""

from collections.abc import Iterator, Sequence

from PIL import Image
from torch import Tensor

from composer.commands.plans import Plan
from composer.images.sheet import sheet

Pictures = Sequence[Sequence[Tensor]]
"""Of one plan: the pictures of each composition, one per seed."""


def arrange(plans: Sequence[Plan], drawn: Sequence[Pictures]) -> Image.Image:
    """Arranges pictures: the last axis runs across, without axes the compositions, and of a single one the seeds.

    What stands before and after the pictures does so in every row.
    """
    plan, pictures = plans[0], drawn[0]
    if plan.request.varied:
        last, _ = plan.request.varied[-1]
        columns = [f"{last.name} {word}" for word in last.words]
        lines = list(_lines(plans, drawn, len(columns)))
    elif len(pictures) > 1:
        columns = plan.labels
        lines = [(_seed(plan, k), [row[k] for row in pictures]) for k in range(len(plan.seeds))]
    else:
        columns, lines = [f"seed {seed}" for seed in plan.seeds], [(plan.labels[0], list(pictures[0]))]
    left, right = ([image for _, image in side] for side in (plan.before, plan.after))
    rows = [label for label, _ in lines]
    return sheet(
        [[*left, *line, *right] for _, line in lines],
        rows if any(rows) else [],
        [*(name for name, _ in plan.before), *columns, *(name for name, _ in plan.after)],
    )


def _lines(plans: Sequence[Plan], drawn: Sequence[Pictures], across: int) -> Iterator[tuple[str, list[Tensor]]]:
    """A line for each value of the axes but the last, each composition and each seed."""
    for start in range(0, len(plans), across):
        plan, pictures = plans[start], drawn[start : start + across]
        fixed = [f"{axis.name} {word}" for axis, word in plan.request.varied[:-1]]
        for i, label in enumerate(plan.labels):
            for k in range(len(plan.seeds)):
                says = [*fixed, label, _seed(plan, k)]
                yield ", ".join(word for word in says if word), [one[i][k] for one in pictures]


def _seed(plan: Plan, k: int) -> str:
    """Names a seed where there are several."""
    return f"seed {plan.seeds[k]}" if len(plan.seeds) > 1 else ""
