"""What an image shows and in which style: its CLIP embedding."""

import math

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from composer.decomposition import Batch

from ._clip import ClipDecomposer, barcode, cosine_distance


class Semantics(ClipDecomposer):
    """CLIP's image embedding, unit length times sqrt(d) (Composer, section 2.1; scaled as unCLIP's prior predicts it).

    So each number is about 1 in size.

    Args:
        model: See `ClipDecomposer`.
        weights: See `ClipDecomposer`.
    """

    def forward(self, batch: Batch) -> Float[Tensor, "b d"]:
        value = F.normalize(self._clip.encode_image(batch["image"]), dim=1)
        return value * math.sqrt(value.shape[1])

    def preview(self, value: Float[Tensor, "b d"]) -> Float[Tensor, "b 3 h w"]:
        """Draws the embedding's numbers: it has no picture."""
        return barcode(value, "semantics: numbers only")

    def distance(self, wanted: Float[Tensor, "b d"], got: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        """1 - cosine, between 0 and 2."""
        return cosine_distance(wanted, got)
