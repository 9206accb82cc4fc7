"""The KL autoencoder of latent diffusion (Rombach et al. 2022, section 3.1 and appendix G)."""

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from composer.networks.codec import Codec
from composer.networks.exact_tiles import run_in_tiles
from composer.networks.norm import GroupNorm
from composer.networks.stored import Stored

LOG_VARIANCES = (-30.0, 20.0)
"""Range that the logarithms of the variances are clipped to."""


class Autoencoder(Codec, Stored):
    """Encodes images as normal distributions of latents, and decodes latents.

    Args:
        channels: Channels of the latents.
        width: Channels at full size, which `multipliers` multiply.
        multipliers: One per level; each level has half the size of the previous one, so four make a factor of 8, three
            a factor of 4.
        blocks: Residual blocks of each of the encoder's levels; the decoder's have one more.
        groups: Groups of each norm; all widths must be multiples of it.
        scale: What latents are multiplied by: 1 over their standard deviation, 0.18215 in Stable Diffusion.

    Attributes:
        factor: Height and width of the image must be multiples of it.

    Raises:
        ValueError: There are no blocks, the scale is not positive, or a width is not a multiple of `groups`.

    Reference: Rombach et al. 2022; the architecture is that of the released code, diffusers' ``AutoencoderKL``.
    """

    def __init__(
        self,
        channels: int = 4,
        width: int = 128,
        multipliers: Sequence[int] = (1, 2, 4, 4),
        blocks: int = 2,
        groups: int = 32,
        scale: float = 1.0,
    ):
        super().__init__()
        if blocks < 1 or not multipliers:
            raise ValueError(f"expected at least one level and one block per level, found {len(multipliers)}, {blocks}")
        if scale <= 0:
            raise ValueError(f"expected a scale above 0, found {scale}")
        widths = [width * m for m in multipliers]
        if wrong := [c for c in widths if c % groups]:
            raise ValueError(f"expected widths in multiples of {groups} groups, found {wrong[0]}")
        self.channels, self.factor, self.scale = channels, 2 ** (len(widths) - 1), scale
        self.width, self.multipliers, self.blocks, self.groups = width, tuple(multipliers), blocks, groups
        self.encoder = _Encoder(widths, blocks, 2 * channels, groups)
        self.to_moments = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.from_latents = nn.Conv2d(channels, channels, 1)
        self.decoder = _Decoder(channels, widths[::-1], blocks + 1, groups)

    def arguments(self) -> dict[str, Any]:
        return {
            "channels": self.channels,
            "width": self.width,
            "multipliers": list(self.multipliers),
            "blocks": self.blocks,
            "groups": self.groups,
            "scale": self.scale,
        }

    def inner_convolutions(self) -> list[Tensor]:
        """The weights that Muon may train: convolutions whose inputs and outputs are no colours or latents."""
        ends: set[nn.Module] = {self.to_moments, self.from_latents}
        for part in (self.encoder, self.decoder):
            ends |= {part.first, part.last[-1]}
        return [m.weight for m in self.modules() if isinstance(m, nn.Conv2d) and m not in ends]

    @property
    def last_weight(self) -> Tensor:
        """Weights of the decoder's last layer, by whose gradients losses are weighed against each other."""
        last = self.decoder.last[-1]
        assert isinstance(last, nn.Conv2d)
        return last.weight

    def moments(
        self, images: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, "b c h2 w2"], Float[Tensor, "b c h2 w2"]]:
        """Returns the means and the logarithms of the variances of the latents, without `scale`.

        Args:
            images: In [-1, 1].

        Raises:
            ValueError: Height or width is not a multiple of `factor`.
        """
        h, w = images.shape[2:]
        if h % self.factor or w % self.factor:
            raise ValueError(f"expected height and width in multiples of {self.factor}, found {h} x {w}")
        mean, log_variance = self.to_moments(self.encoder(images)).chunk(2, dim=1)
        return mean, log_variance.clamp(*LOG_VARIANCES)

    def reconstruct(self, latents: Float[Tensor, "b c h2 w2"]) -> Float[Tensor, "b 3 h w"]:
        """Returns the images of latents without `scale`, in about [-1, 1]."""
        images: Tensor = self.decoder(self.from_latents(latents))
        return images

    @torch.no_grad()
    def encode(
        self, images: Float[Tensor, "b 3 h w"], noise: Float[Tensor, "b c h2 w2"] | None = None
    ) -> Float[Tensor, "b c h2 w2"]:
        """Encodes images one after the other, to save memory; see `Codec.encode`."""
        pairs = [self.moments(image) for image in images.chunk(len(images))]
        mean, log_variance = (torch.cat(values) for values in zip(*pairs, strict=True))
        return self.scale * (mean if noise is None else mean + (log_variance / 2).exp() * noise)

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b c h2 w2"]) -> Float[Tensor, "b 3 h w"]:
        """Decodes latents one after the other, to save memory; see `Codec.decode`."""
        return torch.cat([self.reconstruct(one) for one in (latents / self.scale).chunk(len(latents))])

    @torch.no_grad()
    def decode_in_tiles(self, latents: Float[Tensor, "b c h2 w2"], tile: int) -> Float[Tensor, "b 3 h w"]:
        """Decodes level by level, each on tiles; see `Codec.decode_in_tiles`.

        What looks at the whole image is at the latents' size, and is computed as a whole. Between levels lies the whole
        of their outcome. The autoencoder of `configs/scenes_autoencoder.yaml` decodes 1024 px in 75 MB and 9.7 s with
        tiles of 256, in 437 MB and 4.8 s without (one CPU thread, beside other work).
        """
        return torch.cat([self._in_tiles(one, tile) for one in (latents / self.scale).chunk(len(latents))])

    def _in_tiles(self, latents: Tensor, tile: int) -> Tensor:
        h = self.decoder.begin(self.from_latents(latents))
        for i in range(1, len(self.decoder.levels)):
            parts = list(self.decoder.parts(i).modules())
            norms = [part for part in parts if isinstance(part, GroupNorm)]
            convolutions = [part.kernel_size[0] // 2 for part in parts if isinstance(part, nn.Conv2d)]
            reach = math.ceil(sum(convolutions) / 2)  # they compute at twice the size of the input
            side = max(1, tile * 2 ** (i - 1) // self.factor)
            h = run_in_tiles(partial(self.decoder.rise, i), norms, h, side, reach)
        return h


class _Norm(GroupNorm):
    def __init__(self, groups: int, channels: int):
        super().__init__(groups, channels, eps=1e-6)


class _Encoder(nn.Module):
    """Maps images to features: levels of residual blocks, each half the size of the one before, then the middle."""

    def __init__(self, widths: Sequence[int], blocks: int, out_channels: int, groups: int):
        super().__init__()
        self.first = nn.Conv2d(3, widths[0], 3, padding=1)
        self.levels = _levels([widths[0], *widths], blocks, groups)
        self.halvings = nn.ModuleList(nn.Conv2d(c, c, 3, stride=2) for c in widths[:-1])
        self.middle = _middle(widths[-1], groups)
        self.last = _last(widths[-1], out_channels, groups)

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h2 w2"]:
        h = self.first(x)
        for i, level in enumerate(self.levels):
            h = level(h if i == 0 else self.halvings[i - 1](F.pad(h, (0, 1, 0, 1))))
        out: Tensor = self.last(self.middle(h))
        return out


class _Decoder(nn.Module):
    """Maps latents to images: the middle, then levels of residual blocks, each double the size of the one before."""

    def __init__(self, in_channels: int, widths: Sequence[int], blocks: int, groups: int):
        super().__init__()
        self.first = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.middle = _middle(widths[0], groups)
        self.levels = _levels([widths[0], *widths], blocks, groups)
        self.doublings = nn.ModuleList(nn.Conv2d(c, c, 3, padding=1) for c in widths[:-1])
        self.last = _last(widths[-1], 3, groups)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 h2 w2"]:
        h = self.begin(x)
        for i in range(1, len(self.levels)):
            h = self.rise(i, h)
        return h

    def begin(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h w"]:
        """The part at the latents' size: all that looks at the whole image."""
        h: Tensor = self.levels[0](self.middle(self.first(x)))
        return self._end(0, h)

    def rise(self, i: int, h: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        """Level i: doubles the size."""
        h = self.levels[i](self.doublings[i - 1](F.interpolate(h, scale_factor=2.0)))
        return self._end(i, h)

    def _end(self, i: int, h: Tensor) -> Tensor:
        if i < len(self.levels) - 1:
            return h
        out: Tensor = self.last(h)
        return out

    def parts(self, i: int) -> nn.ModuleList:
        """What `rise` uses, in its order."""
        last = [self.last] if i == len(self.levels) - 1 else []
        return nn.ModuleList([self.doublings[i - 1], self.levels[i], *last])


def _levels(widths: Sequence[int], blocks: int, groups: int) -> nn.ModuleList:
    """Levels of residual blocks: the first width is the input's, then one per level."""
    return nn.ModuleList(
        nn.Sequential(*(_Block(before if i == 0 else c, c, groups) for i in range(blocks)))
        for before, c in pairwise(widths)
    )


def _middle(channels: int, groups: int) -> nn.Sequential:
    return nn.Sequential(
        _Block(channels, channels, groups), _Attention(channels, groups), _Block(channels, channels, groups)
    )


def _last(channels: int, out_channels: int, groups: int) -> nn.Sequential:
    return nn.Sequential(_Norm(groups, channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1))


class _Block(nn.Module):
    """Adds two convolutions, each after a norm and a SiLU."""

    def __init__(self, channels: int, out_channels: int, groups: int):
        super().__init__()
        self.norm1, self.norm2 = _Norm(groups, channels), _Norm(groups, out_channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h w"]:
        h = self.conv1(F.silu(self.norm1(x)))
        out: Tensor = self.skip(x) + self.conv2(F.silu(self.norm2(h)))
        return out


class _Attention(nn.Module):
    """Self-attention of all pixels, by one head."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = _Norm(groups, channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        pixels = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(pixels).chunk(3, dim=2)
        out: Tensor = self.out(F.scaled_dot_product_attention(q, k, v))
        return x + out.transpose(1, 2).view_as(x)
