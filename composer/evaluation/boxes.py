"""Measures whether objects that are asked for with boxes are found in them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from composer.decomposition import Batch
from composer.evaluation.adherence import Evaluation
from composer.images.table import Table

OBJECTS = "objects"
"""The condition's name."""

CLOSE = 0.5
"""Intersection over union from which a box counts as kept, as in PASCAL VOC (Everingham et al. 2010, section 4.2)."""


@runtime_checkable
class MatchesObjects(Protocol):
    """A reader of objects, such as `decomposers.SceneObjects`."""

    def match(self, wanted: Tensor, got: Tensor) -> tuple[Tensor, Tensor]:
        """Which of the wanted objects are found, and how far their boxes overlap; see `decomposers.Objects`."""
        ...

    def can_read(self, batch: Batch) -> bool:
        """See `composer.Decomposer`."""
        ...


@dataclass(frozen=True)
class Placed:
    """How many of the asked objects pictures show, and where.

    Attributes:
        found: Share of the objects of which the picture shows one of that kind, wherever it is.
        overlap: Mean intersection over union of its box with the asked one; 0 for an object that is not found.
        close: Share of the objects whose box overlaps by at least `CLOSE`.
    """

    found: float
    overlap: float
    close: float


def count_boxes(evaluation: Evaluation) -> int:
    """How many pictures `measure_boxes` draws."""
    return evaluation.sample.count * len(_asked(evaluation))


def measure_boxes(evaluation: Evaluation) -> dict[str, Placed]:
    """Draws each row from its objects, its caption, and both, and looks for the objects in what was drawn.

    Args:
        evaluation: The model, and a sample whose rows have ``boxes``.

    Returns:
        By what was asked; of the ``true pictures``, which fall short of 1 by the reader's own error; and of
        ``other pictures``, which is what chance gives.

    Raises:
        ValueError: The model does not read objects, or cannot find them in pictures.
    """
    reader: Any = dict(evaluation.cascade.readers.named()).get(OBJECTS)
    if not (isinstance(reader, MatchesObjects) and reader.can_read({"image": None})):
        raise ValueError(
            "measuring boxes needs a model with the condition objects, and a reader that finds objects in pictures, "
            "such as SceneObjects; this model has "
            f"{'no such reader' if reader else 'the conditions ' + ', '.join(evaluation.cascade.names)}"
        )
    sums: dict[str, Tensor] = {}
    for span in evaluation.spans():
        own = evaluation.block(span)
        if OBJECTS not in own.wanted:
            raise ValueError("measuring boxes needs data with boxes, such as scenes:val")
        seen = {label: own.true[OBJECTS] if label == "true pictures" else own.strangers[OBJECTS] for label in KNOWN}
        for label, names in _asked(evaluation).items():
            images = evaluation.draw(own.parts.pick(*names), span)
            seen[label] = evaluation.cascade.read({"image": images}, [OBJECTS])[OBJECTS]
        wanted = own.wanted[OBJECTS]
        real = wanted[..., -1] > 0.5
        for label, got in seen.items():
            found, overlap = reader.match(wanted, got)
            columns = torch.stack([real, found, overlap, overlap >= CLOSE]).double()
            sums[label] = sums.get(label, 0) + (columns * real).sum((1, 2)).cpu()
    order = [*_asked(evaluation), *KNOWN]
    return {label: Placed(*(sums[label][1:] / sums[label][0].clamp(min=1)).tolist()) for label in order}


KNOWN = ("true pictures", "other pictures")
"""What is measured without drawing."""


def _asked(evaluation: Evaluation) -> dict[str, list[str]]:
    """What is asked of the pictures -> conditions."""
    sets = [[OBJECTS], ["caption"], [OBJECTS, "caption"]]
    return {" and ".join(names): names for names in sets if {*names} <= {*evaluation.cascade.names}}


def markdown(found: Mapping[str, Placed]) -> str:
    """The result of `measure_boxes` as Markdown."""
    rows = [[label, f"{one.found:.2f}", f"{one.overlap:.2f}", f"{one.close:.2f}"] for label, one in found.items()]
    legend = (
        "Of the asked objects: the share that is found anywhere in the picture, by colour and shape; the mean "
        f"intersection over union with the asked box; the share with at least {CLOSE:g}. True pictures: the reader's "
        "own error; other pictures: chance."
    )
    return f"{Table(['asked', 'found', 'mean IoU', f'IoU from {CLOSE:g}'], rows).markdown()}\n{legend}\n"
