"""Objects of Scenes, compared by colour and shape."""

from jaxtyping import Float
from torch import Tensor

from composer.decomposition import Batch
from composer.scenes.captions import simplify

from .objects import Objects
from .reader import SceneInstances


class SceneObjects(Objects):
    """Objects of Scenes by colour and shape alone, which the included reader finds in pictures: to measure with.

    "a big red ball" is read as "a red sphere", so that what was asked and what a picture shows can be compared.

    Args:
        weights: See `Objects`.
        slots: See `Objects`.
    """

    weights_licence = "Apache-2.0"

    def __init__(self, weights: str = "asset:scenes_clip", slots: int = 30):
        super().__init__(weights=weights, slots=slots, detector=SceneInstances())

    def forward(self, batch: Batch) -> Float[Tensor, "b n d5"]:
        if "boxes" in batch:
            plain = [[(simplify(phrase), box) for phrase, box in row or ()] for row in batch["boxes"]]
            batch = {**batch, "boxes": plain}
        return super().forward(batch)
