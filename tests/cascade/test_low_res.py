"""The degradation of small images: a function of the row's seed, of a strength that the level scales."""

import io
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from PIL import Image
from scipy import ndimage

import conditions  # noqa: F401 (short names in the YAMLs)
import decomposers  # noqa: F401
from composer import Degradation
from composer.cascade.degradation import _blurred
from composer.cascade.low_res import Corruption, LowRes
from composer.images.sheet import from_pil, to_pil
from composer.storage.building import build
from composer.training.cli import ModelAlone


@pytest.fixture
def image():
    """Images with the spectrum of photographs (1/f), mostly grey, 48 x 40."""
    y, x = torch.meshgrid(torch.fft.fftfreq(48), torch.fft.fftfreq(40), indexing="ij")
    spectrum = torch.fft.fft2(torch.randn(2, 3, 48, 40)) / (y**2 + x**2).sqrt().clamp(min=1 / 48)
    field = torch.fft.ifft2(spectrum).real
    field = field[:, :1] + 0.2 * field
    return (field / (3 * field.std())).clamp(-1, 1)


def at(level, n=2):
    return torch.full((n,), float(level))


def test_a_row_depends_on_its_own_seed_alone(image):
    both = Degradation().corrupt(image, at(1), [3, 4])
    assert both.shape == image.shape and both.dtype == image.dtype
    alone = Degradation().corrupt(image[1:], at(1, 1), [4])
    assert torch.equal(both[1:], alone)
    assert not torch.equal(alone, Degradation().corrupt(image[1:], at(1, 1), [5]))
    before = torch.get_rng_state()
    Degradation().corrupt(image, at(1), [3, 4])
    assert torch.equal(before, torch.get_rng_state()), "no global state"


def test_level_0_is_exactly_the_image_and_more_is_worse(image):
    mixed = Degradation().corrupt(image, torch.tensor([0.0, 1.0]), [1, 1])
    assert torch.equal(mixed[0], image[0]) and not torch.equal(mixed[1], image[1])
    strong = Degradation(noise=25, quality=30)
    seeds = range(16)
    many = image[:1].expand(16, -1, -1, -1)
    errors = [(strong.corrupt(many, at(x, 16), seeds) - many).square().mean() for x in (0.01, 0.1, 0.3, 0.6, 1.0)]
    assert errors[0].sqrt() < 2 / 127.5, "next to nothing near 0: about one 8-bit step"
    assert all(a < b for a, b in pairwise(errors))


def test_types_and_empty_batches_pass_through(image):
    half = Degradation().corrupt(image.bfloat16(), at(1).bfloat16(), [1, 2])
    assert half.dtype == torch.bfloat16
    assert Degradation().corrupt(image[:0], at(1, 0), []).shape == (0, 3, 48, 40)


def test_without_all_else_it_is_jpeg(image):
    """With one quality and no other strength, it is what Pillow makes of the image: compressed twice."""
    alone = Degradation(blur=0, shrink=1, noise=0, quality=95)
    for_pillow = image[0]
    for _ in range(2):
        file = io.BytesIO()
        to_pil(for_pillow).save(file, "JPEG", quality=95)
        for_pillow = from_pil(Image.open(file))
    assert torch.equal(alone.corrupt(image[:1], at(1, 1), [7])[0], for_pillow)


def test_the_blur_is_scipys(image):
    inner = (..., slice(10, -10), slice(10, -10))
    got = _blurred(image[:1], 1.4, 1.4, 0.3)
    wanted = torch.from_numpy(ndimage.gaussian_filter(image[:1].numpy(), (0, 0, 1.4, 1.4), truncate=4))
    torch.testing.assert_close(got[inner], wanted[inner], atol=5e-3, rtol=0)
    got = _blurred(image[:1], 1.5, 0.5, 0.0)  # along x
    wanted = torch.from_numpy(ndimage.gaussian_filter(image[:1].numpy(), (0, 0, 0.5, 1.5), truncate=6))
    torch.testing.assert_close(got[inner], wanted[inner], atol=5e-3, rtol=0)
    turned = _blurred(image[:1].transpose(2, 3), 1.5, 0.5, torch.pi / 2).transpose(2, 3)
    torch.testing.assert_close(turned, got, atol=1e-6, rtol=0)


def test_the_noise_has_its_strength_and_its_three_kinds():
    grey = torch.zeros(1, 3, 64, 64)
    kinds = set()
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        noise = Degradation(noise=25)._add_noise(grey, 1.0, generator)[0].flatten(1)
        assert noise.std() < 25 / 127.5 * 1.1
        correlation = noise.corrcoef()[0, 1]
        kinds.add("grey" if correlation > 0.999 else "independent" if abs(correlation) < 0.06 else "correlated")
    assert kinds == {"grey", "independent", "correlated"}


def test_the_order_is_drawn():
    """Noise before a blur is weaker than noise after it: over seeds both happen."""
    degradation, grey = Degradation(blur=3, shrink=1, noise=25, quality=95), torch.zeros(24, 3, 32, 32)
    out = degradation.corrupt(grey, at(1, 24), range(24))
    rough = (out.diff(dim=3).square().mean((1, 2, 3)) / out.var((1, 2, 3)).clamp(min=1e-9)).sqrt()
    assert rough.min() < 0.7 < 1.2 < rough.max()


def test_a_configuration_names_it(image):
    spec = {"class_path": "composer.Degradation", "init_args": {"noise": 25.0, "quality": 30}}
    low_res = build({"class_path": "composer.cascade.low_res.LowRes", "init_args": {"corruption": spec}}, LowRes)
    assert isinstance(low_res.corruption, Degradation) and issubclass(Degradation, Corruption)
    value = low_res({"image": image[..., :32, :32], "seed": torch.tensor([1, 2])})
    assert value.shape == (2, 4, 8, 8) and (value[:, 3] == 1).all(), "training is at full level"


def test_a_yaml_names_it_in_short(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["composer"])
    path = "configs/paper/composer_up1024.yaml"
    assert "corruption: Degradation\n" in Path(path).read_text()
    named = ModelAlone(["-c", path]).config.data.decomposers["low_res"].init_args.corruption
    spec = {"class_path": named.class_path, "init_args": named.init_args.as_dict()}
    assert isinstance(build(spec, Corruption), Degradation)


@pytest.mark.parametrize(
    "wrong", [{"blur": -1.0}, {"shrink": 0.5}, {"noise": -1.0}, {"quality": 0}, {"quality": 96}], ids=str
)
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        Degradation(**wrong)
