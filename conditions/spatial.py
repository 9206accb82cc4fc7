"""Local maps, such as a sketch, depth or the previous stage's image."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from composer.conditioning import Condition, Conditioning, zero


class Spatial(Condition):
    """Stacked convolutions from a map to the common width of all local conditions (Composer, section 2.3).

    Two 3x3 convolutions at the image's size: this runs at full resolution in every training step.

    Args:
        in_channels: Channels of the representation.
        spatial_dim: Channels of the U-Net's map.
        hidden: Channels between the two convolutions.
        offset: Where the map itself is put among the U-Net's map channels, without convolutions, as in GLIDE's
            inpainting; None is nowhere.
        dropout: Probability that joint dropout removes this condition from a row.
    """

    def __init__(
        self, in_channels: int, spatial_dim: int, hidden: int = 16, offset: int | None = None, dropout: float = 0.5
    ):
        super().__init__(dropout)
        self.in_channels = in_channels
        self.encode: nn.Sequential | Placed = (
            convolutions(in_channels, hidden, spatial_dim)
            if offset is None
            else Placed(in_channels, spatial_dim, offset)
        )

    def forward(self, value: Float[Tensor, "b c h w"], keep: Bool[Tensor, " b"], size: tuple[int, int]) -> Conditioning:
        """Encodes `value`, resized to `size`: bilinear, antialiased if it shrinks; see `Condition.forward`.

        Raises:
            ValueError: `value` does not have `in_channels` channels.
        """
        if value.shape[1] != self.in_channels:
            raise ValueError(f"expected a map of {self.in_channels} channels, found {value.shape[1]}")
        if value.shape[-2:] != size:
            value = F.interpolate(value, size, mode="bilinear", antialias=True)
        return Conditioning(spatial=torch.where(keep[:, None, None, None], self.encode(value), 0))

    def example(self, b: int, size: tuple[int, int]) -> Float[Tensor, "b c h w"]:
        """A map of the image's size."""
        return torch.zeros(b, self.in_channels, *size)

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


def convolutions(in_channels: int, hidden: int, out_channels: int) -> nn.Sequential:
    """Builds the stack, initialised so that input of unit scale gives output of about unit scale.

    Torch's own initialisation would shrink it about threefold per layer, far below the noisy image that the map is
    concatenated to. Channels last, as the U-Net reads it; on a CPU also about 1.5 times faster.
    """
    first, last = nn.Conv2d(in_channels, hidden, 3, padding=1), nn.Conv2d(hidden, out_channels, 3, padding=1)
    for layer in (first, last):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)
    return nn.Sequential(first, nn.SiLU(), last).to(memory_format=torch.channels_last)
