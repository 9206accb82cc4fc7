"""Local maps, such as a sketch, depth or the previous stage's image."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from composer.conditioning import Condition, Conditioning, zero


class Spatial(Condition):
    """Stacked convolutions from a map to the common width of all local conditions (Composer, section 2.3).

    By default two 3x3 convolutions at the image's size. With strides, the map enters at the size at which decomposers
    read (`data.source`), and the convolutions bring it down to the image's: thin lines of a sketch then count that
    would be grey in a small one.

    Args:
        in_channels: Channels of the representation.
        spatial_dim: Channels of the U-Net's map.
        hidden: Channels between the two convolutions.
        offset: Where the map itself is put among the U-Net's map channels, without convolutions, as in GLIDE's
            inpainting; None is nowhere.
        dropout: Probability that joint dropout removes this condition from a row.
        strides: Of the convolutions, two or more, each from 1 to 3. The map enters at their product times the image's
            size: [2, 3] brings 384 pixels to 64.

    Raises:
        ValueError: There are fewer strides, others, or strides and an offset.
    """

    def __init__(
        self,
        in_channels: int,
        spatial_dim: int,
        hidden: int = 16,
        offset: int | None = None,
        dropout: float = 0.5,
        strides: Sequence[int] = (1, 1),
    ):
        super().__init__(dropout)
        if len(strides) < 2 or not all(1 <= stride <= 3 for stride in strides):  # 3x3 would skip pixels beyond 3
            raise ValueError(f"expected two or more strides from 1 to 3, found {list(strides)}")
        self.in_channels, self.factor = in_channels, prod(strides)
        if self.factor > 1 and offset is not None:
            raise ValueError("a map with an offset meets no convolutions: leave out the strides, or the offset")
        self.encode: nn.Sequential | Placed = (
            convolutions(in_channels, hidden, spatial_dim, strides)
            if offset is None
            else Placed(in_channels, spatial_dim, offset)
        )

    def forward(self, value: Float[Tensor, "b c h w"], keep: Bool[Tensor, " b"], size: tuple[int, int]) -> Conditioning:
        """Encodes `value`, resized to `size` or, with strides, to a multiple; see `Condition.forward`.

        It is resized bilinearly, antialiased if it shrinks.

        Raises:
            ValueError: `value` does not have `in_channels` channels, or too few pixels for the strides.
        """
        if value.shape[1] != self.in_channels:
            raise ValueError(f"expected a map of {self.in_channels} channels, found {value.shape[1]}")
        size = (size[0] * self.factor, size[1] * self.factor)
        if self.factor > 1 and min(value.shape[-2:]) < min(size):
            raise ValueError(
                f"expected a map of at least {min(size)} pixels at the shorter side, {self.factor} times the image's, "
                f"for the strides of this condition; found {value.shape[-1]} x {value.shape[-2]}. Let decomposers read "
                f"at that size (data.source: {min(size)}) and keep maps at it (composer prepare --maps {min(size)}), "
                "draw smaller images, or train without strides"
            )
        if value.shape[-2:] != size:
            value = F.interpolate(value, size, mode="bilinear", antialias=True)
        return Conditioning(spatial=torch.where(keep[:, None, None, None], self.encode(value), 0))

    def example(self, b: int, size: tuple[int, int]) -> Float[Tensor, "b c h w"]:
        """A map of the size at which it enters: the image's, or its multiple by the strides."""
        return torch.zeros(b, self.in_channels, size[0] * self.factor, size[1] * self.factor)

    def silence(self, channels: int | None = None) -> None:
        if isinstance(self.encode, Placed):
            raise ValueError("it has no weights to set to zero (offset): leave out the offset")
        zero(self.encode[-1], channels)


class Placed(nn.Module):
    """Puts a map among further channels, which are zero.

    Args:
        in_channels: Channels of the map.
        out_channels: Channels of the result.
        offset: Index of the map's first channel in the result.

    Raises:
        ValueError: The map does not fit.
    """

    def __init__(self, in_channels: int, out_channels: int, offset: int):
        super().__init__()
        self.before, self.behind = offset, out_channels - offset - in_channels
        if min(self.before, self.behind) < 0:
            raise ValueError(f"expected room for {in_channels} channels of {out_channels} at the offset {offset}")

    def forward(self, value: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"]:
        return F.pad(value, (0, 0, 0, 0, self.before, self.behind))


def convolutions(in_channels: int, hidden: int, out_channels: int, strides: Sequence[int] = (1, 1)) -> nn.Sequential:
    """Builds the stack, initialised so that input of unit scale gives output of about unit scale.

    Torch's own initialisation would shrink it about threefold per layer, far below the noisy image that the map is
    concatenated to. Channels last, as the U-Net reads it; on a CPU also about 1.5 times faster.
    """
    widths = pairwise([in_channels, *[hidden] * (len(strides) - 1), out_channels])
    layers = [nn.Conv2d(a, b, 3, stride, padding=1) for (a, b), stride in zip(widths, strides, strict=True)]
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)
    stack = [layers[0], *(module for layer in layers[1:] for module in (nn.SiLU(), layer))]
    return nn.Sequential(*stack).to(memory_format=torch.channels_last)
