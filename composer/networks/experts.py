"""Two networks that share the noise levels between them."""

import math
from collections.abc import Sequence
from operator import itemgetter

import torch
from jaxtyping import Float
from torch import Tensor, nn

from composer.conditioning import Conditioning
from composer.networks.interface import Network


class Experts(Network):
    """One network at high noise, another one at low noise: an ensemble of expert denoisers (eDiff-I, section 3).

    Karlo's upsampler is one: its second network makes the last step alone, and was trained to finish what the first
    one has made.

    Args:
        high: Runs where the level is at least `border`.
        low: Runs below it; it reads the same ports as `high`.
        border: A time in [0, 1], as networks are told the noise level.

    Raises:
        ValueError: The border is outside [0, 1], or the two networks read different ports.
    """

    def __init__(self, high: Network, low: Network, border: float):
        super().__init__()
        if not 0 <= border <= 1:
            raise ValueError(f"expected a border in [0, 1], found {border}")
        ports, others = ((net.vector_dim, net.token_dim, net.spatial_dim, net.object_dim) for net in (high, low))
        if ports != others:
            raise ValueError(f"expected two networks with the same ports, found widths of {ports} and {others}")
        self.high, self.low, self.border = high, low, border
        self.vector_dim, self.token_dim, self.spatial_dim, self.object_dim = ports
        self.channels = high.channels
        self.stride = math.lcm(high.stride, low.stride)

    @property
    def checkpointing(self) -> bool:
        """Whether both save memory in training, see `Network`."""
        return self.high.checkpointing and self.low.checkpointing

    @checkpointing.setter
    def checkpointing(self, value: bool) -> None:
        self.high.checkpointing = self.low.checkpointing = value

    def forward(
        self, x: Float[Tensor, "b c h w"], level: Float[Tensor, " b"], cond: Conditioning
    ) -> Float[Tensor, "b c h w"]:
        """Runs for each row the network that its level belongs to, see `Network.forward`."""
        below = level < self.border
        if below.all():
            return self._run(self.low, x, level, cond)
        if not below.any():
            return self._run(self.high, x, level, cond)
        cond, out = cond.expand(len(x)), torch.empty_like(x)
        for network, rows in ((self.high, ~below), (self.low, below)):
            out[rows] = self._run(network, x[rows], level[rows], cond.change(itemgetter(rows)))
        return out

    def object_layers(self) -> Sequence[nn.Module]:
        return [*self.high.object_layers(), *self.low.object_layers()]

    def inner_convolutions(self) -> list[Tensor]:
        return [*self.high.inner_convolutions(), *self.low.inner_convolutions()]

    @staticmethod
    def _run(network: Network, x: Tensor, level: Tensor, cond: Conditioning) -> Tensor:
        out: Tensor = network(x, level, cond)
        return out
