"""A text transformer that trains with the model, from token ids."""

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from composer.conditioning import Condition, Conditioning, zero
from composer.networks.transformer import TransformerBlock


class TextTransformer(Condition):
    """GLIDE's text encoder (Nichol et al. 2021, section 3.1), trained together with the U-Net.

    Token ids pass through a bidirectional transformer; padding has a learned embedding per position. The output at the
    last position is projected to the embedding, every output to a token.

    In GLIDE padding is treated like any word, so each caption costs the full length. With `skip_padding` the
    transformer and the U-Net attend only to words and the last position. Other positions then do not matter, and on the
    CPU, those that no caption of the batch uses are not computed: the same result, at the cost of the longest caption.
    An empty caption keeps the last position, so it still differs from a dropped one.

    Args:
        vocabulary_size: Number of token ids.
        width: Channels of the transformer.
        layers: Number of its blocks.
        heads: Attention heads of a block.
        vector_dim: Width of the U-Net's embedding.
        token_dim: Width of the U-Net's tokens; 0 makes none, and only the embedding is used.
        length: Positions; tokens beyond are cut, shorter sequences padded. 128 in GLIDE.
        skip_padding: Whether padding is skipped; False computes the same as GLIDE.
        project: Whether the tokens are projected; False gives the transformer's output, as in GLIDE, whose `token_dim`
            is the transformer's width.
        has_null: Whether a dropped caption is read as an empty one, as in GLIDE (section 2.3), and not as none.
        dropout: Probability that joint dropout removes this condition from a row.
    """

    def __init__(
        self,
        vocabulary_size: int,
        width: int,
        layers: int,
        heads: int,
        vector_dim: int,
        token_dim: int,
        length: int = 77,
        skip_padding: bool = True,
        project: bool = True,
        has_null: bool = False,
        dropout: float = 0.5,
    ):
        super().__init__(dropout)
        if width % heads:
            raise ValueError(f"expected a width that {heads} heads divide, found {width}")
        if not project and token_dim != width:
            raise ValueError(f"expected a token_dim of the transformer's {width}, or project: true, found {token_dim}")
        self.length, self.skip_padding, self.has_null = length, skip_padding, has_null
        self.embedding = nn.Embedding(vocabulary_size, width)
        self.position = nn.Parameter(torch.randn(length, width) * 0.01)
        self.padding = nn.Parameter(torch.randn(length, width) * 0.02)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.blocks = nn.ModuleList(TransformerBlock(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.to_tokens = None if not token_dim else nn.Linear(width, token_dim) if project else nn.Identity()
        self.to_vector = nn.Linear(width, vector_dim)

    def forward(self, value: Shaped[Tensor, "b n 2"], keep: Bool[Tensor, " b"], size: tuple[int, int]) -> Conditioning:
        """Encodes (token id, mask) pairs, the mask 1 where the token is real; see `Condition.forward`."""
        value = F.pad(value[:, : self.length], (0, 0, 0, max(0, self.length - value.shape[1])))
        real = (value[..., 1] > 0.5) & keep[:, None]
        keep = torch.ones_like(keep) if self.has_null else keep
        positions = self._positions(real)
        ids, real = value[:, positions, 0].long(), real[:, positions]
        words = self.embedding(ids) + self.position[positions]
        x = torch.where(real[..., None], words, self.padding[positions])
        attended = self._attended(real)
        for block in self.blocks:
            x = block(x, attended[:, None, None] if self.skip_padding else None)
        x = self.norm(x)
        vector = torch.where(keep[:, None], self.to_vector(x[:, -1]), 0)
        if self.to_tokens is None:
            return Conditioning(vector=vector)
        token_mask = attended & keep[:, None]
        tokens = torch.where(token_mask[..., None], self.to_tokens(x), 0)
        return Conditioning(vector=vector, tokens=tokens, token_mask=token_mask)

    def example(self, b: int, size: tuple[int, int]) -> Shaped[Tensor, "b n 2"]:
        """A caption of full length."""
        return torch.ones(b, self.length, 2, dtype=torch.long)

    def silence(self, channels: int | None = None) -> None:
        if self.to_tokens is not None:
            raise ValueError("it makes tokens, and even zeros take their share of attention: set token_dim: 0")
        zero(self.to_vector)

    def _positions(self, real: Bool[Tensor, "b n"]) -> Shaped[Tensor, " m"]:
        """Chooses the positions to compute; the last one is always among them."""
        if not self.skip_padding or real.device.type != "cpu":  # a shape that depends on values would stall a GPU
            return torch.arange(self.length, device=real.device)
        used = real.any(0)
        used[-1] = True
        return used.nonzero().squeeze(1)

    def _attended(self, real: Bool[Tensor, "b m"]) -> Bool[Tensor, "b m"]:
        if not self.skip_padding:
            return torch.ones_like(real)
        return torch.cat([real[:, :-1], torch.ones_like(real[:, -1:])], dim=1)
