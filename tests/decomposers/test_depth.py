"""Depth through transformers, on tiny networks in the true layout."""

import json

import pytest
import torch
from torch.nn import functional as F

from composer.decomposition import robust_normalise
from decomposers import Depth

transformers = pytest.importorskip("transformers")

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def save(network, folder, mean=MEAN, std=STD):
    network.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": mean, "image_std": std}))
    return str(folder)


def depth_anything(**changes):
    backbone = transformers.Dinov2Config(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
        mlp_ratio=2,
        out_indices=[1, 2, 3, 4],
        apply_layernorm=True,
        reshape_hidden_states=False,
    )
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=32,
        neck_hidden_sizes=[8, 16, 32, 32],
        fusion_hidden_size=16,
        head_hidden_size=8,
        patch_size=14,
        **changes,
    )
    return alive(transformers.DepthAnythingForDepthEstimation(config))


def dpt():
    config = transformers.DPTConfig(
        image_size=64,
        patch_size=8,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=64,
        neck_hidden_sizes=[8, 16, 32, 32],
        fusion_hidden_size=16,
        backbone_out_indices=[0, 1, 2, 3],
        reassemble_factors=[4, 2, 1, 0.5],
        readout_type="project",
    )
    return alive(transformers.DPTForDepthEstimation(config))


def alive(network):
    """Keeps the random head's last ReLU above zero, so that depth varies."""
    with torch.no_grad():
        for parameter in network.head.parameters():
            parameter.normal_(0, 0.3)
        [p for p in network.head.parameters() if p.ndim == 1][-1].fill_(5.0)
    return network.eval()


def test_depth_anything_is_fed_as_it_was_trained(tmp_path, batch):
    """At the network's own size, in its own statistics, it is the network's answer normalised."""
    network = depth_anything()
    image = F.interpolate(batch["image"], (56, 84), mode="bilinear")
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    with torch.no_grad():
        inverse = network(pixel_values=(image / 2 + 0.5 - mean) / std).predicted_depth[:, None]
    depth = Depth(save(network, tmp_path), size=56)({"image": image})
    assert inverse.shape == (2, 1, 56, 84) and inverse.flatten(1).std(1).min() > 0
    torch.testing.assert_close(depth, robust_normalise(inverse), atol=1e-4, rtol=0)
    assert depth.amax((1, 2, 3)).tolist() == [1, 1] and depth.amin((1, 2, 3)).tolist() == [0, 0]


def test_dpt_sees_squares(tmp_path, batch):
    decomposer = Depth(save(dpt(), tmp_path, [0.5] * 3, [0.5] * 3), size=60)
    assert decomposer.input_size(30, 90) == (64, 64)
    image = batch["image"][:, :, :, :20]
    depth = decomposer({"image": image})
    assert depth.shape == (2, 1, 32, 20) and depth.dtype == torch.float32
    # Statistics of 0.5 leave [-1, 1] as it is.
    seen = F.interpolate(image, (64, 64), mode="bicubic", antialias=True).clamp(-1, 1)
    with torch.no_grad():
        inverse = decomposer.network(pixel_values=seen).predicted_depth[:, None]
    expected = robust_normalise(F.interpolate(inverse, (32, 20), mode="bilinear", antialias=True))
    torch.testing.assert_close(depth, expected)


def test_the_input_keeps_its_proportions_in_whole_patches(tmp_path):
    decomposer = Depth(save(depth_anything(), tmp_path), size=252)
    assert decomposer.input_size(64, 64) == (252, 252)
    assert decomposer.input_size(480, 640) == (252, 336)
    assert decomposer.input_size(1000, 10) == (25200, 252)


def test_a_row_depends_on_its_image_alone(tmp_path, batch):
    decomposer = Depth(save(depth_anything(), tmp_path), size=56)
    both, second = decomposer(batch), decomposer({"image": batch["image"][1:]})
    torch.testing.assert_close(both[1:], second, atol=1e-5, rtol=0)
    assert (both[0] - both[1]).abs().max() > 2e-3


def test_distance_and_preview(tmp_path):
    decomposer = Depth(save(depth_anything(), tmp_path), size=28)
    ramp = torch.linspace(0, 1, 8).expand(2, 1, 8, 8)
    assert decomposer.distance(ramp, ramp).tolist() == [0, 0]
    assert decomposer.distance(ramp, ramp * 0.5) == pytest.approx([0.25, 0.25])
    picture = decomposer.preview(ramp)
    assert picture.shape == (2, 3, 8, 8) and picture[0, :, 0, 0].tolist() == [-1] * 3 and picture.max() == 1


def test_depth_refuses_metres_and_says_what_is_missing(tmp_path):
    (tmp_path / "metric").mkdir()
    metric = depth_anything(depth_estimation_type="metric", max_depth=20)
    with pytest.raises(ValueError, match=r"relative depth, found depth_anything \(metric\)"):
        Depth(save(metric, tmp_path / "metric"))
    with pytest.raises(FileNotFoundError, match="Depth needs weights of a depth network"):
        Depth(str(tmp_path / "absent"))
    (tmp_path / "metric" / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"Depth needs model\.safetensors"):
        Depth(str(tmp_path / "metric"))
