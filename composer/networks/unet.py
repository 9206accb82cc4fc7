"""The U-Net: ADM's blocks (Dhariwal and Nichol 2021) with GLIDE's attention to pixels and tokens (Nichol et al. 2021).

One class builds several architectures. ADM's, which GLIDE, unCLIP, Imagen's base and Composer's base share: the same
number of blocks at every resolution, resampling by residual blocks. And Imagen's Efficient U-Net (Saharia et al. 2022,
appendix B): more blocks at low resolutions, resampling by one convolution, skips scaled by 1/sqrt(2).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from composer.conditioning import Conditioning, TokenMask
from composer.networks.attention import Attention, GatedAttention, Norm, zeroed
from composer.networks.dropout import Dropout
from composer.networks.interface import Network
from composer.networks.norm import GroupNorm


class ResBlock(nn.Module):
    """Residual block, then attention if there is any.

    The embedding scales and shifts the second norm's output (ADM, section 3.1: AdaGN), or is added to its input (DDPM).

    Args:
        channels: Width of the input.
        out_channels: Width of the output.
        vector_dim: Width of the embedding of the noise level and the conditioning's vector.
        dropout: Rate before the second convolution, as in ADM.
        norm: Makes the norm of so many channels.
        scale: 0.5 averages 2 x 2 pixels and 2 repeats them, in both branches and before the first convolution.
        attention: Follows the block; None for none.
        scale_shift: Whether the embedding scales and shifts; False adds it.
        grounding: Follows the attention; None for none.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        vector_dim: int,
        dropout: float,
        norm: Norm,
        scale: float = 1,
        attention: Attention | None = None,
        scale_shift: bool = True,
        grounding: GatedAttention | None = None,
    ):
        super().__init__()
        self.scale = scale
        self.norm1 = norm(channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.scale_shift = nn.Linear(vector_dim, 2 * out_channels) if scale_shift else None
        self.added = None if scale_shift else nn.Linear(vector_dim, out_channels)
        self.norm2 = norm(out_channels)
        self.dropout = Dropout(dropout)
        self.conv2 = zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)
        self.attention, self.grounding = attention, grounding

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        embedding: Float[Tensor, "b d"],
        keys_values: Float[Tensor, "2 b heads n d2"] | None = None,
        token_mask: TokenMask | None = None,
        objects: Float[Tensor, "2 b heads n2 d2"] | None = None,
        object_mask: Bool[Tensor, "b n2"] | None = None,
    ) -> Float[Tensor, "b c2 h2 w2"]:
        h = F.silu(self.norm1(x))
        if self.scale != 1:
            h, x = _resample(h, self.scale), _resample(x, self.scale)
        h = self.conv1(h)
        if self.scale_shift is None:
            assert self.added is not None
            h = self.norm2(h + self.added(embedding)[:, :, None, None])
        else:
            scale, shift = self.scale_shift(embedding)[:, :, None, None].chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        h = F.silu(h)
        x = self.skip(x) + self.conv2(self.dropout(h))
        x = x if self.attention is None else self.attention(x, keys_values, token_mask)
        return x if self.grounding is None or objects is None else self.grounding(x, objects, object_mask)


class Resampling(nn.Module):
    """One convolution that halves or doubles the size and changes the width, always at the lower resolution.

    Args:
        channels: Width of the input.
        out_channels: Width of the output.
        scale: 0.5 or 2.
    """

    attention = grounding = None

    def __init__(self, channels: int, out_channels: int, scale: float):
        super().__init__()
        self.scale = scale
        self.conv = nn.Conv2d(channels, out_channels, 3, padding=1, stride=2 if scale < 1 else 1)

    def forward(self, x: Float[Tensor, "b c h w"], *_: Tensor | None) -> Float[Tensor, "b c2 h2 w2"]:
        x = self.conv(x)
        return _resample(x, 2) if self.scale > 1 else x


