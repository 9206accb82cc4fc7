import pytest
import torch
from skimage import data
from torch.nn import functional as F

from decomposers import DexiNed, Sketch


def photographs(side):
    pictures = [torch.from_numpy(picture).permute(2, 0, 1)[None] for picture in (data.chelsea(), data.coffee())]
    return torch.cat([F.interpolate(p[..., :300, :300] / 127.5 - 1, (side, side), mode="area") for p in pictures])


def circles(side, radius=0.3):
    """A dark ring, and a disc that differs from its ground in hue but not in luma; how far their edge is, in pixels."""
    axis = (torch.arange(side) + 0.5) / side - 0.5
    beyond = ((axis[:, None] ** 2 + axis**2).sqrt() - radius) * side
    ring = (0.4 - 1.2 * (1.5 - beyond.abs()).clamp(0, 1)).expand(3, side, side)
    disc = (0.5 - beyond).clamp(0, 1) * torch.tensor([0.7152, -0.2126, 0.0])[:, None, None]
    return torch.stack([ring, disc]), beyond.abs()


@pytest.mark.parametrize("side", [48, 64, 200])
def test_draws_the_outline_and_nothing_else(side):
    image, away = circles(side)
    lines = Sketch()({"image": image})
    assert lines.shape == (2, 1, side, side) and lines.min() >= 0 and lines.max() <= 1
    for drawing in lines:
        reached = F.max_pool2d(drawing, 5, 1, 2)[0]
        assert reached[away < 0.5].min() > 0.4  # whole
        assert drawing[0, away > 5].max() == 0  # clean


def test_thin_lines_are_thin_and_long():
    lines = Sketch()({"image": photographs(256)})
    for drawing in (lines[:, 0] > 0.5).float():
        assert 0.01 < drawing.mean() < 0.2
        inside = F.avg_pool2d(drawing[None, None], 7, 1)
        assert (inside > 0.95).float().mean() < 1e-3  # no blots
    dot = torch.zeros(1, 3, 160, 160)
    dot[:, :, 80, 80] = -1
    assert Sketch()({"image": dot}).max() == 0


def test_flat_and_faint_images_leave_the_paper_blank():
    noise = 0.3 + 0.01 * torch.randn(1, 3, 64, 64)
    for image in (torch.full((1, 3, 160, 96), 0.7), noise):
        assert Sketch()({"image": image}).max() == 0
    assert Sketch(detail=20.0)({"image": noise}).max() > 0


@pytest.mark.parametrize("side", [64, 160])
def test_turning_the_image_turns_the_sketch(side):
    image = photographs(side)
    lines = Sketch()({"image": image})
    turned = Sketch()({"image": image.rot90(1, (2, 3))}).rot90(-1, (2, 3))
    mirrored = Sketch()({"image": image.flip(3)}).flip(3)
    for other in (turned, mirrored):
        assert ((lines - other).abs() > 0.05).float().mean() < 0.01


def test_preview_is_dark_on_white():
    lines = torch.tensor([0.0, 0.5, 1.0]).view(1, 1, 1, 3)
    assert torch.equal(Sketch().preview(lines), torch.tensor([1.0, 0.0, -1.0]).expand(1, 3, 1, 3))


@pytest.mark.parametrize("side", [64, 256])
def test_distance_forgives_a_pixel_and_nothing_more(side):
    sketch = Sketch()
    one, other = sketch({"image": photographs(side)})[:, None]
    blank = torch.zeros_like(one)
    assert sketch.distance(one, one).item() == sketch.distance(blank, blank).item() == 0
    near = [sketch.distance(one, one.roll(shift, 3)).item() for shift in (1, 2, 4)]
    assert near == sorted(near) and near[0] < 0.1 < near[2]
    assert sketch.distance(one, other).item() == pytest.approx(1, abs=0.2)
    assert sketch.distance(one, blank).item() == pytest.approx(1, abs=1e-6)


@pytest.fixture(scope="module")
def network():
    """kornia's detector with random weights: the network that it runs and all it does around it."""
    from kornia.contrib import EdgeDetectorBuilder

    return EdgeDetectorBuilder.build(pretrained=False).model.eval()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_dexined_agrees_with_kornia(network, suffix, tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(network[1].state_dict(), path)
    image = photographs(64)
    dexined = DexiNed(str(path))
    with torch.no_grad():
        expected = network(image / 2 + 0.5)
    lines = dexined({"image": image})
    assert expected.std() > 0.01
    torch.testing.assert_close(lines, expected, atol=1e-4, rtol=0)
    assert dexined.distance(lines, lines).eq(0).all() and dexined.preview(lines).shape == (2, 3, 64, 64)
    assert not any(parameter.requires_grad for parameter in dexined.parameters())


def test_dexined_says_what_is_wrong_with_its_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match="DexiNed needs weights of DexiNed"):
        DexiNed(str(tmp_path / "missing.pth"))
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="expected kornia's weights"):
        DexiNed(str(tmp_path / "other.pth"))
