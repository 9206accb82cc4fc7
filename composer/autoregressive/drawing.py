"""Drawing one value of a sequence from its logits."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def choose(logits: Float[Tensor, "b q"], chance: Float[Tensor, " b"]) -> Int[Tensor, " b"]:
    """The index at which the cumulative distribution passes `chance`, in [0, 1)."""
    cumulative = logits.softmax(1).cumsum(1)
    wanted = chance[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, wanted, right=True)[:, 0].clamp(max=logits.shape[1] - 1)


def keep_top(logits: Float[Tensor, "b q"], k: int | None) -> Float[Tensor, "b q"]:
    """Keeps the k largest logits of each row and sets the others to minus infinity; None keeps all."""
    if k is None or k >= logits.shape[1]:
        return logits
    values, places = logits.topk(k, dim=1)
    return torch.full_like(logits, -torch.inf).scatter(1, places, values)


def uniform(seed: int, count: int) -> Float[Tensor, " n"]:
    """Random numbers in [0, 1), drawn on the CPU, so that they are the same on every device."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
