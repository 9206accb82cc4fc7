"""Captions as CLIP's word and sentence embeddings."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from composer.decomposition import Batch
from composer.names import Kind

from ._clip import DEFAULT_MODEL, DEFAULT_WEIGHTS, ClipDecomposer, barcode, cosine_distance
from .tokens import captions_device


class Caption(ClipDecomposer):
    """CLIP's encoding of a caption: one embedding per word piece, then the sentence's (Composer, section 2.1).

    Words are taken after the text tower's last norm, before its projection. The narrower of word and sentence embedding
    is padded with zeros. A row without a caption is all zeros.

    Args:
        model: See `ClipDecomposer`.
        weights: See `ClipDecomposer`.
        empty: Whether an empty caption is encoded like any other, as start and end, and not as none.
    """

    kind = Kind.TEXT

    def __init__(self, model: str = DEFAULT_MODEL, weights: str = DEFAULT_WEIGHTS, empty: bool = False):
        super().__init__(model, weights)
        self.empty = empty

    def can_read(self, batch: Batch) -> bool:
        return "caption" in batch

    def forward(self, batch: Batch) -> Float[Tensor, "b n d"]:
        """Encodes the captions.

        Returns:
            The word embeddings, then the sentence embedding; the last channel is 1 for real entries.
        """
        words, sentence, mask = self._clip.encode_text(batch["caption"], captions_device(batch), self.empty)
        width = max(words.shape[2], sentence.shape[1])
        entries = [F.pad(words, (0, width - words.shape[2])), F.pad(sentence, (0, width - sentence.shape[1]))[:, None]]
        return torch.cat([torch.cat(entries, 1), torch.cat([mask, mask[:, :1]], 1)[..., None]], 2)

    def from_text(self, text: str) -> Float[Tensor, "b n d"]:
        """Encodes a caption."""
        value: Tensor = self({"caption": [text]})
        return value

    def preview(self, value: Float[Tensor, "b n d"]) -> Float[Tensor, "b 3 h w"]:
        """Draws the sentence embedding's numbers."""
        return barcode(value[:, -1, :-1], "caption: numbers only")

    def distance(self, wanted: Float[Tensor, "b n d"], got: Float[Tensor, "b n d"]) -> Float[Tensor, " b"]:
        """1 - cosine of the sentence embeddings."""
        return cosine_distance(wanted[:, -1, :-1], got[:, -1, :-1])
