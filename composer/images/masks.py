"""Mask files: which pixels of an image may change."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from composer.images.pixels import Pixels
from composer.images.reading import File, Reason, Refused, converting, path_of, read_pixels

COLOURED = 0.2
"""Largest difference of the channels of a grey pixel, of 1; JPEG changes grey far less."""

LABEL = 1.001 / 255
"""Brightness of the label 1 in a file of labels 0 and 1: 1/255 or less."""


def read_mask(path: File) -> Float[Tensor, "1 1 h w"]:
    """Reads which pixels may change.

    A mask may encode this in two ways:

    - by transparency, if a pixel is transparent: opaque pixels may change, whatever their colour. They must be all
      bright or all dark; otherwise the brightness would contradict.
    - by brightness, if no pixel is transparent: white may change, black may not. Labels 0 and 1 count as black and
      white. The image must be grey.

    The threshold is half of the full alpha or brightness. The full brightness is that of `load_rgb`: 255 for 8 bits,
    65535 for 16, 1 for floats that don't exceed it.

    Args:
        path: An image file of any size.

    Returns:
        1 where the image may change, 0 elsewhere.

    Raises:
        Refused: The file is not an image, or not a mask: coloured, without any white, or ambiguous.
    """
    pixels = read_pixels(path, min_side=1)
    path = path_of(path)
    with converting(path):
        seen = _Seen.of(pixels)
    if seen.opaque.all():
        region = _by_brightness(path, seen)
    elif seen.bright[seen.opaque].all() or not seen.bright[seen.opaque].any():
        region = seen.opaque
    else:
        raise Refused(
            path,
            Reason.NO_MASK,
            "some of it is transparent, the rest partly bright and partly dark: save it in black and white without "
            "transparency, or make what may change opaque and of one colour",
        )
    return torch.from_numpy(region)[None, None].float()


@dataclass(frozen=True)
class _Seen:
    """What a file shows, where: by alpha, by brightness, and whether it is above black at all."""

    opaque: Bool[np.ndarray, "h w"]
    bright: Bool[np.ndarray, "h w"]
    lit: Bool[np.ndarray, "h w"]
    darkest: list[float]
    """The lowest levels of brightness, three at most."""
    coloured: bool

    @classmethod
    def of(cls, pixels: Pixels) -> "_Seen":
        w, h = pixels.picture.size
        opaque, bright, lit = np.ones((h, w), bool), np.zeros((h, w), bool), np.zeros((h, w), bool)
        darkest: list[float] = []
        coloured = False
        for rows, band in pixels.bands():
            colours = band[..., :3]
            grey = colours.max(2)
            bright[rows], lit[rows] = grey >= 0.5, grey > 0
            if band.shape[2] == 4:
                opaque[rows] = band[..., 3] >= 0.5
            darkest = sorted({*darkest, *np.unique(grey)[:3].tolist()})[:3]
            coloured = coloured or bool((grey - colours.min(2) > COLOURED).any())
        return cls(opaque, bright, lit, darkest, coloured)


def _by_brightness(path: Path, seen: _Seen) -> Bool[np.ndarray, "h w"]:
    if seen.coloured:
        raise Refused(path, Reason.NO_MASK, "it is coloured: save it in grey, white where the picture may change")
    if seen.bright.any() or not seen.lit.any():
        return seen.bright
    if len(seen.darkest) == 2 and seen.darkest[0] == 0 and seen.darkest[1] <= LABEL:
        return seen.lit
    raise Refused(path, Reason.NO_MASK, "nothing in it is white: make white what may change, and black the rest")
