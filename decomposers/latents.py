"""Latents of an autoencoder, as a column for trainings."""

import torch
from jaxtyping import Float
from torch import Tensor

from composer.decomposition import Batch, Decomposer
from composer.names import Kind
from composer.networks.autoencoder import Autoencoder


class Latents(Decomposer):
    """The most likely latents of an image, (b c h/f w/f), of about unit variance.

    A stage with the same autoencoder as its codec trains on them where `composer cache` wrote them beside the images.

    Args:
        weights: The autoencoder's folder.
    """

    at_source = False
    kind = Kind.STRUCTURE
    weights_arguments = ("weights",)

    def __init__(self, weights: str):
        super().__init__()
        self.codec = Autoencoder.load(weights)

    def forward(self, batch: Batch) -> Float[Tensor, "b c h w"]:
        return self.codec.encode(batch["image"])

    def preview(self, value: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 h8 w8"]:
        """Decodes them."""
        return self.codec.decode(value).clamp(-1, 1)

    def distance(self, wanted: Float[Tensor, "b c h w"], got: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        """Mean absolute difference."""
        return torch.abs(wanted - got).mean((1, 2, 3))
