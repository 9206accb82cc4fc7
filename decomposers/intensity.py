"""Intensity: the image in grey."""

import torch
from jaxtyping import Float
from torch import Tensor

from composer.decomposition import Batch, Decomposer, draw
from composer.names import Kind

STREAM = 301  # of `draw`


class Intensity(Decomposer):
    """A grey image in [-1, 1].

    In training, the weights of red, green and blue are drawn from a fixed set, "to introduce randomness" (Composer,
    section 2.1), so that colours can't be inferred from the grey; without a seed they are Rec. 709's luma. The paper
    does not list its set; this one is `WEIGHTS`.

    kornia's `rgb_to_grayscale` agrees to 1e-7 and takes 1.4 times as long, with the same weights for all rows.
    """

    kind = Kind.LUMINANCE

    WEIGHTS = (
        (0.2126, 0.7152, 0.0722),  # luma, ITU-R BT.709
        (0.299, 0.587, 0.114),  # luma, ITU-R BT.601
        (1 / 3, 1 / 3, 1 / 3),  # average
        (1.0, 0.0, 0.0),
        (0.0, 1.0, 0.0),
        (0.0, 0.0, 1.0),
        (0.5, 0.5, 0.0),
        (0.5, 0.0, 0.5),
        (0.0, 0.5, 0.5),
    )
    """Weights of red, green and blue, each row of sum 1. Not in the paper."""

    def forward(self, batch: Batch) -> Float[Tensor, "b 1 h w"]:
        image = batch["image"]
        weights = image.new_tensor(self.WEIGHTS)
        if "seed" in batch:
            weights = weights[draw(batch["seed"], STREAM, len(weights)).to(image.device)]
        else:
            weights = weights[:1].expand(len(image), 3)
        return torch.bmm(weights[:, None], image.flatten(2)).view(len(image), 1, *image.shape[2:])

    def preview(self, value: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 3 h w"]:
        return value.expand(-1, 3, -1, -1)

    def distance(self, wanted: Float[Tensor, "b 1 h w"], got: Float[Tensor, "b 1 h w"]) -> Float[Tensor, " b"]:
        """Mean absolute difference, in units of the image: 0 to 2."""
        return (wanted - got).abs().mean((1, 2, 3))
