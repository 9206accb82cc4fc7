"""GLIGEN's gated attention to objects: nothing at first, nothing without objects, and its code's formula otherwise."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from composer.conditioning import Conditioning, stack
from composer.networks.attention import GatedAttention
from composer.networks.experts import Experts
from composer.networks.unet import UNet
from tests.networks.test_unet import SHIFTED, TINY, awake, conditioning, unet

GATES = ("attention_gate", "feed_forward_gate")


def grounded(base: UNet, **changes) -> UNet:
    """The same network with layers that read objects, which have weights, but closed gates."""
    network = unet(object_dim=12, **changes)
    missing, foreign = network.load_state_dict(base.state_dict(), strict=False)
    assert missing and not foreign and all(".grounding." in name for name in missing)
    for layer in network.object_layers():
        for gate in GATES:
            torch.nn.init.zeros_(getattr(layer, gate))
    return network


def with_objects(cond: Conditioning) -> Conditioning:
    mask = torch.tensor([[True, True, False], [True, False, True]])
    return replace(cond, objects=torch.randn(2, 3, 12), object_mask=mask)


def open_gates(network: UNet) -> None:
    for layer in network.object_layers():
        for gate in GATES:
            torch.nn.init.constant_(getattr(layer, gate), 0.7)


@pytest.fixture
def x():
    return torch.randn(2, 3, 8, 8)


LEVEL = torch.tensor([0.2, 0.9])


@pytest.mark.parametrize("changes", [{}, SHIFTED, {"checkpointing": True}])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_closed_gates_change_not_a_bit(x, changes, precision):
    base = unet(**changes)
    network, cond = grounded(base, **changes), conditioning()
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        want = base(x, LEVEL, cond)
        assert torch.equal(network(x, LEVEL, cond), want)
        assert torch.equal(network(x, LEVEL, with_objects(cond)), want)
        open_gates(network)
        assert torch.equal(network(x, LEVEL, cond), want)  # without objects, whatever the gates
        assert not torch.allclose(network(x, LEVEL, with_objects(cond)), want, atol=1e-2)


@torch.no_grad()
def test_a_row_without_objects_is_as_before(x):
    base = unet()
    network, cond = grounded(base), with_objects(conditioning())
    open_gates(network)
    cond.object_mask[1] = False
    want, got = base(x, LEVEL, replace(cond, objects=None)), network(x, LEVEL, cond)
    assert torch.equal(got[1], want[1]) and not torch.allclose(got[0], want[0], atol=1e-2)
    absent = replace(cond.change(lambda x: x[1:]), objects=None, object_mask=None)
    stacked = stack([cond.change(lambda x: x[:1]), absent], 1)  # as guidance does
    torch.testing.assert_close(network(x, LEVEL, stacked), got, atol=1e-5, rtol=0)


def by_hand(layer: GatedAttention, x: Tensor, objects: Tensor) -> Tensor:
    """GLIGEN's code: attention of all to all over pixels and objects, of which the pixels are kept; GEGLU."""
    b, c, h, w = x.shape
    d, v = layer.head_dim, x.flatten(2).mT
    both = torch.cat([v, F.linear(objects, layer.project.weight, layer.project.bias)], 1)
    both = F.layer_norm(both, (c,), layer.norm1.weight, layer.norm1.bias)
    to_q, to_k, to_v = layer.qkv.weight.chunk(3)
    out = torch.empty_like(both)
    for s in (slice(i, i + d) for i in range(0, c, d)):
        scores = torch.einsum("bic,bjc->bij", both @ to_q[s].T, both @ to_k[s].T) / math.sqrt(d)
        out[..., s] = scores.softmax(-1) @ (both @ to_v[s].T)
    v = v + torch.tanh(layer.attention_gate) * F.linear(out, layer.out.weight, layer.out.bias)[:, : h * w]
    normed = F.layer_norm(v, (c,), layer.norm2.weight, layer.norm2.bias)
    value, gate = F.linear(normed, layer.widen.weight, layer.widen.bias).chunk(2, -1)
    v = v + torch.tanh(layer.feed_forward_gate) * F.linear(value * F.gelu(gate), layer.narrow.weight, layer.narrow.bias)
    return v.mT.reshape(b, c, h, w)


@torch.no_grad()
def test_the_layer_is_gligens():
    layer = awake(GatedAttention(32, 16, 12))
    for gate in GATES:
        torch.nn.init.constant_(getattr(layer, gate), 0.7)
    x, objects = torch.randn(2, 32, 4, 6), torch.randn(2, 5, 12)
    want = by_hand(layer, x, objects)
    torch.testing.assert_close(layer(x, layer.keys_values(objects)), want, atol=1e-5, rtol=0)
    mask = torch.tensor([[True, True, True, False, False]]).expand(2, 5)
    want = by_hand(layer, x, objects[:, :3])
    torch.testing.assert_close(layer(x, layer.keys_values(objects), mask), want, atol=1e-5, rtol=0)


@torch.no_grad()
def test_masked_objects_and_order_change_nothing(x):
    network, cond = grounded(unet()), with_objects(conditioning())
    open_gates(network)
    want = network(x, LEVEL, cond)
    other = torch.where(cond.object_mask[..., None], cond.objects, 100 * torch.randn(2, 3, 12))
    assert torch.equal(network(x, LEVEL, replace(cond, objects=other)), want)
    order = [2, 0, 1]
    turned = replace(cond, objects=cond.objects[:, order], object_mask=cond.object_mask[:, order])
    torch.testing.assert_close(network(x, LEVEL, turned), want, atol=1e-5, rtol=0)
    moved = network(x, LEVEL, replace(cond, objects=cond.objects[:, order]))
    assert (moved - want).abs().max() > 1e-4


@torch.no_grad()
def test_prepared_once_is_the_same(x):
    network, cond = grounded(unet()), with_objects(conditioning())
    open_gates(network)
    for given in (cond, replace(cond, tokens=None, token_mask=None)):
        prepared = network.prepare(given)
        assert len(prepared.object_keys_values) == len(network.object_layers()) == 4
        want = network(x, LEVEL, given)
        forgotten = replace(prepared, objects=torch.zeros_like(cond.objects))
        assert torch.equal(network(x, LEVEL, forgotten), want)


def test_the_gradient_reaches_the_gates_first(x):
    network, cond = grounded(unet()), with_objects(conditioning())
    cond.objects.requires_grad_(True)
    network(x, LEVEL, cond).square().mean().backward()
    for layer in network.object_layers():
        moves = {name for name, p in layer.named_parameters() if p.grad.any()}
        assert moves == set(GATES)
    assert not cond.objects.grad.any()
    network.zero_grad()
    open_gates(network)
    network(x, LEVEL, cond).square().mean().backward()
    assert all(p.grad.any() for layer in network.object_layers() for p in layer.parameters())
    assert cond.objects.grad[0, :2].any() and not cond.objects.grad[0, 2].any()


def test_networks_that_read_no_objects(x):
    assert not any("grounding" in name for name, _ in UNet(**TINY).named_parameters())
    with pytest.raises(ValueError, match="object_dim=0: it reads no objects"):
        unet()(x, LEVEL, with_objects(conditioning()))
    with pytest.raises(ValueError, match="expected an attending level, or object_dim=0"):
        UNet(**TINY | {"attention": (), "cross_attention": (2,), "object_dim": 12})
    with pytest.raises(ValueError, match="the same ports"):
        Experts(unet(object_dim=12), unet(), 0.5)
    assert len(Experts(unet(object_dim=12), unet(object_dim=12), 0.5).object_layers()) == 8
