"""Captions and images in one space, to measure whether an image shows what its caption says."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from composer.cascade.parts import slerp
from composer.decomposition import Batch
from composer.names import Kind

from ._clip import ClipDecomposer, barcode, cosine_distance
from .tokens import captions_device


class Agreement(ClipDecomposer):
    """CLIP's joint embedding: of the caption if a row has one, else of the image (Radford et al. 2021).

    Read captions from one batch and images from another; their `distance` says how far the images are from the
    captions. It is never 0 between a caption and an image, as the two lie apart in this space: compare it with the
    distances of the true image and of a random one.

    Args:
        model: See `ClipDecomposer`.
        weights: See `ClipDecomposer`.
    """

    kind = Kind.TEXT

    def can_read(self, batch: Batch) -> bool:
        return "image" in batch or "caption" in batch

    @torch.no_grad()
    def forward(self, batch: Batch) -> Float[Tensor, "b d"]:
        """Embeds captions, or images without one; unit length. A row with neither is zero."""
        if "caption" not in batch:
            return F.normalize(self._clip.encode_image(batch["image"]), dim=1)
        device = captions_device(batch)
        _, value, _ = self._clip.encode_text(batch["caption"], device)
        bare = torch.tensor([not caption for caption in batch["caption"]], device=device)
        if "image" in batch and bare.any():
            value = value.clone()
            value[bare] = self._clip.encode_image(batch["image"][bare]).to(value.dtype)
        return F.normalize(value, dim=1)

    def from_text(self, text: str) -> Float[Tensor, "b d"]:
        """Embeds a caption."""
        value: Tensor = self({"caption": [text]})
        return value

    def preview(self, value: Float[Tensor, "b d"]) -> Float[Tensor, "b 3 h w"]:
        """Draws the embedding's numbers."""
        return barcode(value, "agreement: numbers only")

    def distance(self, wanted: Float[Tensor, "b d"], got: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        """1 - cosine, between 0 and 2."""
        return cosine_distance(wanted, got)

    def interpolate(self, a: Float[Tensor, "b d"], b: Float[Tensor, "b d"], share: float) -> Float[Tensor, "b d"]:
        """Along the great circle (DALL-E 2, section 3.2)."""
        return slerp(a, b, share)
