"""Names the colour of an object of a Scene."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from composer.scenes.layout import COLOURS


def name_colour(pixels: Float[Tensor, "n 3"]) -> str:
    """Names the one of `COLOURS` that the pixels of an object have, whatever light falls on it.

    Compares the directions of linear RGB, without their share of white, which shine adds.

    Args:
        pixels: In [-1, 1].
    """
    known = pixels.new_tensor([*COLOURS.values()]) ** 2.2
    seen = ((pixels.clamp(-1, 1) + 1) / 2).pow(2.2)
    seen = (seen - seen.amin(1, keepdim=True)).median(0).values
    known = known - known.amin(1, keepdim=True)
    return list(COLOURS)[int(F.cosine_similarity(seen[None], known, dim=1).argmax())]
