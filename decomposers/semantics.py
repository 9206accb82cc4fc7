"""What an image shows and in which style: its CLIP embedding."""

import math

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from composer.decomposition import Batch, Decomposer

from ._clip import DEFAULT_MODEL, DEFAULT_WEIGHTS, barcode, cosine_distance, load_clip


class Semantics(Decomposer):
    """CLIP's image embedding, unit length times sqrt(d) (Composer, section 2.1; scaled as unCLIP's prior predicts it).

    So each number is about 1 in size.

    Args:
        model: open_clip's name of an architecture; weights that know their own overrule it.
        weights: open_clip's tag, or a folder, file, ``asset:`` or ``hub:`` name (see `load_clip`).
    """

    code_licence = "MIT (open_clip)"
    weights_licence = "MIT (OpenAI's); others: see their model cards"

    def __init__(self, model: str = DEFAULT_MODEL, weights: str = DEFAULT_WEIGHTS):
        super().__init__()
        self._clip = load_clip(model, weights, "Semantics")  # shared, and no submodule: nobody trains or saves it

    def forward(self, batch: Batch) -> Float[Tensor, "b d"]:
        value = F.normalize(self._clip.encode_image(batch["image"]), dim=1)
        return value * math.sqrt(value.shape[1])

    def preview(self, value: Float[Tensor, "b d"]) -> Float[Tensor, "b 3 h w"]:
        """Draws the embedding's numbers: it has no picture."""
        return barcode(value, "semantics: numbers only")

    def distance(self, wanted: Float[Tensor, "b d"], got: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        """1 - cosine, between 0 and 2."""
        return cosine_distance(wanted, got)
