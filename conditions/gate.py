"""A learned weight of a condition's tokens in attention."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

CLOSED = 0.0009
"""The weight of a gate that is closed: four such tokens among a thousand others change nothing that one sees."""

SPEED = 100.0
"""The weight is e^(100 p): Adam moves p by about the learning rate in each step, so that at a rate of 1e-4 a gate opens
within hundreds of steps, not within tens of thousands."""


class Gate(nn.Module):
    """Weighs tokens by a learned number from 0 to 1, so that a condition with tokens can join a trained model.

    Not in the papers; GLIGEN (Li et al. 2023, section 4.1) gates whole layers for the same purpose.
    """

    def __init__(self) -> None:
        super().__init__()
        self.logarithm = nn.Parameter(torch.zeros(()))

    def forward(self, keep: Bool[Tensor, "b n"]) -> Float[Tensor, "b n"]:
        """The weight of each token that is kept, and 0 for the others."""
        return keep * (SPEED * self.logarithm).clamp(max=0).exp()

    def close(self) -> None:
        """Sets the weight to `CLOSED`."""
        nn.init.constant_(self.logarithm, math.log(CLOSED) / SPEED)


def close_tokens(tokens: nn.Module | None, gate: Gate | None, without: str) -> None:
    """Closes the gate of a condition's tokens, if it makes any.

    Args:
        tokens: What makes them; None for none.
        gate: Their gate.
        without: The argument that makes none, for the error message.

    Raises:
        ValueError: They have no gate.
    """
    if tokens is None:
        return
    if gate is None:
        raise ValueError(
            f"it makes tokens, and even zeros take their share of attention: set gate: true, or {without}: 0"
        )
    gate.close()
