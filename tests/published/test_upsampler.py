"""Karlo's upsampler, two networks in one: against its authors' outputs and diffusers, and from files to pictures."""

from operator import itemgetter

import pytest
import torch
from diffusers import UNet2DModel
from PIL import Image

from composer.__main__ import main
from composer.conditioning import Conditioning
from composer.networks.experts import Experts
from composer.networks.unet import UNet
from composer.published import FAMILIES, Needs
from composer.published.engine import convert
from composer.published.importing import network_of
from tests.decomposers.test_clip_decomposers import tiny, write_folder
from tests.published import kit
from tests.published import layouts as own

RELEASED = own.karlo_upsampler(320, (1, 2, 3, 4), 3)
FIRST, LAST = "model_first_steps.", "model_last_step."


def converted(theirs, name="karlo-up256"):
    """The network of ours with published weights."""
    family = FAMILIES[name]
    weights = network_of(family.configure(theirs, 8, Needs()))
    done = convert(family.rows(weights, Needs()), theirs, weights.state_dict(), family.left)
    weights.load_state_dict(done.tensors)
    return weights.get_submodule("denoiser.network").eval(), done


@kit.needs_kit
def test_our_layout_is_the_released_one():
    each = kit.layouts()["karlo_sr_each"]
    both = {part + name: shape for part in (FIRST, LAST) for name, shape in each.items()}
    assert {name: list(shape) for name, shape in RELEASED.items()} == both


def test_every_tensor_of_the_released_upsampler_has_its_place():
    family, theirs = FAMILIES["karlo-up256"], {k: torch.empty(shape, device="meta") for k, shape in RELEASED.items()}
    assert family.recognises(theirs)
    assert set(family.released.values()) == {(len(theirs), sum(x.numel() for x in theirs.values()))}
    with torch.device("meta"):
        weights = network_of(family.configure(theirs, 256, Needs()))
    done = convert(family.rows(weights, Needs()), theirs, weights.state_dict(), family.left)
    assert done.tensors.keys() == weights.state_dict().keys() and not done.left
    assert {n for row in done.report for n in row["theirs"]} == theirs.keys()


@kit.needs_kit
@pytest.mark.parametrize(("part", "other", "border"), [(FIRST, LAST, 0.001), (LAST, FIRST, 1.0)])
@torch.no_grad()
def test_estimates_are_those_of_the_authors_code(part, other, border):
    given, right = kit.inputs("karlo_sr"), kit.weights("karlo_sr")
    wrong = own.fill({name: x.shape for name, x in right.items()})
    network, _ = converted({part + k: x for k, x in right.items()} | {other + k: x for k, x in wrong.items()})
    network.border = border  # the kit has no case of the last step
    found = network(given["x"], given["t"] / 1000, Conditioning(spatial=given["low"]))
    assert (found - kit.output("karlo_sr")).abs().max() < 1e-6


BLOCK = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.resnets.1": "middle_block.1",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def authors_layout(state, levels, blocks):
    """Diffusers' weights under the authors' names."""
    places, down, up = dict(ENDS), blocks + 1, blocks + 1
    for i in range(levels):
        places |= {f"down_blocks.{i}.resnets.{j}": f"input_blocks.{1 + i * down + j}.0" for j in range(blocks)}
        places |= {f"up_blocks.{i}.resnets.{j}": f"output_blocks.{i * up + j}.0" for j in range(up)}
        places[f"down_blocks.{i}.downsamplers.0"] = f"input_blocks.{(i + 1) * down}.0"
        places[f"up_blocks.{i}.upsamplers.0"] = f"output_blocks.{(i + 1) * up - 1}.1"
    made = {}
    for name, x in state.items():
        place = max((p for p in places if name.startswith(f"{p}.")), key=len)
        part, _, kind = name.removeprefix(f"{place}.").rpartition(".")
        made[".".join([places[place], *([BLOCK[part]] if part else []), kind])] = x
    return made


