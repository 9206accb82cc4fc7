"""Short captions that describe one thing only, and which of them are true of a scene."""

import torch
from jaxtyping import Bool
from torch import Tensor

from composer.scenes.captions import COLUMNS, column, stand, with_article
from composer.scenes.layout import COLOURS, NOVEL_PAIRS, SHAPES, SIZES, Scene

_PAIRS = [f"{colour} {shape}" for shape in SHAPES for colour in COLOURS if (shape, colour) not in NOVEL_PAIRS]
PHRASES = (
    *(with_article(pair) for pair in _PAIRS),
    *(f"a {size} {pair}" for pair in _PAIRS for size in SIZES),
    *(f"{with_article(pair)} {where}" for pair in _PAIRS for where in COLUMNS),
)
"""Each shape and colour alone, with each size, and with each column; without the pairs that `train` never shows."""

_NUMBERS = {phrase: number for number, phrase in enumerate(PHRASES)}


def find_true_phrases(scene: Scene) -> Bool[Tensor, " n"]:
    """Finds which of `PHRASES` are true of a scene."""
    found = torch.zeros(len(PHRASES), dtype=torch.bool)
    for thing in scene.things:
        pair = f"{thing.colour} {thing.shape}"
        where = column(stand(scene.camera, thing)[0])
        true = (with_article(pair), f"a {thing.size} {pair}", f"{with_article(pair)} {where}")
        found[[_NUMBERS[phrase] for phrase in true if phrase in _NUMBERS]] = True
    return found
