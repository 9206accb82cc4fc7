"""Group norms that can return their statistics, and use given ones."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class GroupNorm(nn.GroupNorm):
    """`torch.nn.GroupNorm`, which `normalising` can make compute differently."""

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        way = (_ways.get() or {}).get(self)
        return super().forward(input) if way is None else way(self, input)

    def with_moments(
        self, values: Float[Tensor, "b c h w"]
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "2 b groups"]]:
        """Normalises as usual, and also returns the mean and mean square of each group."""
        b, c, h, w = values.shape
        values = values if values.device.type == "cpu" else values.float()  # as autocast does on a GPU
        orders = torch.contiguous_format, torch.channels_last
        if not any(values.is_contiguous(memory_format=order) for order in orders):
            values = values.contiguous()  # torch 2.6 requires it
        out, mean, inverse = torch.native_group_norm(
            values, self.weight, self.bias, b, c, h * w, self.num_groups, self.eps
        )
        mean, inverse = mean.float(), inverse.float()
        return out, torch.stack([mean, inverse**-2 - self.eps + mean.square()])

    def by_moments(
        self, values: Float[Tensor, "b c h w"], moments: Float[Tensor, "2 b groups"]
    ) -> Float[Tensor, "b c h w"]:
        """Normalises by given moments instead of the input's own."""
        means, squares = moments.repeat_interleave(self.num_channels // self.num_groups, dim=2)
        variances = (squares - means.square()).clamp(min=0)
        rows = [  # a batch norm uses the statistics of one row
            F.batch_norm(values[i : i + 1], means[i], variances[i], self.weight, self.bias, eps=self.eps)
            for i in range(len(values))
        ]
        return rows[0] if len(rows) == 1 else torch.cat(rows)


Way = Callable[[GroupNorm, Tensor], Tensor]

_ways: ContextVar[Mapping[GroupNorm, Way] | None] = ContextVar("ways", default=None)


@contextmanager
def normalising(ways: Mapping[GroupNorm, Way]) -> Iterator[None]:
    """Makes group norms compute differently, in this thread (or asynchronous task) only."""
    token = _ways.set({**(_ways.get() or {}), **ways})
    try:
        yield
    finally:
        _ways.reset(token)
