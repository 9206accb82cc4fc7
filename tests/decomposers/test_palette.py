import json
import time
from functools import cache

import numpy as np
import pytest
import torch
from skimage import data
from skimage.color import hsv2rgb, rgb2lab

from decomposers import Palette
from decomposers import palette as module

HUES = [0, 0.0833, 0.166, 0.25, 0.333, 0.5, 0.56333, 0.666, 0.73, 0.803, 0.916]


def reference_code(saturations=5, lights=4):
    """The code of colours, written down tone by tone; RGB and Lab."""
    tones = [(s / (saturations + 1), 1.0) for s in range(1, saturations + 1)] + [(1.0, 1.0)]
    dark = [1 - 0.8 * i / (lights + 1) for i in range(1, lights + 1)]
    tones += [(1.0, v) for v in dark] + [(0.4, v) for v in dark[:-1]]
    rgb = hsv2rgb(np.array([[(hue, s, v) for s, v in tones] for hue in HUES])).reshape(-1, 3)
    rgb = np.concatenate([rgb, np.linspace(1, 0, len(tones))[:, None].repeat(3, 1)])
    return rgb, rgb2lab(rgb[None])[0]


def reference(picture, sigma=10.0, **code):
    """The palette of an 8-bit picture by scikit-image and all distances."""
    lab_code = reference_code(**code)[1]
    picture = picture[:: picture.shape[0] // 241 + 1, :: picture.shape[1] // 241 + 1]
    lab = rgb2lab(picture).reshape(-1, 1, 3)
    nearest = np.concatenate([((part - lab_code) ** 2).sum(-1).argmin(1) for part in np.array_split(lab, 20)])
    shares = np.bincount(nearest, minlength=len(lab_code)) / len(lab)
    weights = np.exp(-((lab_code[:, None] - lab_code) ** 2).sum(-1) / (2 * sigma**2))
    smooth = (weights / weights.sum(1, keepdims=True)) @ shares
    return np.where(smooth < 1e-5, 0, smooth)


def to_image(*pictures):
    return torch.stack([torch.from_numpy(picture).permute(2, 0, 1) for picture in pictures]) / 127.5 - 1


def solid(*colours):
    return torch.tensor(colours).view(-1, 3, 1, 1).expand(-1, -1, 8, 8) / 127.5 - 1


@pytest.mark.parametrize(
    ("lights", "expected"),
    [
        (4, [(5, 0.9371, 0.5982, 7), (143, 0.9719, 0.2604, 31), (149, 1.1059, 0.2643, 54)]),
        (5, [(5, 0.9177, None, None), (165, 0.9671, None, None), (172, 1.0962, None, None)]),
    ],
)
def test_solid_colours_have_the_published_codes(lights, expected):
    # Computed from rayleigh's construction with numpy and scikit-image: code, sum, largest share, colours in use.
    palettes = Palette(lights=lights)({"image": solid((255, 0, 0), (255, 255, 255), (128, 128, 128))})
    assert palettes.shape == (3, 12 * (5 + 2 * lights))
    for palette, (code, total, largest, used) in zip(palettes, expected, strict=True):
        assert palette.argmax() == code
        assert palette.sum().item() == pytest.approx(total, abs=1e-4)
        if largest is not None:
            assert palette.max().item() == pytest.approx(largest, abs=1e-4)
            assert (palette > 0).sum() == used


@pytest.mark.parametrize("crop", [(64, 64), (200, 150), (300, 451)])
def test_agrees_with_all_distances(crop):
    # The last size is thinned out to every second pixel.
    pictures = [np.ascontiguousarray(picture[: crop[0], : crop[1]]) for picture in (data.chelsea(), data.coffee())]
    palettes = Palette()({"image": to_image(*pictures)})
    for palette, picture in zip(palettes, pictures, strict=True):
        assert np.abs(palette.numpy() - reference(picture)).max() < 1e-6


def test_agrees_on_every_part_of_the_cube():
    noise = np.random.default_rng(0).integers(0, 256, (100, 200, 3), dtype=np.uint8)
    for code in ({}, {"lights": 5}):
        assert np.abs(Palette(**code)({"image": to_image(noise)})[0].numpy() - reference(noise, **code)).max() < 1e-6


def test_the_table_that_comes_along_is_the_computed_one():
    """But for colours that lie as near to one as to the other, which another processor may round otherwise."""
    kept, computed = module._table(*module.USUAL, torch.device("cpu")), module.compute_table(*module.USUAL)
    assert kept.shape == computed.shape == (256**3,) and kept.dtype == torch.uint8
    differ = (kept != computed).nonzero()[:, 0]
    assert len(differ) < 1000
    rgb = torch.stack([differ >> 16, (differ >> 8) & 255, differ & 255], 1) / 255
    lab, code = rgb2lab(rgb.double().numpy()[None])[0], reference_code()[1]
    far = [np.linalg.norm(lab - code[table[differ]], axis=-1) for table in (kept, computed)]
    np.testing.assert_allclose(far[0], far[1], atol=1e-3)


def test_the_table_is_made_anew_by_one_command(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TABLE", tmp_path / "palette.xz")
    monkeypatch.setattr(module, "USUAL", (2, 1, 1))
    monkeypatch.setattr(module, "compute_table", cache(module.compute_table))
    module.write_table()
    module._table.cache_clear()
    assert torch.equal(module._table(2, 1, 1, torch.device("cpu")), module.compute_table(2, 1, 1))
    module._table.cache_clear()


def test_instances_share_a_table_that_no_checkpoint_holds(batch):
    assert not Palette().state_dict()
    Palette()(batch)
    start = time.perf_counter()
    Palette()(batch)
    assert time.perf_counter() - start < 0.3


def test_palettes_that_people_give():
    palette = Palette()
    written = palette.from_colours({"#ff0000": 3.0, "#FFFFFF": 1.0})
    seen = palette({"image": solid((255, 0, 0), (255, 0, 0), (255, 0, 0), (255, 255, 255))}).mean(0, keepdim=True)
    torch.testing.assert_close(written, seen, atol=2e-5, rtol=0)
    torch.testing.assert_close(palette.from_text("#ff0000 0.75, #ffffff: .25"), written)
    torch.testing.assert_close(palette.from_text("#ff0000,#ffffff,#ff0000 2"), written)


@pytest.mark.parametrize("colours", [{"red": 1.0}, {"#ff00": 1.0}, {"#ff0000": -1.0}, {"#ff0000": 0.0}, {}])
def test_refuses_what_is_no_palette(colours):
    with pytest.raises(ValueError, match="expected"):
        Palette().from_colours(colours)
    with pytest.raises(ValueError, match="expected"):
        Palette().from_text(json.dumps(colours))


def test_preview_shows_the_main_colours_by_share():
    palette = Palette()
    value = torch.zeros(2, 156)
    value[0, 5], value[0, 143], value[1, 155] = 0.25, 0.75, 0.1  # red and white; black
    shown = palette.preview(value)
    assert shown.shape == (2, 3, 64, 64)
    assert torch.equal(shown[0, :, :, :48], torch.ones(3, 64, 48))
    red = torch.tensor([1.0, -1, -1])[:, None, None].expand(3, 64, 16)
    torch.testing.assert_close(shown[0, :, :, 48:], red)
    assert torch.equal(shown[1], -torch.ones(3, 64, 64))
    assert torch.equal(palette.preview(torch.zeros(1, 156)), torch.ones(1, 3, 64, 64))


def test_distance_grows_with_the_difference():
    palette = Palette()
    red, reddish, blue = palette({"image": solid((255, 0, 0), (255, 40, 30), (0, 0, 255))})[:, None]
    half = (red / red.sum() + blue / blue.sum()) / 2
    assert palette.distance(red, red).item() == 0
    assert palette.distance(red, blue).item() > 0.99
    assert palette.distance(red, half).item() == pytest.approx(0.5, abs=0.01)
    assert palette.distance(red, 3 * red).item() == pytest.approx(0, abs=1e-6)
    assert 0 <= palette.distance(red, reddish).item() < 0.5


def test_refuses_codes_that_do_not_fit():
    for wrong in ({"hues": 0}, {"sigma": 0.0}, {"hues": 30}):
        with pytest.raises(ValueError, match="256 colours"):
            Palette(**wrong)