@torch.no_grad()
def test_estimates_are_diffusers():
    networks = {}
    for part in (FIRST, LAST):
        networks[part] = UNet2DModel(
            in_channels=6,
            out_channels=3,
            block_out_channels=(32, 64, 64),
            layers_per_block=2,
            down_block_types=("ResnetDownsampleBlock2D",) * 3,
            up_block_types=("ResnetUpsampleBlock2D",) * 3,
            add_attention=False,
        ).eval()
        for parameter in networks[part].parameters():
            torch.nn.init.normal_(parameter, std=0.08)
    theirs = {
        part + name: x for part, net in networks.items() for name, x in authors_layout(net.state_dict(), 3, 2).items()
    }
    network, _ = converted(theirs)
    x, low, t = torch.randn(3, 3, 16, 16), torch.randn(3, 3, 16, 16), torch.tensor([999, 0, 166])
    found = network(x, t / 1000, Conditioning(spatial=low))
    for row, part in enumerate((FIRST, LAST, FIRST)):
        one = slice(row, row + 1)
        expected = networks[part](torch.cat([x, low], 1)[one], t[one]).sample
        assert (found[one] - expected).abs().max() < 1e-5
    direct = {part + name: x for part, net in networks.items() for name, x in net.state_dict().items()}
    assert FAMILIES["karlo-up256-diffusers"].recognises(networks[FIRST].state_dict())
    again, _ = converted(direct, "karlo-up256-diffusers")
    assert torch.equal(again(x, t / 1000, Conditioning(spatial=low)), found)


def test_from_karlos_files_to_large_pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clip = write_folder(tiny(True, embed_dim=64), tmp_path / "clip", True, embed_dim=64)
    torch.save(own.fill(own.karlo_decoder(32, (1, 1, 2), 1, (4,), clip=64, words=64, context=24)), "decoder.ckpt")
    torch.save({"state_dict": own.fill(own.karlo_upsampler(32, (1, 2), 1))}, "sr.ckpt")
    families = ["--as", "karlo-decoder", "karlo-up256"]
    assert not main(["import", "decoder.ckpt", "sr.ckpt", *families, "--out", "karlo", "--clip", clip])
    few = ["--model", "karlo", "--stage", "base:steps=2", "--stage", "up256:steps=3", "--out", "out"]
    assert not main(["compose", "--caption", "a red cube", *few])
    with Image.open("out/compose_seed0.png") as image:
        assert image.size == (256, 256)


# Two networks of ours


def unet():
    return UNet(3, 32, (1, 2), 1, (2,), head_dim=32, vector_dim=64, token_dim=16, spatial_dim=2)


def test_each_row_is_read_by_the_network_of_its_noise_level():
    torch.manual_seed(0)
    high, low = unet(), unet()
    for network in (high, low):
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.08)
    both = Experts(high, low, 0.5)
    assert (both.vector_dim, both.token_dim, both.spatial_dim, both.stride) == (64, 16, 2, 2)
    x, level = torch.randn(4, 3, 8, 8), torch.tensor([0.1, 0.5, 0.9, 0.49])
    cond = Conditioning(
        vector=torch.randn(4, 64),
        tokens=torch.randn(4, 5, 16),
        token_mask=torch.rand(4, 5) < 0.5,
        spatial=torch.randn(4, 2, 8, 8),
    )
    found = both(x, level, both.prepare(cond))
    for i, network in enumerate((low, high, high, low)):
        one = cond.change(itemgetter(slice(i, i + 1)))
        torch.testing.assert_close(found[i : i + 1], network(x[i : i + 1], level[i : i + 1], one))
    torch.testing.assert_close(both(x, level * 0, cond), low(x, level * 0, cond))
    found.sum().backward()
    assert all(parameter.grad is not None for parameter in both.parameters())
    assert len(both.inner_convolutions()) == 2 * len(high.inner_convolutions())
    both.checkpointing = True
    assert high.checkpointing and low.checkpointing


def test_networks_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match="same ports"):
        Experts(unet(), UNet(width=32, multipliers=(1,), blocks=1, attention=(), vector_dim=64), 0.5)
    with pytest.raises(ValueError, match="border in"):
        Experts(unet(), unet(), 1.5)
