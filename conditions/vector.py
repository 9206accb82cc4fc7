"""Global vectors, such as a CLIP image embedding or a palette."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from composer.conditioning import Condition, Conditioning, zero

from .gate import Gate, close_tokens


class Vector(Condition):
    """Projects one vector per row to the embedding and to a few tokens.

    Two MLPs of two layers, as for the semantics and the palette of Composer (section 2.3: eight extra tokens in total,
    four each).

    Args:
        in_dim: Length of the representation.
        vector_dim: Width of the U-Net's embedding.
        token_dim: Width of the U-Net's tokens.
        num_tokens: Tokens that the vector becomes; 0 for none.
        shares: Whether the representation is a histogram of shares that sum to about 1: its entries are tiny and most
            of them zero, so the MLPs read ``sqrt(in_dim * value)`` instead (Hellinger's map, whose root mean square is
            1 for every histogram): a colour on 2% of the image is then 7 times, not 50 times, weaker than one that
            covers it. False reads the value unchanged, which should have unit scale.
        hidden: Channels between the two layers of both MLPs; None are `vector_dim` and `token_dim`, 0 makes each a
            single layer, as in Karlo's decoder.
        gate: Whether the tokens pass a `Gate`, so that the condition can join a trained model.
        has_null: Whether a dropped row is read as a learned value, zeros at first, as in unCLIP (section 2.1).
        dropout: Probability that joint dropout removes this condition from a row.
    """

    def __init__(
        self,
        in_dim: int,
        vector_dim: int,
        token_dim: int,
        num_tokens: int = 4,
        shares: bool = False,
        hidden: int | None = None,
        gate: bool = False,
        has_null: bool = False,
        dropout: float = 0.5,
    ):
        super().__init__(dropout)
        if gate and not num_tokens:
            raise ValueError("a gate weighs tokens: expected num_tokens above 0")
        self.gate = Gate() if gate else None
        self.has_null = has_null
        self.nothing = nn.Parameter(torch.zeros(in_dim)) if has_null else None
        self.in_dim, self.num_tokens, self.shares = in_dim, num_tokens, shares
        self.to_vector = nn.Sequential(*_layers(in_dim, vector_dim if hidden is None else hidden, vector_dim))
        self.to_tokens = (
            nn.Sequential(
                *_layers(in_dim, token_dim if hidden is None else hidden, num_tokens * token_dim),
                nn.Unflatten(1, (num_tokens, token_dim)),
            )
            if num_tokens
            else None
        )

    def forward(self, value: Float[Tensor, "b d"], keep: Bool[Tensor, " b"], size: tuple[int, int]) -> Conditioning:
        """Projects `value`; see `Condition.forward`.

        Raises:
            ValueError: `value` is not `in_dim` long.
        """
        if value.shape[1] != self.in_dim:
            raise ValueError(f"expected vectors of length {self.in_dim}, found {value.shape[1]}")
        if self.shares:
            value = (self.in_dim * value.clamp(min=1e-6)).sqrt()  # the clamp keeps the root's gradient finite at 0
        if self.nothing is not None:
            value, keep = torch.where(keep[:, None], value, self.nothing), torch.ones_like(keep)
        mask = None if self.to_tokens is None else keep[:, None].expand(-1, self.num_tokens)
        return Conditioning(
            vector=torch.where(keep[:, None], self.to_vector(value), 0),
            tokens=None if self.to_tokens is None else torch.where(keep[:, None, None], self.to_tokens(value), 0),
            token_mask=mask if self.gate is None or mask is None else self.gate(mask),
        )

    def example(self, b: int, size: tuple[int, int]) -> Float[Tensor, "b d"]:
        return torch.ones(b, self.in_dim)

    def silence(self, channels: int | None = None) -> None:
        close_tokens(self.to_tokens, self.gate, "num_tokens")
        zero(self.to_vector[-1])


def _layers(in_dim: int, hidden: int, out_dim: int) -> list[nn.Module]:
    """A two-layer MLP; one layer where `hidden` is 0."""
    if not hidden:
        return [nn.Linear(in_dim, out_dim)]
    return [nn.Linear(in_dim, hidden), nn.SiLU(), nn.Linear(hidden, out_dim)]
