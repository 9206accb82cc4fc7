"""What an image shows and in which style: its CLIP embedding."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from composer.cascade.parts import slerp
from composer.decomposition import Batch
from composer.names import Kind

from ._clip import DEFAULT_MODEL, DEFAULT_WEIGHTS, ClipDecomposer, barcode, cosine_distance


class Semantics(ClipDecomposer):
    """CLIP's image embedding, unit length times sqrt(d) (Composer, section 2.1; scaled as unCLIP's prior predicts it).

    So each number is of order 1.

    Args:
        model: See `ClipDecomposer`.
        weights: See `ClipDecomposer`.
        scaled: False leaves embeddings as long as CLIP makes them, as Karlo reads them.
    """

    kind = Kind.APPEARANCE
    reducible = True

    def __init__(self, model: str = DEFAULT_MODEL, weights: str = DEFAULT_WEIGHTS, scaled: bool = True):
        super().__init__(model, weights)
        self.scaled = scaled

    @torch.no_grad()
    def forward(self, batch: Batch) -> Float[Tensor, "b d"]:
        return self._embedded(batch)

    def loss(self, wanted: Float[Tensor, "b d"], batch: Batch) -> Float[Tensor, " b"]:
        return self.distance(wanted, self._embedded(batch))

    def _embedded(self, batch: Batch) -> Float[Tensor, "b d"]:
        return self._scale(self._clip.encode_image(batch["image"], self.compute_dtype))

    def _scale(self, value: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        return F.normalize(value, dim=1) * math.sqrt(value.shape[1]) if self.scaled else value

    def from_text(self, text: str) -> Float[Tensor, "1 d"]:
        """The caption's embedding in place of an image's: the crudest substitute for a prior (DALL-E 2, figure 8)."""
        return self._scale(self._clip.encode_text([text], torch.device("cpu"))[1])

    def preview(self, value: Float[Tensor, "b d"]) -> Float[Tensor, "b 3 h w"]:
        """Draws the embedding's numbers."""
        return barcode(value, "semantics: numbers only")

    def distance(self, wanted: Float[Tensor, "b d"], got: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        """1 - cosine, between 0 and 2."""
        return cosine_distance(wanted, got)

    def interpolate(self, a: Float[Tensor, "b d"], b: Float[Tensor, "b d"], share: float) -> Float[Tensor, "b d"]:
        """Along the great circle (DALL-E 2, section 3.2)."""
        return slerp(a, b, share)
