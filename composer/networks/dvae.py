"""OpenAI's discrete variational autoencoder: images to a grid of codes, and back (Ramesh et al. 2021, DALL-E)."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from composer.networks.stored import Stored

EPSILON = 0.1
"""How far from 0 and 1 pixels are kept, so that their logits are finite."""

LEVELS = 4
"""Groups of blocks of the released weights; between them, the sides are halved or doubled."""


def map_pixels(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Maps pixels in [-1, 1] to [0.1, 0.9], what the encoder reads (appendix A.3)."""
    return (1 - 2 * EPSILON) * (images + 1) / 2 + EPSILON


def unmap_pixels(pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Maps [0.1, 0.9] to [-1, 1]; what lies outside is clipped."""
    return ((pixels - EPSILON) / (1 - 2 * EPSILON)).clamp(0, 1) * 2 - 1


class DVAE(Stored):
    """Encodes images as a grid of codes, an eighth of their size by default, and decodes them.

    Args:
        codes: Number of codes.
        width: Channels at full size; each halving of the size doubles them.
        start: Channels to which the decoder first projects the codes.
        blocks: Residual blocks of each level.
        levels: Groups of blocks; between them, the sides are halved or doubled.

    Attributes:
        encoder: Maps pixels of `map_pixels` to logits of the codes, (b codes h/stride w/stride).
        decoder: Maps codes, one-hot or a mixture, (b codes h/stride w/stride), to six channels: the means and the
            logarithms of the scales of a Laplace distribution of each pixel's logit, three of each.
        stride: 2 ** (levels - 1): how many times smaller the grid of codes is; height and width of the image must be
            multiples of it.

    Raises:
        ValueError: There are no blocks or no levels.

    Reference: Ramesh et al. 2021, section 2.1 and appendix A; the layout is that of the released weights.
    """

    def __init__(self, codes: int = 8192, width: int = 256, start: int = 128, blocks: int = 2, levels: int = LEVELS):
        super().__init__()
        if blocks < 1 or levels < 1:
            raise ValueError(
                f"expected at least one block per level and at least one level, found {blocks} and {levels}"
            )
        self.codes, self.width, self.start, self.blocks, self.levels = codes, width, start, blocks, levels
        self.stride = 2 ** (levels - 1)
        widths = [width * 2**i for i in range(levels)]
        halve, double = partial(F.max_pool2d, kernel_size=2), partial(F.interpolate, scale_factor=2.0)
        first = nn.Conv2d(3, width, 7, padding=3)
        self.encoder = _Network(first, widths, blocks, (3, 3, 3, 1), halve, codes)
        first = nn.Conv2d(codes, start, 1)
        self.decoder = _Network(first, widths[::-1], blocks, (1, 3, 3, 3), double, 6)

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Int[Tensor, "b h2 w2"]:
        """Returns the most likely code of each place.

        Args:
            images: In [-1, 1].

        Raises:
            ValueError: Height or width is not a multiple of `stride`.
        """
        if images.shape[2] % self.stride or images.shape[3] % self.stride:
            h, w = images.shape[2:]
            raise ValueError(f"expected height and width in multiples of {self.stride}, found {h} x {w}")
        logits: Tensor = self.encoder(map_pixels(images))
        return logits.argmax(1)

    @torch.no_grad()
    def decode(self, codes: Int[Tensor, "b h w"]) -> Float[Tensor, "b 3 h2 w2"]:
        """Returns the mean image of codes, in [-1, 1] and of `stride` times their height and width.

        Raises:
            ValueError: A code is not from 0 to `codes` - 1.
        """
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.codes:
            found = f"{int(codes.min())} to {int(codes.max())}"
            raise ValueError(f"expected codes from 0 to {self.codes - 1}, found {found}")
        one_hot = F.one_hot(codes.long(), self.codes).permute(0, 3, 1, 2)
        mean = self.decoder(one_hot.to(next(self.parameters()).dtype))[:, :3]
        return unmap_pixels(mean.sigmoid())

    def arguments(self) -> dict[str, Any]:
        return {
            "codes": self.codes,
            "width": self.width,
            "start": self.start,
            "blocks": self.blocks,
            "levels": self.levels,
        }


class _Network(nn.Module):
    """Encoder or decoder: a convolution, levels of residual blocks with a change of size between them, a convolution.

    Args:
        first: The first convolution.
        widths: Channels of each level.
        blocks: Residual blocks of each level.
        kernels: Sizes of the convolutions of a block.
        resize: Changes the size between levels.
        out_channels: Channels of the result.
    """

    def __init__(
        self,
        first: nn.Conv2d,
        widths: Sequence[int],
        blocks: int,
        kernels: Sequence[int],
        resize: Callable[[Tensor], Tensor],
        out_channels: int,
    ):
        super().__init__()
        self.first, self.resize = first, resize
        gain, current = 1 / (len(widths) * blocks) ** 2, first.out_channels
        self.levels = nn.ModuleList()
        for width in widths:
            inputs = [current, *[width] * (blocks - 1)]
            self.levels.append(nn.Sequential(*(_Block(c, width, kernels, gain) for c in inputs)))
            current = width
        self.last = nn.Conv2d(current, out_channels, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        h = self.first(x)
        for i, level in enumerate(self.levels):
            h = level(self.resize(h) if i else h)
        out: Tensor = self.last(F.relu(h))
        return out


class _Block(nn.Module):
    """Adds four convolutions, each after a ReLU, multiplied by a small constant."""

    def __init__(self, channels: int, out_channels: int, kernels: Sequence[int], gain: float):
        super().__init__()
        hidden = out_channels // 4
        widths = [channels, hidden, hidden, hidden, out_channels]
        self.gain = gain
        self.skip = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)
        sizes = zip(widths, widths[1:], kernels, strict=False)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, size, padding=size // 2) for a, b, size in sizes)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h w"]:
        h = x
        for conv in self.convs:
            h = conv(F.relu(h))
        out: Tensor = self.skip(x) + self.gain * h
        return out
