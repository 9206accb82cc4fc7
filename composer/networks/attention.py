"""Attention of the U-Net: over pixels and tokens (GLIDE, Nichol et al. 2021), over objects (GLIGEN, Li et al. 2023)."""

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from composer.conditioning import TokenMask
from composer.networks.norm import GroupNorm

ModuleT = TypeVar("ModuleT", bound=nn.Module)
Norm = Callable[[int], GroupNorm]
"""Makes the norm of so many channels."""


class Attention(nn.Module):
    """Self-attention over pixels, with the context's keys and values added to the pixels' (GLIDE, section 3).

    Without self-attention, pixels attend to the context and to one constant key and value of zeros: a row without
    tokens, or with all tokens masked, attends to nothing (Imagen's 256 -> 1024 stage).

    Args:
        channels: Width; a multiple of `head_dim`.
        head_dim: Channels per head.
        token_dim: Channels of the context's tokens; 0 builds no projection for them.
        norm: Makes the norm of so many channels.
        itself: Whether pixels attend to pixels.

    Raises:
        ValueError: `channels` does not divide into heads, or there is nothing to attend to.
    """

    def __init__(self, channels: int, head_dim: int, token_dim: int, norm: Norm, itself: bool = True):
        super().__init__()
        if head_dim < 1 or channels % head_dim:
            raise ValueError(f"a level that attends needs a multiple of head_dim={head_dim} channels, found {channels}")
        if not (itself or token_dim):
            raise ValueError("cross-attention reads tokens: expected token_dim above 0, found 0")
        self.head_dim, self.itself = head_dim, itself
        self.norm = norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels if itself else channels)
        self.context = nn.Linear(token_dim, 2 * channels) if token_dim else None
        self.out = zeroed(nn.Linear(channels, channels))

    def keys_values(self, tokens: Float[Tensor, "b n c"]) -> Float[Tensor, "2 b heads n d"]:
        """Projects the context's tokens to keys and values; they are the same at every sampling step."""
        if self.context is None:
            raise ValueError("this U-Net was built with token_dim=0: it reads no tokens")
        return _heads(self.context(tokens), 2, self.head_dim)

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        keys_values: Float[Tensor, "2 b heads n d"] | None = None,
        token_mask: TokenMask | None = None,
    ) -> Float[Tensor, "b c h w"]:
        b, c, h, w = x.shape
        pixels = self.norm(x).permute(0, 2, 3, 1).reshape(b, h * w, c)  # free of copies in channels_last
        if self.itself:
            q, k, v = _heads(self.qkv(pixels), 3, self.head_dim)
        else:
            (q,) = _heads(self.qkv(pixels), 1, self.head_dim)
            k = v = torch.zeros_like(q[:, :, :1])
        mask = None
        if keys_values is not None:
            own, joined = k.shape[2], keys_values.to(k.dtype)
            k, v = torch.cat([k, joined[0]], dim=2), torch.cat([v, joined[1]], dim=2)
            if token_mask is not None:
                mask = _scores_of(F.pad(token_mask, (own, 0), value=1), q.dtype)[:, None, None]
        out: Tensor = self.out(_attend(q, k, v, mask).transpose(1, 2).reshape(b, h * w, c))
        return x + out.reshape(b, h, w, c).permute(0, 3, 1, 2)


