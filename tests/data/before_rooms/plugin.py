"""A stranger's plugin, as the walk-through of 0.1.0 has it: a decomposer and its condition."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from composer import Condition, Conditioning, Decomposer
from composer.decomposition import Batch
from composer.images import resize


class Brightness(Decomposer):
    """The mean brightness of an image, (b 1)."""

    def forward(self, batch: Batch) -> Float[Tensor, "b 1"]:
        return torch.stack([resize(image, 8) for image in batch["image"]]).mean((1, 2, 3))[:, None]

    def preview(self, value):
        return value[:, :, None, None].expand(-1, 3, 8, 8)

    def distance(self, wanted, got):
        return (wanted - got).abs().mean(1)


class Mean(Condition):
    """A number, as a vector and a token."""

    def __init__(self, vector_dim: int, token_dim: int, dropout: float = 0.5):
        super().__init__(dropout)
        self.vector, self.token = nn.Linear(1, vector_dim), nn.Linear(1, token_dim)

    def forward(self, value: Float[Tensor, "b 1"], keep: Bool[Tensor, " b"], size: tuple[int, int]) -> Conditioning:
        tokens = torch.where(keep[:, None, None], self.token(value)[:, None], 0)
        vector = torch.where(keep[:, None], self.vector(value), 0)
        return Conditioning(vector=vector, tokens=tokens, token_mask=keep[:, None])

    def example(self, b: int, size: tuple[int, int]) -> Float[Tensor, "b 1"]:
        return torch.ones(b, 1)

    def silence(self) -> None:
        raise ValueError("it makes tokens")
