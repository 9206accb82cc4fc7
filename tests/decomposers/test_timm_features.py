import pickle
import socket

import pytest
import timm
import torch
from safetensors.torch import save_file
from skimage import data
from torch.nn.functional import normalize
from torchvision.transforms.functional import to_pil_image

from composer import Kind
from composer.decomposition import Decomposition
from conditions import Vector
from decomposers import TimmFeatures

MODELS = ["test_vit.r160_in1k", "test_resnet.r160_in1k", "test_convnext.r160_in1k"]  # timm's smallest


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def write(model, path):
    torch.manual_seed(0)
    network = timm.create_model(model, pretrained=False).eval()
    for parameter in network.parameters():  # away from the start, so that pictures differ
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, path)
    return network


@pytest.fixture(scope="module", params=MODELS)
def pair(request, tmp_path_factory):
    """timm's network with its classifier, and the decomposer that reads its file."""
    path = tmp_path_factory.mktemp("timm") / "model.safetensors"
    return write(request.param, path), TimmFeatures(request.param, str(path))


@torch.no_grad()
def pooled(network, x):
    """Features before the classifier, by the network that still has one, scaled by hand."""
    features = network.forward_head(network.forward_features(x), pre_logits=True)
    return normalize(features, dim=1) * features.shape[1] ** 0.5


def test_features_are_timms(pair):
    """At 168 pixels timm only crops, to 160: no resizing differs."""
    network, features = pair
    image = torch.rand(2, 3, 168, 168, generator=torch.Generator().manual_seed(0)) * 2 - 1
    facts = timm.data.resolve_model_data_config(network)
    mean, std = (torch.tensor(facts[name]).view(3, 1, 1) for name in ("mean", "std"))
    assert facts["input_size"] == (3, 160, 160) and int(160 / facts["crop_pct"]) == 168
    expected = pooled(network, (image[..., 4:-4, 4:-4] / 2 + 0.5 - mean) / std)
    got = features({"image": image})
    torch.testing.assert_close(got, expected)
    assert (got[0] - got[1]).abs().max() > 0.01
    torch.testing.assert_close(got.square().mean(1), torch.ones(2))


@pytest.mark.parametrize("shape", [(240, 300), (96, 80)])
def test_pictures_are_prepared_as_timm_prepares_them(pair, shape):
    network, features = pair
    image = torch.from_numpy(data.chelsea()[: shape[0], : shape[1]].copy()).permute(2, 0, 1)[None] / 127.5 - 1
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
    expected = transform(to_pil_image((image[0] + 1) / 2))[None]
    seen = []
    with features.network.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs)):
        features({"image": image})
    assert (seen[0] - expected).abs().max() < 0.02  # of 255 levels 2.5: 8 bits after resizing there, none here


def test_features_are_frozen_and_give_images_a_gradient(pair):
    _, features = pair
    image = torch.rand(1, 3, 64, 64, requires_grad=True)
    wanted = features({"image": torch.rand(1, 3, 64, 64)}).detach()
    features.loss(wanted, {"image": image}).sum().backward()
    assert image.grad.abs().max() > 0
    assert not any(parameter.requires_grad for parameter in features.parameters())
    assert not any(module.training for module in features.network.modules())


def test_distance_preview_and_what_lies_between(pair):
    _, features = pair
    a, b = torch.eye(4)[:2] * 2
    rows = torch.stack([a, a, a]), torch.stack([a, b, -a])
    assert features.distance(*rows).tolist() == [0, 1, 2]
    torch.testing.assert_close(features.interpolate(a[None], b[None], 0.5), (a + b)[None] / 2**0.5)
    picture = features.preview(rows[1])
    assert picture.shape[:2] == (3, 3) and picture.abs().max() <= 1 and not torch.equal(picture[0], picture[1])
    assert features.kind is Kind.APPEARANCE


def test_a_condition_reads_them(pair):
    _, features = pair
    value = Decomposition({"features": features})({"image": torch.rand(2, 3, 64, 64)})["features"]
    read = Vector(value.shape[1], vector_dim=8, token_dim=8)(value, torch.tensor([True, False]), (8, 8))
    assert read.vector[0].abs().max() > 0 and read.vector[1].eq(0).all()


class Harm:
    def __reduce__(self):
        return print, ("run",)


def test_what_is_wrong_with_name_or_weights_is_said(tmp_path, capsys):
    path = tmp_path / "model.safetensors"
    write(MODELS[0], path)
    for model in ("hf-hub:timm/resnet18", "local-dir:.", "resnet18.a:b/c", "resnet_18"):
        with pytest.raises(ValueError, match=f"timm knows no model '{model}'"):
            TimmFeatures(model, str(path))
    with pytest.raises(ValueError, match="did you mean resnet18"):
        TimmFeatures("resnet_18", str(path))
    for model in (MODELS[1], "test_vit.unknown_tag"):
        with pytest.raises(ValueError, match=f"are not {model}'s"):
            TimmFeatures(model, str(path))
    with pytest.raises(FileNotFoundError, match=r"TimmFeatures needs timm's weights of test_vit\.r160_in1k"):
        TimmFeatures(MODELS[0], str(tmp_path / "absent.safetensors"))
    with pytest.raises(ValueError, match="found a folder"):
        TimmFeatures(MODELS[0], str(tmp_path))
    save_file({}, tmp_path / "empty.safetensors")
    with pytest.raises(ValueError, match=r"larger than its weights|are not test_vit"):
        TimmFeatures(MODELS[0], str(tmp_path / "empty.safetensors"))
    with pytest.raises(ValueError, match="larger than its weights"):
        TimmFeatures("vit_small_patch16_224.augreg_in1k", str(path))
    (tmp_path / "harm.pth").write_bytes(pickle.dumps(Harm(), protocol=2))
    with pytest.raises(ValueError, match="is refused"):
        TimmFeatures(MODELS[0], str(tmp_path / "harm.pth"))
    assert "run" not in capsys.readouterr().out


def test_a_network_that_pads_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    write(MODELS[0], path)
    monkeypatch.setattr(timm.data, "resolve_model_data_config", lambda _: {"crop_mode": "border"})
    with pytest.raises(ValueError, match="pads images, which is not supported"):
        TimmFeatures(MODELS[0], str(path))
