"""A class of a fixed list, such as ImageNet's."""

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor, nn

from composer.conditioning import Condition, Conditioning, zero


class Label(Condition):
    """An embedding per class, added to that of the noise level (ADM; Dhariwal and Nichol 2021, section 3.1).

    Args:
        classes: Number of classes, counted from 0; 1000 in ImageNet.
        vector_dim: Width of the U-Net's embedding.
        dropout: Probability that joint dropout removes this condition from a row.
    """

    def __init__(self, classes: int, vector_dim: int, dropout: float = 0.5):
        super().__init__(dropout)
        self.classes = classes
        self.embedding = nn.Embedding(classes, vector_dim)

    def forward(self, value: Shaped[Tensor, "b 1"], keep: Bool[Tensor, " b"], size: tuple[int, int]) -> Conditioning:
        """Looks classes up; see `Condition.forward`."""
        return Conditioning(vector=torch.where(keep[:, None], self.embedding(value[:, 0].long()), 0))

    def example(self, b: int, size: tuple[int, int]) -> Shaped[Tensor, "b 1"]:
        return torch.zeros(b, 1, dtype=torch.long)

    def silence(self, channels: int | None = None) -> None:
        zero(self.embedding)
