"""Encodings of a caption by a frozen text encoder."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from composer.conditioning import Condition, Conditioning, fill_captions, zero

from .gate import Gate, close_tokens


class Text(Condition):
    """Projects a caption's word encodings to tokens, and its sentence to the embedding.

    The sentence has its own encoding, or is pooled from the words by attention (Imagen, section 2.5 and appendix
    F.1). Layer norm comes before every projection, which helps considerably (section 2.5); in Karlo it comes after the
    words' and there is none for the sentence.

    Args:
        in_dim: Width of the encodings; the representation has one more channel, its mask.
        vector_dim: Width of the U-Net's embedding.
        token_dim: Width of the U-Net's tokens; 0 makes none, and only the embedding is used.
        sentence: The last row of the sequence is the sentence embedding, as in the representation ``caption``; False
            treats every row as a word, as in ``t5``, and pools them; a caption without words then adds nothing.
        norm: ``before`` the projections as in Imagen, or ``after`` as in Karlo, which needs a `sentence`.
        gate: Whether the tokens pass a `Gate`, so that the condition can join a trained model.
        null_length: Entries of the encoding that a dropped caption is read as, such as the empty caption's in Karlo;
            0 for none. It is stored with the weights, and does not train.
        dropout: Probability that joint dropout removes this condition from a row. 0.1 in Imagen (section 4.1).
    """

    nothing: Tensor

    def __init__(
        self,
        in_dim: int,
        vector_dim: int,
        token_dim: int,
        sentence: bool = True,
        norm: Literal["before", "after"] = "before",
        gate: bool = False,
        null_length: int = 0,
        dropout: float = 0.5,
    ):
        super().__init__(dropout)
        if norm not in ("before", "after") or (norm == "after" and not sentence):
            raise ValueError(f"expected a norm before or, with a sentence, after the projections, found {norm!r}")
        self.in_dim, self.has_null = in_dim, null_length > 0
        self.gate = Gate() if gate else None
        if self.has_null:
            self.register_buffer("nothing", torch.zeros(null_length, in_dim + 1))
        before = [nn.LayerNorm(in_dim)] if norm == "before" else []
        after = [nn.LayerNorm(token_dim)] if norm == "after" else []
        self.to_tokens = nn.Sequential(*before, nn.Linear(in_dim, token_dim), *after) if token_dim else None
        before = [nn.LayerNorm(in_dim)] if norm == "before" else []
        self.to_vector = nn.Sequential(*before, nn.Linear(in_dim, vector_dim)) if sentence else None
        self.pool = None if sentence else _AttentionPooling(in_dim, vector_dim)

    def forward(self, value: Float[Tensor, "b n d1"], keep: Bool[Tensor, " b"], size: tuple[int, int]) -> Conditioning:
        """Projects encodings whose last channel is 1 where the entry is real; see `Condition.forward`.

        Raises:
            ValueError: `value` does not have `in_dim + 1` channels.
        """
        if value.shape[2] != self.in_dim + 1:
            raise ValueError(f"expected encodings of width {self.in_dim} and a mask, found {value.shape[2]} channels")
        if self.has_null:
            given, sentence = keep & (value[..., -1] > 0.5).any(1), self.to_vector is not None
            value = fill_captions(value, self.nothing, given, sentence)
            keep = torch.ones_like(keep)
        real = (value[..., -1] > 0.5) & keep[:, None]
        encodings = torch.where(real[..., None], value[..., :-1], 0)  # padding may contain anything
        if self.to_vector is not None:
            vector = torch.where(real[:, -1:], self.to_vector(encodings[:, -1]), 0)
            encodings, real = encodings[:, :-1], real[:, :-1]
        else:
            assert self.pool is not None
            vector = self.pool(encodings, real)
        if self.to_tokens is None:
            return Conditioning(vector=vector)
        tokens = torch.where(real[..., None], self.to_tokens(encodings), 0)
        return Conditioning(vector=vector, tokens=tokens, token_mask=real if self.gate is None else self.gate(real))

    def example(self, b: int, size: tuple[int, int]) -> Float[Tensor, "b n d1"]:
        """A caption of 77 words, as many as CLIP reads, and the sentence if there is one."""
        return torch.ones(b, 77 + (self.pool is None), self.in_dim + 1)

    def silence(self, channels: int | None = None) -> None:
        close_tokens(self.to_tokens, self.gate, "token_dim")
        if self.to_vector is not None:
            zero(self.to_vector[-1])
        else:
            assert self.pool is not None
            zero(self.pool.out)


class _AttentionPooling(nn.Module):
    """Pools words: their mean asks, they and the mean answer (as CLIP pools an image, Radford et al. 2021).

    Imagen says no more than that attention pools the text. DeepFloyd IF does it like this, over padding as well; here
    padding is excluded. Heads have 64 channels, as all of Imagen's (appendix F.1).

    Args:
        in_dim: Width of the words.
        out_dim: Width of the result, and approximately of the attention.
    """

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        self.heads = max(1, out_dim // 64)
        self.norm = nn.LayerNorm(in_dim)
        self.query = nn.Parameter(torch.randn(in_dim) / in_dim**0.5)
        self.to_query = nn.Linear(in_dim, 64 * self.heads)
        self.to_key, self.to_value = nn.Linear(in_dim, 64 * self.heads), nn.Linear(in_dim, 64 * self.heads)
        self.out = nn.Linear(64 * self.heads, out_dim)

    def forward(self, words: Float[Tensor, "b n d"], real: Bool[Tensor, "b n"]) -> Float[Tensor, "b v"]:
        """Pools the real words of each row; a row without any is 0."""
        words = torch.where(real[..., None], self.norm(words), 0)
        mean = words.sum(1, keepdim=True) / real.sum(1).clamp(min=1)[:, None, None]
        summary = mean + self.query  # always present, so that no softmax is empty
        words, seen = torch.cat([summary, words], 1), torch.cat([torch.ones_like(real[:, :1]), real], 1)
        q, k, v = (
            layer(x).unflatten(2, (self.heads, 64)).transpose(1, 2)
            for layer, x in ((self.to_query, summary), (self.to_key, words), (self.to_value, words))
        )
        pooled = F.scaled_dot_product_attention(q, k, v, seen[:, None, None]).transpose(1, 2).flatten(1)
        return torch.where(real.any(1, keepdim=True), self.out(pooled), 0)