class GatedAttention(nn.Module):
    """Gated self-attention over pixels and objects, then a gated feed-forward layer (GLIGEN, Li et al. 2023, eq. 8).

    The feed-forward layer and its gate are not in the paper but in its code. Both gates start at 0: the layer then
    returns its input, bit for bit. So it does, whatever the gates, for a row without objects. In GLIGEN it stands
    between self- and cross-attention; here it follows `Attention`, which is both in one.

    Args:
        channels: Width; a multiple of `head_dim`.
        head_dim: Channels per head.
        object_dim: Channels of the objects' tokens.
        widening: Width of the feed-forward layer, in multiples of `channels`; 4 in GLIGEN.
    """

    def __init__(self, channels: int, head_dim: int, object_dim: int, widening: int = 4):
        super().__init__()
        self.head_dim = head_dim
        self.project = nn.Linear(object_dim, channels)
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.out = nn.Linear(channels, channels)
        inner = widening * channels
        self.widen, self.narrow = nn.Linear(channels, 2 * inner), nn.Linear(inner, channels)
        self.attention_gate = nn.Parameter(torch.zeros(()))
        self.feed_forward_gate = nn.Parameter(torch.zeros(()))

    def keys_values(self, objects: Float[Tensor, "b n d"]) -> Float[Tensor, "2 b heads n d2"]:
        """Projects objects to keys and values; they are the same at every sampling step."""
        return _heads(self.qkv(self.norm1(self.project(objects))), 3, self.head_dim)[1:]

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        keys_values: Float[Tensor, "2 b heads n d"],
        object_mask: Bool[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        b, c, h, w = x.shape
        pixels = x.permute(0, 2, 3, 1).reshape(b, h * w, c)
        q, k, v = _heads(self.qkv(self.norm1(pixels)), 3, self.head_dim)
        joined = keys_values.to(k.dtype)
        k, v = torch.cat([k, joined[0]], dim=2), torch.cat([v, joined[1]], dim=2)
        if object_mask is None:
            object_mask = torch.ones(b, joined.shape[3], dtype=torch.bool, device=x.device)
        mask = F.pad(object_mask, (h * w, 0), value=True)[:, None, None]
        seen = object_mask.any(1)[:, None, None]
        attended = self.out(_attend(q, k, v, mask).transpose(1, 2).reshape(b, h * w, c))
        pixels = pixels + seen * (self.attention_gate.tanh() * attended)  # in this order it keeps bf16
        values, gates = self.widen(self.norm2(pixels)).chunk(2, dim=2)
        pixels = pixels + seen * (self.feed_forward_gate.tanh() * self.narrow(values * F.gelu(gates)))
        out: Tensor = pixels.reshape(b, h, w, c).permute(0, 3, 1, 2)
        return out


def zeroed(module: ModuleT) -> ModuleT:
    """Zeroes a module's parameters, so that a residual branch starts as the identity (ADM's zero_module)."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def _scores_of(mask: TokenMask, dtype: torch.dtype) -> Tensor:
    """What is added to the scores of attention: nothing for a mask of booleans, the logarithm of weights."""
    return mask if mask.dtype == torch.bool else mask.float().log().to(dtype)


def _heads(x: Tensor, parts: int, head_dim: int) -> Tensor:
    """(b n parts*c) -> (parts b heads n head_dim), a view whose last stride is 1, as fast SDPA kernels want it."""
    return x.view(*x.shape[:2], parts, -1, head_dim).permute(2, 0, 3, 1, 4)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    if q.device.type == "cpu" and prefers_matmul(q):
        return attend_by_matmul(q, k, v, mask)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def prefers_matmul(q: Float[Tensor, "b heads n d"]) -> bool:
    """Whether a CPU should use `attend_by_matmul` for these queries: 1.5 to 5 times as fast as torch's in bf16.

    Beyond 1024 pixels the scores would take too much memory.
    """
    return q.dtype == torch.bfloat16 and q.shape[2] <= 1024


def attend_by_matmul(
    q: Float[Tensor, "b heads n d"],
    k: Float[Tensor, "b heads m d"],
    v: Float[Tensor, "b heads m d"],
    attn_mask: Bool[Tensor, "b 1 1 m"] | Float[Tensor, "b 1 1 m"] | None = None,
) -> Float[Tensor, "b heads n d"]:
    """Scaled dot-product attention by two matrix products, in the precision of `q`."""
    with torch.autocast("cpu", enabled=False):
        scores = (q * q.shape[3] ** -0.5) @ k.transpose(2, 3)
        if attn_mask is not None:
            if attn_mask.dtype == torch.bool:
                attn_mask = torch.zeros_like(attn_mask, dtype=q.dtype).masked_fill(~attn_mask, -math.inf)
            scores = scores + attn_mask
        return torch.matmul(scores.softmax(dim=3), v)
