"""Encodings of a caption by a frozen text encoder."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from composer.conditioning import Condition, Conditioning


class Text(Condition):
    """Projects a caption's word encodings to tokens and its sentence embedding to the embedding.

    Layer norm comes before either projection, which helps considerably (Imagen, section 4.5 and appendix D.1).

    Args:
        in_dim: Width of the encodings; the representation has one more channel, its mask.
        vector_dim: Width of the U-Net's embedding.
        token_dim: Width of the U-Net's tokens.
        sentence: The last row of the sequence is the sentence embedding, as in the representation ``caption``; False
            takes every row for a word, as in ``t5``, and leaves the embedding alone.
        dropout: Probability that joint dropout removes this condition from a row.
    """

    def __init__(self, in_dim: int, vector_dim: int, token_dim: int, sentence: bool = True, dropout: float = 0.5):
        super().__init__(dropout)
        self.in_dim = in_dim
        self.to_tokens = nn.Sequential(nn.LayerNorm(in_dim), nn.Linear(in_dim, token_dim))
        self.to_vector = nn.Sequential(nn.LayerNorm(in_dim), nn.Linear(in_dim, vector_dim)) if sentence else None

    def forward(self, value: Float[Tensor, "b n d1"], keep: Bool[Tensor, " b"], size: tuple[int, int]) -> Conditioning:
        """Projects encodings whose last channel is 1 where the entry is real; see `Condition.forward`.

        Raises:
            ValueError: `value` does not have `in_dim + 1` channels.
        """
        if value.shape[2] != self.in_dim + 1:
            raise ValueError(f"expected encodings of width {self.in_dim} and a mask, found {value.shape[2]} channels")
        real = (value[..., -1] > 0.5) & keep[:, None]
        encodings = value[..., :-1]
        vector = None
        if self.to_vector is not None:
            vector = torch.where(real[:, -1:], self.to_vector(encodings[:, -1]), 0)
            encodings, real = encodings[:, :-1], real[:, :-1]
        tokens = torch.where(real[..., None], self.to_tokens(encodings), 0)
        return Conditioning(vector=vector, tokens=tokens, token_mask=real)