class UNet(Network):
    """Maps a noisy image, its noise level and a conditioning to what the denoiser trains it to predict (eps, x0, v).

    Args:
        channels: Channels of the image.
        width: Channels that `multipliers` multiply, also the width of the sinusoidal embedding.
        multipliers: One per level; each level has half the size of the previous one.
        blocks: Residual blocks of the encoder, for all levels or one number per level; the decoder has one more.
        attention: Downsampling factors at which the blocks attend to pixels and tokens.
        cross_attention: Downsampling factors at which they attend to tokens only. The middle block attends
            like its neighbours.
        attend_once: Whether only the last block of such a level attends, in encoder and decoder, as in Imagen's
            Efficient U-Net (figures A.28 and A.29), instead of every block.
        head_dim: Channels of an attention head.
        heads: Number of heads at every level, instead of `head_dim`, as in some of ADM's networks.
        scale_shift: See `ResBlock`; False in unCLIP's upsamplers as Karlo trained them.
        variances: Whether the last convolution has three more channels, the learned variances of Nichol and Dhariwal
            (2021). They are not returned: only the papers' own ancestral sampling uses them. Published weights have
            them.
        vector_dim: Width of the embedding, and of `Conditioning.vector`.
        token_dim: Channels of `Conditioning.tokens`; 0 for a network that reads none.
        spatial_dim: Channels of `Conditioning.spatial`; 0 for a network that reads none.
        object_dim: Channels of `Conditioning.objects`, which a `GatedAttention` reads after each attention to pixels;
            0 builds none.
        object_widening: See `GatedAttention`.
        dropout: Rate inside the residual blocks, in [0, 1).
        groups: Maximum number of groups of a norm; 32 in ADM.
        group_width: Minimum channels per group; 1 in ADM. Below 16, the backward pass of a channels_last norm is 10 to
            40 times as slow on a CPU.
        residual_resampling: True resamples by residual blocks (ADM), False by single convolutions (Efficient U-Net).
        skip_scale: Factor on the encoder's skips; 1 in ADM, 1/sqrt(2) in Imagen's Efficient U-Net.
        first_stride: 2 starts and ends at half the image's size, as in Imagen's super-resolution: the first convolution
            has stride 2, the last one is followed by a pixel shuffle (Shi et al. 2016).
        checkpointing: Whether to save memory in training by recomputing blocks in the backward pass.

    Attributes:
        stride: Height and width of the image must be multiples of it.

    Raises:
        ValueError: The arguments contradict each other.

    Reference: ADM, table 4 and appendix B; GLIDE, section 4; Composer, section 2.2 and table A1; GLIGEN, section 4.1.
    """

    def __init__(
        self,
        channels: int = 3,
        width: int = 128,
        multipliers: Sequence[float] = (1, 2, 3, 4),
        blocks: int | Sequence[int] = 3,
        attention: Sequence[int] = (2, 4, 8),
        cross_attention: Sequence[int] = (),
        attend_once: bool = False,
        head_dim: int = 64,
        heads: int | None = None,
        scale_shift: bool = True,
        variances: bool = False,
        vector_dim: int = 512,
        token_dim: int = 512,
        spatial_dim: int = 8,
        object_dim: int = 0,
        object_widening: int = 4,
        dropout: float = 0.0,
        groups: int = 32,
        group_width: int = 16,
        residual_resampling: bool = True,
        skip_scale: float = 1.0,
        first_stride: Literal[1, 2] = 1,
        checkpointing: bool = False,
    ):
        super().__init__()
        widths = [round(width * m) for m in multipliers]
        counts = [blocks] * len(widths) if isinstance(blocks, int) else list(blocks)
        if len(counts) != len(widths):
            raise ValueError(f"expected one number of blocks per level ({len(widths)}), found {len(counts)}")
        self.channels, self.width = channels, width
        self.vector_dim, self.token_dim, self.spatial_dim = vector_dim, token_dim, spatial_dim
        self.object_dim = object_dim
        factors = [first_stride * 2**i for i in range(len(widths))]
        self.stride = factors[-1]
        self.skip_scale, self.checkpointing = skip_scale, checkpointing
        norm = partial(_norm, groups=groups, group_width=group_width)

        def block(c: int, c2: int, scale: float = 1, factor: int = 0) -> ResBlock:
            """A factor of 0 attends to nothing."""
            itself = factor in attention
            attends = itself or factor in cross_attention
            per_head = c2 // heads if heads else head_dim
            layer = Attention(c2, per_head, token_dim, norm, itself) if attends else None
            grounding = None
            if itself and object_dim:
                grounding = GatedAttention(c2, per_head, object_dim, object_widening)
            return ResBlock(c, c2, vector_dim, dropout, norm, scale, layer, scale_shift, grounding)

        def resampling(c: int, c2: int, scale: float) -> nn.Module:
            """A residual block keeps the width; the next level's first block changes it, as in ADM."""
            return block(c, c, scale) if residual_resampling else Resampling(c, c2, scale)

        self.embed = nn.Sequential(nn.Linear(width, vector_dim), nn.SiLU(), nn.Linear(vector_dim, vector_dim))
        self.first = nn.Conv2d(channels + spatial_dim, widths[0], 3, padding=1, stride=first_stride)
        current, skips = widths[0], [widths[0]]
        self.encoder, self.middle = nn.ModuleList(), nn.ModuleList()
        self.decoder, self.upsamplers = nn.ModuleList(), nn.ModuleList()
        for i, (c, count) in enumerate(zip(widths, counts, strict=True)):
            if i:
                self.encoder.append(resampling(current, c, 0.5))
                current = current if residual_resampling else c
                skips.append(current)
            for left in reversed(range(count)):
                self.encoder.append(block(current, c, factor=0 if attend_once and left else factors[i]))
                current = c
                skips.append(c)
        self.middle.extend([block(current, current, factor=factors[-1]), block(current, current)])
        for i, (c, count) in reversed(list(enumerate(zip(widths, counts, strict=True)))):
            if i < len(widths) - 1:
                self.upsamplers.append(resampling(current, c, 2))
                current = current if residual_resampling else c
            joined = nn.ModuleList()
            for left in reversed(range(count + 1)):
                joined.append(block(current + skips.pop(), c, factor=0 if attend_once and left else factors[i]))
                current = c
            self.decoder.append(joined)
        out_channels = 2 * channels if variances else channels
        last = zeroed(nn.Conv2d(current, out_channels * first_stride**2, 3, padding=1))
        self.last = nn.Sequential(norm(current), nn.SiLU(), last, nn.PixelShuffle(first_stride))
        if object_dim and not self.object_layers():
            raise ValueError(
                "objects are read beside attention to pixels: expected an attending level, or object_dim=0"
            )
        self.to(memory_format=torch.channels_last)

    def prepare(self, cond: Conditioning) -> Conditioning:
        """Computes the keys and values of tokens and objects once, instead of at every sampling step."""
        if cond.tokens is not None:
            cond = replace(cond, keys_values=tuple(layer.keys_values(cond.tokens) for layer in self._attentions()))
        if cond.objects is not None:
            if not self.object_dim:
                raise ValueError("this U-Net was built with object_dim=0: it reads no objects")
            made = tuple(layer.keys_values(cond.objects) for layer in self.object_layers())
            cond = replace(cond, object_keys_values=made)
        return cond

    def forward(
        self, x: Float[Tensor, "b c h w"], level: Float[Tensor, " b"], cond: Conditioning
    ) -> Float[Tensor, "b c h w"]:
        """Runs the network, see `Network.forward`.

        Raises:
            ValueError: Height or width is not a multiple of `stride`, or the map does not match the image.
        """
        h = self.first(self._with_map(x, cond.spatial).contiguous(memory_format=torch.channels_last))
        embedding = self._embedding(x, level, cond.vector)
        if cond.keys_values is None and cond.object_keys_values is None:
            cond = self.prepare(cond)
        context, objects = iter(cond.keys_values or ()), iter(cond.object_keys_values or ())

        def run(block: nn.Module, h: Tensor) -> Tensor:
            keys_values = None if block.attention is None else next(context, None)
            grounding = None if block.grounding is None else next(objects, None)
            inputs = (h, embedding, keys_values, cond.token_mask, grounding, cond.object_mask)
            recompute = self.checkpointing and torch.is_grad_enabled()
            out: Tensor = checkpoint(block, *inputs, use_reentrant=False) if recompute else block(*inputs)
            return out

        skips = [h]
        for block in self.encoder:
            h = run(block, h)
            skips.append(h)
        for block in self.middle:
            h = run(block, h)
        for i, blocks in enumerate(self.decoder):
            assert isinstance(blocks, nn.ModuleList)
            if i:
                h = run(self.upsamplers[i - 1], h)
            for block in blocks:
                h = run(block, torch.cat([h, self._scaled(skips.pop())], dim=1))
        out: Tensor = self.last(h)[:, : self.channels]
        return out.to(x.dtype)

    def object_layers(self) -> list[GatedAttention]:
        """In order of use, which is the order of the constructor."""
        return [module for module in self.modules() if isinstance(module, GatedAttention)]

    def inner_convolutions(self) -> list[Tensor]:
        """The weights of all convolutions except the first and the last, which read and write image channels."""
        ends = {*self.first.modules(), *self.last.modules()}
        return [m.weight for m in self.modules() if isinstance(m, nn.Conv2d) and m not in ends]

    def _attentions(self) -> Iterator[Attention]:
        """In order of use, which is the order of the constructor."""
        return (module for module in self.modules() if isinstance(module, Attention))

    def _scaled(self, skip: Tensor) -> Tensor:
        return skip if self.skip_scale == 1 else skip * self.skip_scale

    def _embedding(self, x: Tensor, level: Tensor, vector: Tensor | None) -> Tensor:
        embedding = self.embed(sinusoids(level, self.width).to(x.dtype))
        return F.silu(embedding if vector is None else embedding + vector)

    def _with_map(self, x: Tensor, spatial: Tensor | None) -> Tensor:
        b, _, h, w = x.shape
        if h % self.stride or w % self.stride:
            raise ValueError(f"expected height and width in multiples of {self.stride}, found {h} x {w}")
        wanted = (b, self.spatial_dim, h, w)
        if spatial is None:
            spatial = x.new_zeros(wanted)
        elif spatial.shape != wanted:
            raise ValueError(f"expected a map of shape {wanted} with these images, found {tuple(spatial.shape)}")
        return torch.cat([x, spatial.to(x.dtype)], dim=1)


def sinusoids(level: Float[Tensor, " b"], width: int) -> Float[Tensor, "b {width}"]:
    """Cosines and sines of 1000 * level at frequencies from 1 to 1e-4, as GLIDE embeds its steps.

    Args:
        level: In [0, 1].
        width: Even number of channels.
    """
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=level.device) * (-math.log(10000) / half))
    angles = 1000 * level.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def _norm(channels: int, groups: int, group_width: int) -> GroupNorm:
    most = max(1, min(groups, channels // group_width))
    return GroupNorm(next(n for n in range(most, 0, -1) if channels % n == 0), channels)


def _resample(x: Tensor, scale: float) -> Tensor:
    return F.avg_pool2d(x, 2) if scale < 1 else F.interpolate(x, scale_factor=scale, mode="nearest")
