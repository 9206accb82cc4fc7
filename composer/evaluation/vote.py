"""A blind vote between two models: one page that needs nothing from elsewhere."""

import base64
import hashlib
import io
import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from composer.images.sheet import PAPER, to_pil
from composer.storage.files import write_atomically

_GAP = 2
_TEMPLATE = Path(__file__).parents[1] / "assets" / "vote.html"


@dataclass(frozen=True)
class Pair:
    """What two models made of one prompt.

    Attributes:
        prompt: What was asked.
        category: Votes are summed by it.
        first: Images of the first model, in [-1, 1].
        second: Images of the second model, as many.
    """

    prompt: str
    category: str
    first: Float[Tensor, "n 3 h w"]
    second: Float[Tensor, "n 3 h2 w2"]


def vote_page(path: Path, pairs: Sequence[Pair], models: tuple[str, str], seed: int = 0) -> None:
    """Writes a page on which a person compares two models without knowing which is which.

    As Imagen's raters did (Saharia et al. 2022): for each prompt two sets of images side by side, and two questions,
    which set is of higher quality, and which better represents the text. The keys A, B, = (indifferent) and Backspace
    (undo) suffice; votes survive a reload. At the end the page names the models, gives the shares of the votes with
    their 95 % intervals, by category too, and offers everything as JSON.

    Args:
        path: The page's file.
        pairs: At least one.
        models: Names of first and second model. Nothing shows them before the end; in the file they are encoded, so
            that a glance at its source does not tell either.
        seed: Draws, pair by pair, which model is on the left.

    Raises:
        ValueError: There is no pair, or both names are the same.
    """
    if not pairs:
        raise ValueError("a vote needs at least one pair of images, found none")
    if models[0] == models[1]:
        raise ValueError(f"a vote needs two names, found {models[0]!r} twice")
    dice = random.Random(seed)
    swapped = [dice.random() < 0.5 for _ in pairs]
    shown = []
    for pair, swap in zip(pairs, swapped, strict=True):
        left, right = (pair.second, pair.first) if swap else (pair.first, pair.second)
        shown.append(
            {"prompt": pair.prompt, "category": pair.category, "left": _picture(left), "right": _picture(right)}
        )
    key = base64.b64encode(json.dumps({"models": models, "swapped": swapped}).encode("ascii")).decode("ascii")
    content = {"images": len(pairs[0].first), "pairs": shown, "key": key}
    name = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]  # votes belong to these pictures alone
    data = json.dumps({"id": name, **content}).replace("<", "\\u003c")  # nothing in it can end the script's element
    write_atomically(path, _TEMPLATE.read_text(encoding="utf-8").replace("@DATA@", data).encode())


def _picture(images: Float[Tensor, "n 3 h w"]) -> str:
    """A set of images as one, near to a square, without loss."""
    tiles = [to_pil(image) for image in images]
    width, height = tiles[0].size
    columns = math.ceil(math.sqrt(len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    size = (columns * (width + _GAP) - _GAP, rows * (height + _GAP) - _GAP)
    picture = Image.new("RGB", size, PAPER)
    for i, tile in enumerate(tiles):
        picture.paste(tile, (i % columns * (width + _GAP), i // columns * (height + _GAP)))
    data = io.BytesIO()
    picture.save(data, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode("ascii")
