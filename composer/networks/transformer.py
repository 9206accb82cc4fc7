"""Transformers over sequences of tokens: a block, and a causal stack with a cache of keys and values."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

Extend = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Keys and values of new positions -> of all positions so far, (b heads n c) each."""


class TransformerBlock(nn.Module):
    """Attention and an MLP, each behind a layer norm.

    Args:
        width: Channels of a token.
        heads: Attention heads, a divisor of the width.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(
        self, x: Float[Tensor, "b n c"], attended: Bool[Tensor, "#b 1 #n m"] | None, extend: Extend | None = None
    ) -> Float[Tensor, "b n c"]:
        """Processes n positions.

        Args:
            x: Their tokens.
            attended: Which of m positions each of them attends to; None is all.
            extend: Prepends the keys and values of earlier positions; None if there are none.
        """
        q, k, v = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if extend is not None:
            k, v = extend(k, v)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, attended).transpose(1, 2).flatten(2))
        x = x + self.mlp(self.mlp_norm(x))
        return x


class KVCache:
    """Keys and values of the positions that a causal transformer has read, so that it need not read them again.

    Args:
        capacity: Maximum number of positions.

    Attributes:
        length: Number of positions so far.
    """

    def __init__(self, capacity: int):
        self.capacity, self.length = capacity, 0
        self._real: Tensor | None = None
        self._blocks: dict[int, tuple[Tensor, Tensor]] = {}

    def rewind(self, length: int) -> None:
        """Drops all positions after the first `length`."""
        self.length = min(self.length, length)

    def mark(self, real: Bool[Tensor, "b n"]) -> Bool[Tensor, "b m"]:
        """Records which of the next positions are real; returns this for all positions so far."""
        end = self.length + real.shape[1]
        if end > self.capacity:
            raise ValueError(f"expected at most {self.capacity} positions, found {end}")
        if self._real is None:
            self._real = real.new_empty(len(real), self.capacity)
        self._real[:, self.length : end] = real
        return self._real[:, :end]

    def extend(self, block: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Appends a block's keys and values; returns those of all positions so far."""
        if block not in self._blocks:
            shape = (*k.shape[:2], self.capacity, k.shape[3])
            self._blocks[block] = k.new_empty(shape), v.new_empty(shape)
        end = self.length + k.shape[2]
        keys, values = self._blocks[block]
        keys[:, :, self.length : end], values[:, :, self.length : end] = k, v
        return keys[:, :, :end], values[:, :, :end]


class CausalTransformer(nn.Module):
    """A stack of blocks in which each position attends to itself and to the real ones before it.

    Args:
        width: Channels of a token.
        layers: Number of blocks.
        heads: Attention heads of a block, a divisor of the width.
    """

    def __init__(self, width: int, layers: int, heads: int):
        super().__init__()
        if layers < 1 or heads < 1 or width % heads:
            raise ValueError(
                f"expected layers and heads of at least 1 and a width that the heads divide, found {layers}, {heads} "
                f"and {width}"
            )
        self.blocks = nn.ModuleList(TransformerBlock(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(
        self,
        x: Float[Tensor, "b n c"],
        real: Bool[Tensor, "b n"],
        cache: KVCache | None = None,
        branch: Int[Tensor, " n"] | None = None,
        masks: Sequence[Bool[Tensor, "s s"]] | None = None,
    ) -> Float[Tensor, "b n c"]:
        """Reads n positions.

        Args:
            x: Their tokens.
            real: False where a position is padding, which no other position attends to.
            cache: Of the positions read before; these are added to it. For sampling, without gradients.
            branch: For several continuations of one prefix in one sequence: 0 in the prefix, which all attend to,
                else the number of the continuation, which attends to itself and the prefix. None is 0 everywhere. Not
                with a cache.
            masks: For sparse attention, one per block, of the whole sequence: which positions (columns) each position
                (row) may attend to. None allows all.
        """
        start = 0 if cache is None else cache.length
        known = real if cache is None else cache.mark(real)
        columns = torch.arange(known.shape[1], device=x.device)
        rows = columns[start:, None]
        # padding attends to itself, so that its softmax is defined; nothing reads it
        attended = (columns <= rows) & known[:, None, None] | (columns == rows)
        if branch is not None:
            attended &= (branch == 0) | (branch == branch[:, None])
        for i, block in enumerate(self.blocks):
            allowed = attended if masks is None else attended & masks[i][start : known.shape[1], : known.shape[1]]
            x = block(x, allowed, None if cache is None else partial(cache.extend, i))
        if cache is not None:
            cache.length += real.shape[1]
        normed: Tensor = self.norm(x)
        return normed
