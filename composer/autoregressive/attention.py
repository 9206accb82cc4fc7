"""The sparse attention of DALL-E: which positions attend to which (Ramesh et al. 2021, appendix B.1, figure 11).

All are (n, n): row i is True where position i may attend to position j. Image tokens are in raster order.
"""

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional as F


def row_mask(rows: int, columns: int) -> Bool[Tensor, "n n"]:
    """Itself and the image tokens before it, up to the one above it; this wraps around the grid's edge."""
    back = _back(rows * columns)
    return (back >= 0) & (back <= columns)


def column_mask(rows: int, columns: int) -> Bool[Tensor, "n n"]:
    """Itself and the image tokens above it, in its column."""
    back = _back(rows * columns)
    return (back >= 0) & (back % columns == 0)


def convolution_mask(rows: int, columns: int, kernel: int) -> Bool[Tensor, "n n"]:
    """The causal half of a kernel around it, in raster order, so that it wraps around the grid's edge.

    Args:
        rows: Height of the grid.
        columns: Width of the grid.
        kernel: Height and width of the kernel, odd.
    """
    back, reach = _back(rows * columns), kernel // 2
    down, right = torch.arange(reach + 1), torch.arange(-reach, reach + 1)
    return (back >= 0) & torch.isin(back, down[:, None] * columns + right)


def behind_text(image: Bool[Tensor, "n n"], text: int) -> Bool[Tensor, "m m"]:
    """Puts text before the image: text attends causally, and each image token attends to all of it.

    Args:
        image: Mask of the image tokens.
        text: Number of positions before them.
    """
    whole = F.pad(image, (text, 0, text, 0))
    whole[:, :text] = True
    return whole & (_back(len(whole)) >= 0)


def _back(count: int) -> Int[Tensor, "n n"]:
    """How far column j lies before row i."""
    place = torch.arange(count)
    return place[:, None] - place
