import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from composer.conditioning import Conditioning, stack
from composer.networks.attention import Attention
from composer.networks.norm import GroupNorm
from composer.networks.unet import ResBlock, UNet

TINY: dict[str, Any] = {
    "width": 32,
    "multipliers": (1, 2),
    "blocks": 1,
    "attention": (2,),
    "head_dim": 16,
    "vector_dim": 48,
    "token_dim": 24,
}
SHIFTED: dict[str, Any] = {"residual_resampling": False, "skip_scale": 0.5**0.5, "blocks": (0, 2)}


def norm(channels: int) -> GroupNorm:
    return GroupNorm(channels // 16, channels)


def awake(module: nn.Module) -> Any:
    """Gives every parameter a value: zero-initialised ends would hide what is behind them."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.1)
    return module.eval()


def unet(**changes: Any) -> Any:
    return awake(UNet(**(TINY | changes)))


def conditioning(b: int = 2, size: tuple[int, int] = (8, 8)) -> Conditioning:
    return Conditioning(
        vector=torch.randn(b, 48),
        tokens=torch.randn(b, 5, 24),
        token_mask=torch.tensor([[True, False, True, True, False]]).expand(b, 5),
        spatial=torch.randn(b, 8, *size),
    )


def count(**plan: Any) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in UNet(**plan).parameters())


def group_norm(x: Tensor, layer: nn.GroupNorm) -> Tensor:
    groups = x.unflatten(1, (layer.num_groups, -1))
    mean = groups.mean(dim=(2, 3, 4), keepdim=True)
    var = groups.var(dim=(2, 3, 4), keepdim=True, unbiased=False)
    flat = ((groups - mean) / (var + layer.eps).sqrt()).flatten(1, 2)
    return flat * layer.weight[:, None, None] + layer.bias[:, None, None]


def naive_attention(layer: Attention, x: Tensor, tokens: Tensor | None, mask: Tensor | None) -> Tensor:
    """One row, one head and one pixel at a time, tokens left out where the mask is False."""
    b, c, h, w = x.shape
    d = layer.head_dim
    out = torch.empty(b, h * w, c)
    for row in range(b):
        pixels = group_norm(x, layer.norm)[row].flatten(1).T
        q, k, v = F.linear(pixels, layer.qkv.weight, layer.qkv.bias).split(c, dim=1)
        if tokens is not None:
            real = tokens[row] if mask is None else tokens[row][mask[row]]
            k2, v2 = F.linear(real, layer.context.weight, layer.context.bias).split(c, dim=1)
            k, v = torch.cat([k2, k]), torch.cat([v2, v])
        for head in range(c // d):
            s = slice(head * d, (head + 1) * d)
            for i in range(h * w):
                weights = torch.exp(k[:, s] @ q[i, s] / math.sqrt(d))
                out[row, i, s] = (weights / weights.sum()) @ v[:, s]
    projected = F.linear(out, layer.out.weight, layer.out.bias)
    return x + projected.transpose(1, 2).reshape(b, c, h, w)


@pytest.mark.parametrize("with_mask", [True, False])
@pytest.mark.parametrize("with_tokens", [True, False])
def test_attention_is_softmax_over_joined_keys(with_tokens, with_mask):
    layer, cond, x = awake(Attention(32, 16, 24, norm)), conditioning(), torch.randn(2, 32, 4, 6)
    tokens, mask = cond.tokens if with_tokens else None, cond.token_mask if with_mask else None
    keys_values = None if tokens is None else layer.keys_values(tokens)
    torch.testing.assert_close(layer(x, keys_values, mask), naive_attention(layer, x, tokens, mask))


@pytest.mark.parametrize("with_mask", [True, False])
def test_attention_in_bf16_agrees_with_fp32(with_mask):
    layer, cond, x = awake(Attention(32, 16, 24, norm)), conditioning(), torch.randn(2, 32, 4, 6)
    mask = cond.token_mask if with_mask else None
    exact = layer(x, layer.keys_values(cond.tokens), mask) - x
    with torch.autocast("cpu", torch.bfloat16):
        got = layer(x, layer.keys_values(cond.tokens), mask) - x
    assert (got - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize("scale", [1, 0.5, 2])
def test_block_is_adm_residual_block(scale):
    block = awake(ResBlock(32, 48, 20, dropout=0.0, norm=norm, scale=scale))
    x, embedding = torch.randn(2, 32, 4, 6), torch.randn(2, 20)

    def resize(z: Tensor) -> Tensor:
        if scale == 0.5:
            return (z[:, :, ::2, ::2] + z[:, :, 1::2, ::2] + z[:, :, ::2, 1::2] + z[:, :, 1::2, 1::2]) / 4
        return z.repeat_interleave(int(scale), 2).repeat_interleave(int(scale), 3)

    def silu(z: Tensor) -> Tensor:
        return z / (1 + torch.exp(-z))

    h = F.conv2d(resize(silu(group_norm(x, block.norm1))), block.conv1.weight, block.conv1.bias, padding=1)
    scale_shift = embedding @ block.scale_shift.weight.T + block.scale_shift.bias
    h = group_norm(h, block.norm2) * (1 + scale_shift[:, :48, None, None]) + scale_shift[:, 48:, None, None]
    h = F.conv2d(silu(h), block.conv2.weight, block.conv2.bias, padding=1)
    wanted = F.conv2d(resize(x), block.skip.weight, block.skip.bias) + h
    torch.testing.assert_close(block(x, embedding), wanted, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("plan", [{}, {"residual_resampling": False, "skip_scale": 0.7}])
def test_the_way_down_is_joined_to_the_way_up(plan):
    net, x, level, cond = unet(**plan), torch.randn(2, 3, 8, 8), torch.rand(2), conditioning()
    frequencies = 10000 ** -(torch.arange(16) / 16)
    angles = 1000 * level[:, None] * frequencies
    one, _, two = net.embed
    e = F.silu(two(F.silu(one(torch.cat([angles.cos(), angles.sin()], 1)))) + cond.vector)

    def run(block: Any, h: Tensor) -> Tensor:
        keys_values = block.attention.keys_values(cond.tokens) if block.attention is not None else None
        return block(h, e, keys_values, cond.token_mask)

    def join(h: Tensor, skip: Tensor) -> Tensor:
        return torch.cat([h, skip * net.skip_scale], 1)

    encoder, (low, high) = net.encoder, net.decoder
    h0 = net.first(torch.cat([x, cond.spatial], 1))
    h1 = run(encoder[0], h0)
    h2 = run(encoder[1], h1)
    h3 = run(encoder[2], h2)
    assert h1.shape[2:] == (8, 8) and h2.shape[2:] == h3.shape[2:] == (4, 4)
    h = run(net.middle[1], run(net.middle[0], h3))
    h = run(low[1], join(run(low[0], join(h, h3)), h2))
    h = run(net.upsamplers[0], h)
    h = run(high[1], join(run(high[0], join(h, h1)), h0))
    torch.testing.assert_close(net(x, level, cond), net.last(h))
    attends = [block.attention is not None for block in (*encoder, *net.middle, *low, *high)]
    assert attends == [False, False, True, True, False, True, True, False, False]


def test_single_convolutions_work_at_the_lower_resolution():
    net = unet(**SHIFTED)
    down, up, x = net.encoder[0], net.upsamplers[0], torch.randn(1, 32, 8, 8)
    torch.testing.assert_close(down(x), F.conv2d(x, down.conv.weight, down.conv.bias, stride=2, padding=1))
    low = F.conv2d(down(x), up.conv.weight, up.conv.bias, padding=1)
    torch.testing.assert_close(up(down(x)), low.repeat_interleave(2, 2).repeat_interleave(2, 3))


@pytest.mark.parametrize(
    ("plan", "released"),
    [
        ({"spatial_dim": 0}, 385_030_726),
        (
            {"multipliers": (1, 1, 2, 2, 4, 4), "blocks": 2, "attention": (8, 16, 32), "spatial_dim": 3},
            398_361_286,
        ),
    ],
    ids=["base", "upsampler"],
)
def test_counts_what_glide_counts(plan, released):
    """The released networks come with a text transformer, and have 6 output channels where we have 3."""
    width, layers, text = 512, 16, 128
    layer = (width * 3 * width + 3 * width) + (width * width + width) + 4 * width + (8 * width * width + 5 * width)
    transformer = 50257 * width + 2 * text * width + layers * layer + 2 * width + width * 768 + 768
    unet = count(width=192, vector_dim=768, token_dim=width, **plan)
    assert unet + 3 * (9 * 192 + 1) + transformer == released


def test_paper_base_has_two_billion_parameters_and_runs_on_meta():
    with torch.device("meta"):
        net = UNet(width=512, vector_dim=2048, token_dim=768)
        assert net(torch.empty(2, 3, 64, 64), torch.empty(2), Conditioning()).shape == (2, 3, 64, 64)
    assert 2.1e9 < sum(p.numel() for p in net.parameters()) < 2.3e9


def test_attending_once_leaves_the_last_block_of_a_level_its_attention():
    net = unet(multipliers=(1, 2, 2), blocks=(1, 2, 3), attention=(2, 4), attend_once=True)

    def attends(blocks) -> str:
        return "".join("+" if getattr(block, "attention", None) is not None else "-" for block in blocks)

    assert attends(net.encoder) == "-" + "--+" + "---+"  # a level's blocks, behind the one that halves
    assert attends(net.middle) == "+-" and attends(net.upsamplers) == "--"
    assert [attends(level) for level in net.decoder] == ["---+", "--+", "--"]
    x, level, cond = torch.randn(2, 3, 8, 8), torch.rand(2), conditioning()
    assert not torch.equal(net(x, level, cond), net(x, level, replace(cond, tokens=None)))


def test_norms_have_adm_groups_unless_they_would_be_narrow():
    with torch.device("meta"):
        nets = UNet(width=512), UNet(width=64), UNet(width=64, group_width=1)
    wide, narrow, adm = ([m for m in net.modules() if isinstance(m, nn.GroupNorm)] for net in nets)
    assert all(m.num_groups == 32 for m in (*wide, *adm))
    assert all(m.num_channels // m.num_groups >= 16 for m in narrow)


@pytest.mark.parametrize("plan", [{}, SHIFTED])
def test_new_network_is_silent(plan):
    assert not UNet(**(TINY | plan))(torch.randn(2, 3, 8, 8), torch.rand(2), conditioning()).any()


@pytest.mark.parametrize("size", [(8, 8), (4, 10)])
def test_dropped_is_absent_port_by_port(size):
    net, x, level, cond = unet(), torch.randn(2, 3, *size), torch.rand(2), conditioning(size=size)
    for dropped, absent in (
        (replace(cond, token_mask=torch.zeros(2, 5, dtype=torch.bool)), replace(cond, tokens=None, token_mask=None)),
        (replace(cond, vector=torch.zeros(2, 48)), replace(cond, vector=None)),
        (replace(cond, spatial=torch.zeros(2, 8, *size)), replace(cond, spatial=None)),
    ):
        full, got, wanted = net(x, level, cond), net(x, level, dropped), net(x, level, absent)
        torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-6)  # sums over more keys may round differently
        assert (got - full).abs().max() > 1e-3


def test_masked_tokens_are_never_read():
    net, x, level, cond = unet(), torch.randn(2, 3, 8, 8), torch.rand(2), conditioning()
    other = torch.where(cond.token_mask[..., None], cond.tokens, 100 * torch.randn(2, 5, 24))
    assert torch.equal(net(x, level, cond), net(x, level, replace(cond, tokens=other)))


def test_prepared_conditioning_gives_the_same():
    net, x, level, cond = unet(), torch.randn(2, 3, 8, 8), torch.rand(2), conditioning()
    prepared = net.prepare(cond)
    assert [kv.shape for kv in prepared.keys_values] == [(2, 2, 4, 5, 16)] * 4
    assert torch.equal(net(x, level, cond), net(x, level, prepared))
    lost = replace(prepared, tokens=torch.full_like(cond.tokens, math.nan))
    assert torch.equal(net(x, level, cond), net(x, level, lost)), "the tokens were read again"
    assert net.prepare(Conditioning()).keys_values is None


@pytest.mark.parametrize("plan", [{}, SHIFTED])
def test_rows_are_independent(plan):
    net, x, level = unet(**plan), torch.randn(3, 3, 8, 8), torch.rand(3)
    parts = [conditioning(1), Conditioning(vector=torch.randn(1, 48)), Conditioning()]
    together = net(x, level, stack(parts, 1))
    for row, part in enumerate(parts):
        alone = net(x[row : row + 1], level[row : row + 1], part)
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("plan", [{}, SHIFTED])
def test_checkpointing_gives_the_same_gradients(plan):
    net = unet(**plan, dropout=0.3).train()
    x, level, cond = torch.randn(2, 3, 8, 8), torch.rand(2), conditioning()
    gradients = []
    for net.checkpointing in (False, True):
        torch.manual_seed(1)
        net.zero_grad()
        net(x, level, cond).square().sum().backward()
        gradients.append([p.grad.clone() for p in net.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert plain.any()
        assert torch.equal(plain, recomputed)


@pytest.mark.parametrize("plan", [{}, SHIFTED])
def test_bf16_autocast_and_memory_format(plan):
    net, x, level, cond = unet(**plan), torch.randn(2, 3, 8, 8), torch.rand(2), conditioning()
    formats = []
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(
                lambda _, args, out: formats.append(out.is_contiguous(memory_format=torch.channels_last))
            )
    exact = net(x, level, cond)
    with torch.autocast("cpu", torch.bfloat16):
        got = net(x, level, cond)
    assert got.dtype == torch.float32 and all(formats) and formats
    assert (got - exact).norm() < 0.05 * exact.norm()
    assert net.bfloat16()(x.bfloat16(), level, Conditioning()).dtype == torch.bfloat16


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_agrees_with_cpu():
    net, x, level, cond = unet(), torch.randn(2, 3, 8, 8), torch.rand(2), conditioning()
    exact = net(x, level, cond)
    there = Conditioning(
        vector=cond.vector.cuda(),
        tokens=cond.tokens.cuda(),
        token_mask=cond.token_mask.cuda(),
        spatial=cond.spatial.cuda(),
    )
    net.cuda()
    torch.testing.assert_close(net(x.cuda(), level.cuda(), there).cpu(), exact, atol=1e-2, rtol=1e-2)
    with torch.autocast("cuda", torch.bfloat16):
        assert (net(x.cuda(), level.cuda(), there).cpu() - exact).norm() < 0.05 * exact.norm()


def test_refuses_what_does_not_fit():
    net, level = unet(), torch.rand(2)
    assert net.stride == 2
    with pytest.raises(ValueError, match="multiples of 2, found 9 x 8"):
        net(torch.randn(2, 3, 9, 8), level, Conditioning())
    with pytest.raises(ValueError, match=r"map of shape \(2, 8, 8, 8\).*found \(2, 8, 4, 4\)"):
        net(torch.randn(2, 3, 8, 8), level, conditioning(size=(4, 4)))
    with pytest.raises(ValueError, match="reads no tokens"):
        unet(token_dim=0)(torch.randn(2, 3, 8, 8), level, conditioning())
    with pytest.raises(ValueError, match="one number of blocks per level"):
        unet(blocks=(1, 2, 3))
    with pytest.raises(ValueError, match="head_dim=48"):
        unet(head_dim=48)
