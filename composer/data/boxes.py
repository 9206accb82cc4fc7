"""Boxes of objects beside an image, and what of them a crop shows.

``<stem>.boxes.json`` lists phrases with their boxes, such as ``[[[0.1, 0.3, 0.4, 0.7], "a red cube"]]``: left, top,
right and bottom in shares of the image; two numbers are a point.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from composer.images.reading import Reason, Refused

SUFFIX = "boxes.json"

MAX_BOXES = 1_000_000
"""Maximum bytes read of a file of boxes."""

SHOWN = 0.5
"""Smallest share of a box's area that a crop has to show; less is hardly the object that its phrase names."""

POINT = 2
FORM = '[[[left, top, right, bottom], "a phrase"], ...] in shares of the image from 0 to 1'

Boxes = list[tuple[str, tuple[float, ...]]]
"""Phrases, each with its box or its point."""

Window = tuple[float, float, float, float]
"""Left, top, width and height of a crop, in shares of the image."""


def find_boxes(image: str) -> bytes:
    """Reads the file of boxes beside an image; an image without one has no objects."""
    path = Path(f"{image.rpartition('.')[0]}.{SUFFIX}")
    if not path.exists():
        return b"[]"
    if not path.is_file():  # reading a pipe would block
        return b""
    with path.open("rb") as file:
        return file.read(MAX_BOXES)


def read_boxes(where: Path, data: bytes) -> Boxes:
    """Reads phrases and boxes, of at most `MAX_BOXES` bytes.

    Args:
        where: The image, for errors.
        data: Bytes of the file beside it.

    Raises:
        Refused: They have another form.
    """
    try:
        boxes: Boxes = [_read_box(*entry) for entry in json.loads(data[:MAX_BOXES])]
    except (ValueError, TypeError, RecursionError) as error:
        raise Refused(where, Reason.DAMAGED, f"its boxes: expected {FORM}: {error}") from error
    return boxes


def _read_box(place: Any, phrase: Any) -> tuple[str, tuple[float, ...]]:
    if not isinstance(phrase, str) or not isinstance(place, list):
        raise ValueError(f"found {phrase!r} at {place!r}")
    numbers = tuple(map(float, place))
    left, top, right, bottom = numbers * 2 if len(numbers) == POINT else numbers
    filled = left < right and top < bottom
    inside = 0 <= left <= right <= 1 and 0 <= top <= bottom <= 1
    if not inside or not (filled or len(numbers) == POINT):
        raise ValueError(f"found {phrase!r} at {list(numbers)}")
    return phrase, numbers


def crop_boxes(row: dict[str, Any], boxed: frozenset[str], window: Window, mirrored: bool = False) -> dict[str, Any]:
    """Moves the boxes of a row with its image; objects of which a crop shows less than half are left out.

    Args:
        row: Of a dataset: its ``boxes``, and tensors of slots (n d), which begin with a box and end with 1 where there
            is an object.
        boxed: Names of those tensors.
        window: What the crop shows.
        mirrored: Whether it is mirrored then.

    Returns:
        The row, with slots of objects that are left out filled with 0.
    """
    moved = dict(row)
    if boxes := row.get("boxes"):
        whole = torch.tensor([[*place] * (1 + (len(place) == POINT)) for _, place in boxes], dtype=torch.float64)
        places, shown = _crop(whole, window, mirrored)
        told = zip(boxes, places.tolist(), shown.tolist(), strict=True)
        moved["boxes"] = [(phrase, tuple(new[: len(old)])) for (phrase, old), new, stays in told if stays]
    for name in boxed & row.keys():
        places, shown = _crop(row[name][:, :4], window, mirrored)
        filled = shown & (row[name][:, -1] > 0.5)
        moved[name] = torch.cat([places, row[name][:, 4:]], 1) * filled[:, None]
    return moved


def window_of(rows: slice, along: slice, size: Sequence[int]) -> Window:
    """The window of some rows and columns of an image of that height and width."""
    h, w = size
    return along.start / w, rows.start / h, (along.stop - along.start) / w, (rows.stop - rows.start) / h


def _crop(
    places: Float[Tensor, "n 4"], window: Window, mirrored: bool
) -> tuple[Float[Tensor, "n 4"], Bool[Tensor, " n"]]:
    """Boxes as shares of a window, cut off at its margins, and which of them it shows."""
    left, top, width, height = window
    whole = (places - places.new_tensor([left, top] * 2)) / places.new_tensor([width, height] * 2)
    seen = whole.clamp(0, 1)
    area, left_over = ((x[:, 2:] - x[:, :2]).prod(1) for x in (whole, seen))
    if mirrored:
        seen = torch.stack([1 - seen[:, 2], seen[:, 1], 1 - seen[:, 0], seen[:, 3]], 1)
    inside = (whole == whole.clamp(0, 1)).all(1) & seen.any(1)  # a point at 0, 0 would stand for an unknown place
    return seen, torch.where(area > 0, left_over >= SHOWN * area, inside)
