"""Against packages of the authors' code, where they are: ``pip install --no-deps guided-diffusion-sdk dall-e``."""

import sys
from types import ModuleType

import pytest
import torch
from torch.nn import functional as F

from composer.cascade.stage import Stage
from composer.networks.dvae import DVAE
from composer.published import FAMILIES, Needs, import_model
from composer.published.engine import convert

PLAN = {
    "image_size": 16,
    "in_channels": 3,
    "model_channels": 32,
    "out_channels": 6,
    "num_res_blocks": 1,
    "channel_mult": (1, 2),
    "use_scale_shift_norm": True,
    "resblock_updown": True,
}
HEADS = {"num_head_channels": 32}
NETWORKS = {
    "adm-64": {"attention_resolutions": (2,), **HEADS, "num_classes": 10, "use_new_attention_order": True},
    "adm-128": {"attention_resolutions": (1, 2), "num_heads": 4, "num_classes": 10},
    "adm-256": {"attention_resolutions": (2,), **HEADS, "num_classes": 10},
    "adm-256-uncond": {"attention_resolutions": (2,), **HEADS},
    "adm-512": {
        "attention_resolutions": (4,),
        **HEADS,
        "channel_mult": (0.5, 1, 1),
        "model_channels": 64,
        "num_classes": 10,
    },
    "adm-up256": {"attention_resolutions": (2,), "num_heads": 4, "num_classes": 10},
    "adm-up512": {"attention_resolutions": (2,), **HEADS, "num_classes": 10},
}


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_adm_is_guided_diffusions(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "blobfile", ModuleType("blobfile"))  # it reads clouds
    unet = pytest.importorskip("guided_diffusion.unet")
    enlarges, plan = "-up" in name, PLAN | NETWORKS[name]
    theirs = (unet.SuperResModel if enlarges else unet.UNetModel)(**plan).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.08)
    family = FAMILIES[name]
    spec = family.configure(theirs.state_dict(), 16, Needs())["stages"][0]
    if "num_head_channels" in plan:
        spec["denoiser"]["init_args"]["network"]["init_args"]["head_dim"] = 32
    stage = Stage.from_spec(spec)
    rows = family.rows(stage.weights(), Needs())
    stage.weights().load_state_dict(convert(rows, theirs.state_dict(), stage.weights().state_dict()).tensors)
    x, t, y, low = torch.randn(2, 3, 16, 16), torch.tensor([3.0, 712.0]), torch.tensor([3, 8]), torch.randn(2, 3, 4, 4)
    given = ({"y": y} if "num_classes" in plan else {}) | ({"low_res": low} if enlarges else {})
    reps = {"label": y[:, None]} if "num_classes" in plan else {}
    reps |= {"low_res": F.pad(low, (0, 0, 0, 0, 0, 1))} if enlarges else {}
    found = stage.denoiser.network(x, t / 1000, stage.encode(reps, (16, 16)))
    assert (found - theirs(x, t, **given)[:, :3]).abs().max() < 1e-6 < found.std()


@torch.no_grad()
def test_the_dvae_is_dall_es(tmp_path):
    encoder = pytest.importorskip("dall_e.encoder").Encoder(n_hid=16, vocab_size=64, device=torch.device("cpu"))
    decoder = pytest.importorskip("dall_e.decoder").Decoder(n_init=8, n_hid=16, vocab_size=64)
    files = [tmp_path / "encoder.pkl", tmp_path / "decoder.pkl"]
    for half, file in zip((encoder, decoder), files, strict=True):
        torch.save(half, file)
    import_model({"dvae": files}, tmp_path / "dvae")
    ours, image = DVAE.load(tmp_path / "dvae"), torch.rand(1, 3, 32, 32)
    logits = encoder(image)
    codes = F.one_hot(logits.argmax(1), 64).permute(0, 3, 1, 2).float()
    assert (ours.encoder(image) - logits).abs().max() < 1e-6 < logits.std()
    assert (ours.decoder(codes) - decoder(codes)).abs().max() < 1e-6
