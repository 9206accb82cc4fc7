"""Libraries that took the place of code of ours give what it gave; what stayed agrees with theirs."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from skimage import color, data, measure
from torch.nn import functional as F

from composer.cascade.degradation import _blurred
from composer.cascade.low_res import GaussianBlur
from composer.images.reading import fit
from composer.images.sheet import from_pil
from composer.scenes.reader import without_flecks
from composer.tasks.editing import feather
from decomposers import Palette, sketch
from decomposers.instances import hue_to_rgb
from decomposers.palette import _lab


@pytest.fixture(scope="module", params=["photograph", "noise"])
def x(request):
    """One picture in [-1, 1], (1 3 96 80)."""
    if request.param == "noise":
        return torch.rand(1, 3, 96, 80, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return from_pil(Image.fromarray(data.astronaut()[40:136, 180:260]))[None]


def test_kornias_lab_is_scikit_images(x):
    rgb = (x / 2 + 0.5).flatten(2).mT
    wanted = color.rgb2lab(rgb.double().numpy())
    np.testing.assert_allclose(_lab(rgb.double()), wanted, atol=1e-9)
    np.testing.assert_allclose(_lab(rgb), wanted, atol=2e-4)


def test_the_palettes_loss_has_a_finite_gradient_at_black_and_white():
    image = torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 8, 8).clone().requires_grad_()
    palette = Palette()
    palette.loss(palette({"image": image.detach().flip(0)}), {"image": image}).sum().backward()
    assert image.grad is not None and image.grad.isfinite().all()


@pytest.mark.parametrize("radius", [0, 1, 2, 7])
def test_softening_counts_erosions(radius):
    noisy = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(60, 70)), 6) > 0
    noisy[-4:] = True  # up to the picture's edge, where nothing is eroded
    eroded = [ndimage.binary_erosion(noisy, np.ones((3, 3)), i, border_value=1) for i in range(1, radius + 1)]
    wanted = (noisy + sum(map(np.float32, eroded))) / (radius + 1)
    got = feather(torch.from_numpy(noisy)[None, None].float(), radius)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got[0, 0], wanted, atol=1e-7)
    for flat in (torch.zeros(1, 1, 4, 5), torch.ones(1, 1, 4, 5)):
        assert torch.equal(feather(flat, radius), flat)


def test_long_lines_are_those_of_scikit_images_regions():
    ink = torch.from_numpy(ndimage.gaussian_filter(np.random.default_rng(0).random((2, 1, 60, 70)), (0, 0, 1, 1)))
    ink = ((ink - ink.mean()) * 3).clamp(0, 1).float()
    assert (ink > sketch.SURE).any()
    for drawing, kept in zip(ink[:, 0].numpy(), sketch._long_lines(ink, 12)[:, 0], strict=True):
        wanted = np.zeros(drawing.shape, bool)
        for line in measure.regionprops(measure.label(drawing > sketch.FAINTEST, connectivity=2), drawing):
            if line.area >= 12 and line.intensity_max > sketch.SURE:
                wanted[tuple(line.coords.T)] = True
        assert wanted.any() and (wanted != (drawing > sketch.FAINTEST)).any()
        np.testing.assert_array_equal(kept, wanted)


def test_blurs_agree_with_kornia_and_opencv(x):
    from kornia.filters import filter2d_separable, gaussian_blur2d

    line = torch.tensor([sketch._gaussian(2.0)])
    torch.testing.assert_close(sketch._blur(x, 2.0), filter2d_separable(x, line, line, "replicate"), atol=1e-6, rtol=0)
    unclip = GaussianBlur().corrupt(x, torch.ones(1), [0])
    torch.testing.assert_close(unclip, gaussian_blur2d(x, 3, (0.6, 0.6), "replicate"), atol=1e-6, rtol=0)
    round_ = _blurred(x, 1.4, 1.4, 0.3)
    torch.testing.assert_close(round_, gaussian_blur2d(x, 11, (1.4, 1.4), "replicate"), atol=1e-5, rtol=0)
    cv2 = pytest.importorskip("cv2")
    picture = np.ascontiguousarray(x[0].permute(1, 2, 0).numpy())
    theirs = cv2.GaussianBlur(picture, (11, 11), 1.4, borderType=cv2.BORDER_REPLICATE)
    np.testing.assert_allclose(round_[0].permute(1, 2, 0), theirs, atol=1e-5)


def test_reading_beside_a_pixel_is_scipys(x):
    grey, offset = x[:, :1].contiguous(), torch.randn(1, 2, 96, 80, generator=torch.Generator().manual_seed(0))
    rows, columns = np.mgrid[:96, :80]
    for sign, got in zip((1, -1), sketch._sides(grey, offset)[0], strict=True):
        at = [rows + sign * offset[0, 1].numpy(), columns + sign * offset[0, 0].numpy()]
        wanted = ndimage.map_coordinates(grey[0, 0].numpy(), at, order=1, mode="nearest")
        np.testing.assert_allclose(got, wanted, atol=1e-4)


def test_resizing_is_torchvisions(x):
    from torchvision.transforms.v2.functional import InterpolationMode, resize

    theirs = resize(x, [24, 20], InterpolationMode.BICUBIC, antialias=True).clamp(-1, 1)
    assert torch.equal(fit(x, (24, 20)), theirs)


def test_hues_are_kornias_and_scikit_images():
    from kornia.color import hsv_to_rgb

    hue = torch.arange(0, 1, 1 / 512)[None, None]
    hsv = F.pad(hue[:, None], (0, 0, 0, 0, 0, 2), value=1)
    wanted = color.hsv2rgb(hsv.movedim(1, -1).double().numpy())
    np.testing.assert_allclose(hue_to_rgb(hue).movedim(1, -1), wanted, atol=2e-6)
    turned = hsv * torch.tensor([2 * torch.pi, 1, 1])[:, None, None]
    torch.testing.assert_close(hue_to_rgb(hue), hsv_to_rgb(turned), atol=3e-6, rtol=0)


def test_flecks_are_those_of_opencvs_components():
    cv2 = pytest.importorskip("cv2")
    mask = np.random.default_rng(0).random((60, 70)) < 0.2
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    np.testing.assert_array_equal(without_flecks(mask), mask & (stats[:, cv2.CC_STAT_AREA] >= 4)[labels])
