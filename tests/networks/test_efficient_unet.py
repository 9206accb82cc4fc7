"""The pieces of Imagen's Efficient U-Net, and attention to tokens alone; the rest of the U-Net is in test_unet.py."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from composer.conditioning import Conditioning
from composer.networks.attention import Attention
from composer.networks.unet import UNet
from tests.networks.test_unet import TINY, awake, conditioning, group_norm, norm, unet

EFFICIENT: dict[str, Any] = {
    "blocks": (1, 2),
    "attention": (),
    "cross_attention": (4,),
    "residual_resampling": False,
    "skip_scale": 0.5**0.5,
    "first_stride": 2,
}


def nobody(cond: Conditioning, rows: slice = slice(None)) -> Conditioning:
    """The same with all tokens of some rows masked."""
    mask = cond.token_mask.clone()
    mask[rows] = False
    return replace(cond, token_mask=mask)


def attends(net: UNet) -> list[str]:
    """A letter a block, from the way down over the middle to the way up: (s)elf, (c)ross or -."""

    def kind(block: nn.Module) -> str:
        return "-" if block.attention is None else "s" if block.attention.itself else "c"

    return ["".join(map(kind, part)) for part in (net.encoder, net.middle, *net.decoder)]


def naive_cross_attention(layer: Attention, x: Tensor, tokens: Tensor | None, mask: Tensor | None) -> Tensor:
    """One row, one head and one pixel at a time: the null key scores 0 and adds nothing to the sum of values."""
    b, c, h, w = x.shape
    d, out = layer.head_dim, torch.zeros(b, h * w, c)
    for row in range(b):
        q = F.linear(group_norm(x, layer.norm)[row].flatten(1).T, layer.qkv.weight, layer.qkv.bias)
        k = v = torch.empty(0, c)
        if tokens is not None:
            real = tokens[row] if mask is None else tokens[row][mask[row]]
            k, v = F.linear(real, layer.context.weight, layer.context.bias).split(c, dim=1)
        for head in range(c // d):
            s = slice(head * d, (head + 1) * d)
            for i in range(h * w):
                weights = torch.exp(k[:, s] @ q[i, s] / math.sqrt(d))
                out[row, i, s] = (weights / (1 + weights.sum())) @ v[:, s]
    return x + F.linear(out, layer.out.weight, layer.out.bias).transpose(1, 2).reshape(b, c, h, w)


def torchs_cross_attention(layer: Attention, x: Tensor, tokens: Tensor, mask: Tensor | None) -> Tensor:
    theirs = nn.MultiheadAttention(32, 32 // layer.head_dim, kdim=24, vdim=24, add_zero_attn=True, batch_first=True)
    k, v = layer.context.weight.chunk(2)
    weights = {"q_proj_weight": layer.qkv.weight, "k_proj_weight": k, "v_proj_weight": v}
    weights["in_proj_bias"] = torch.cat([layer.qkv.bias, layer.context.bias])
    theirs.load_state_dict(weights | {f"out_proj.{name}": value for name, value in layer.out.state_dict().items()})
    pixels = group_norm(x, layer.norm).flatten(2).transpose(1, 2)
    out, _ = theirs(pixels, tokens, tokens, key_padding_mask=None if mask is None else ~mask)
    return x + out.transpose(1, 2).reshape(x.shape)


@pytest.mark.parametrize("with_mask", [True, False])
@pytest.mark.parametrize("with_tokens", [True, False])
def test_cross_attention_is_softmax_over_tokens_and_a_null_key(with_tokens, with_mask):
    layer, cond, x = awake(Attention(32, 16, 24, norm, itself=False)), conditioning(), torch.randn(2, 32, 4, 6)
    tokens, mask = cond.tokens if with_tokens else None, cond.token_mask if with_mask else None
    got = layer(x, None if tokens is None else layer.keys_values(tokens), mask)
    torch.testing.assert_close(got, naive_cross_attention(layer, x, tokens, mask))
    if tokens is not None:
        torch.testing.assert_close(got, torchs_cross_attention(layer, x, tokens, mask))


def test_cross_attention_in_bf16_agrees_with_fp32():
    layer, cond, x = awake(Attention(32, 16, 24, norm, itself=False)), conditioning(), torch.randn(2, 32, 4, 6)
    exact = layer(x, layer.keys_values(cond.tokens), cond.token_mask) - x
    with torch.autocast("cpu", torch.bfloat16):
        got = layer(x, layer.keys_values(cond.tokens), cond.token_mask) - x
    assert (got - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize("bf16", [False, True])
def test_a_row_that_may_read_no_token_is_one_without_tokens(bf16):
    net, x, level, cond = unet(**EFFICIENT), torch.randn(2, 3, 8, 8), torch.rand(2), conditioning()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        one, both = net(x, level, nobody(cond, slice(1))), net(x, level, nobody(cond))
        absent = net(x, level, replace(cond, tokens=None, token_mask=None))
        full = net(x, level, cond)
    assert torch.equal(both, absent) and torch.equal(one, torch.cat([absent[:1], full[1:]]))
    assert absent.isfinite().all() and not torch.isclose(full, absent).all()


def test_gradients_of_a_row_that_may_read_no_token_are_numbers():
    net, x, level, cond = unet(**EFFICIENT), torch.randn(2, 3, 8, 8), torch.rand(2), nobody(conditioning(), slice(1))
    tokens = cond.tokens.requires_grad_()
    net(x, level, cond).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())
    assert not tokens.grad[0].any() and tokens.grad[1].any()


def test_keys_and_values_of_cross_attention_are_computed_once():
    net, x, level, cond = unet(**EFFICIENT), torch.randn(2, 3, 8, 8), torch.rand(2), conditioning()
    prepared = net.prepare(cond)
    assert [kv.shape for kv in prepared.keys_values] == [(2, 2, 4, 5, 16)] * 6
    lost = replace(prepared, tokens=torch.full_like(cond.tokens, math.nan))
    assert torch.equal(net(x, level, cond), net(x, level, lost))


def test_cross_attention_needs_tokens():
    with pytest.raises(ValueError, match="token_dim above 0, found 0"):
        unet(attention=(), cross_attention=(2,), token_dim=0)


def test_the_middle_attends_as_the_blocks_beside_it():
    def plan(**changes: object) -> list[str]:
        return attends(unet(multipliers=(1, 1, 1), **changes))

    assert plan(attention=(4,)) == ["----s", "s-", "ss", "--", "--"]
    assert plan(attention=(2,)) == ["--s--", "--", "--", "ss", "--"]
    assert plan(attention=(2,), cross_attention=(4,)) == ["--s-c", "c-", "cc", "ss", "--"]
    assert plan(attention=(), cross_attention=(1,)) == ["c----", "--", "--", "--", "cc"]
    assert plan(attention=(4,), first_stride=2) == ["--s--", "--", "--", "ss", "--"]


def test_without_attention_there_is_nothing_to_read_tokens():
    net, x, level, cond = unet(attention=(), token_dim=0), torch.randn(2, 3, 8, 8), torch.rand(2), conditioning()
    assert not any(isinstance(module, Attention) for module in net.modules())
    assert attends(net) == ["---", "--", "--", "--"]
    assert torch.equal(net(x, level, cond), net(x, level, replace(cond, tokens=None, token_mask=None)))


@pytest.mark.parametrize("size", [(8, 8), (4, 12)])
def test_the_efficient_plan_begins_and_ends_at_half_the_size(size):
    net, x, level, cond = unet(**EFFICIENT), torch.randn(2, 3, *size), torch.rand(2), conditioning(size=size)
    angles = 1000 * level[:, None] * 10000 ** -(torch.arange(16) / 16)
    one, _, two = net.embed
    e = F.silu(two(F.silu(one(torch.cat([angles.cos(), angles.sin()], 1)))) + cond.vector)

    def run(block: Any, h: Tensor) -> Tensor:
        keys_values = block.attention.keys_values(cond.tokens) if block.attention is not None else None
        return block(h, e, keys_values, cond.token_mask)

    def join(h: Tensor, skip: Tensor) -> Tensor:
        return torch.cat([h, skip / math.sqrt(2)], 1)

    block, halve, *lowest = net.encoder
    low, high = net.decoder
    inputs = torch.cat([x, cond.spatial], 1)
    h0 = F.conv2d(inputs, net.first.weight, net.first.bias, padding=1)[:, :, ::2, ::2]
    h1 = run(block, h0)
    h2 = F.conv2d(h1, halve.conv.weight, halve.conv.bias, padding=1)[:, :, ::2, ::2]
    h3 = run(lowest[0], h2)
    h4 = run(lowest[1], h3)
    assert h1.shape[2:] == (size[0] // 2, size[1] // 2) and h4.shape[2:] == (size[0] // 4, size[1] // 4)
    h = run(net.middle[1], run(net.middle[0], h4))
    for block, skip in zip(low, (h4, h3, h2), strict=True):
        h = run(block, join(h, skip))
    up = net.upsamplers[0].conv
    h = F.conv2d(h, up.weight, up.bias, padding=1).repeat_interleave(2, 2).repeat_interleave(2, 3)
    for block, skip in zip(high, (h1, h0), strict=True):
        h = run(block, join(h, skip))
    h = group_norm(h, net.last[0])
    h = F.conv2d(h / (1 + torch.exp(-h)), net.last[2].weight, net.last[2].bias, padding=1)
    wanted = torch.empty_like(x)
    for dy in (0, 1):
        for dx in (0, 1):
            wanted[:, :, dy::2, dx::2] = h[:, 2 * dy + dx :: 4]
    torch.testing.assert_close(net(x, level, cond), wanted, atol=1e-4, rtol=1e-4)


def test_the_first_stride_counts_in_what_sizes_fit():
    net, level = unet(**EFFICIENT), torch.rand(2)
    assert net.stride == 4
    with pytest.raises(ValueError, match="multiples of 4, found 8 x 6"):
        net(torch.randn(2, 3, 8, 6), level, Conditioning())


def test_a_new_efficient_network_is_silent():
    net = UNet(**(TINY | EFFICIENT))
    assert not net(torch.randn(2, 3, 8, 8), torch.rand(2), conditioning()).any()


def test_the_efficient_plan_stays_in_channels_last():
    net, x, level, cond = unet(**EFFICIENT), torch.randn(2, 3, 8, 8), torch.rand(2), conditioning()
    formats = []
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(
                lambda _, args, out: formats.append(out.is_contiguous(memory_format=torch.channels_last))
            )
    exact = net(x, level, cond)
    with torch.autocast("cpu", torch.bfloat16):
        got = net(x, level, cond)
    assert formats and all(formats)
    assert got.dtype == torch.float32 and (got - exact).norm() < 0.05 * exact.norm()
