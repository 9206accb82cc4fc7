"""Intensity and mask, and what every decomposer without weights promises."""

import pytest
import torch
from torch.nn import functional as F

from composer.decomposition import Decomposition
from decomposers import Intensity, Mask, Palette, Sketch

ALL = {"intensity": Intensity, "mask": Mask, "palette": Palette, "sketch": Sketch}
BANDS = {"intensity": (1, -1, 1), "mask": (4, -1, 1), "palette": (156, 0, 1.2), "sketch": (1, 0, 1)}


def example(b=4, h=40, w=56):
    image = F.interpolate(torch.rand(b, 3, 5, 7), (h, w), mode="nearest") * 2 - 1
    return {"image": image, "seed": torch.arange(b) * 977 + 5}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("size", [(40, 56), (200, 144)])
def test_contract(name, size):
    decomposer, batch = ALL[name](), example(4, *size)
    value = decomposer(batch)
    channels, low, high = BANDS[name]
    assert value.shape[:2] == (4, channels) and value.dtype == torch.float32
    assert value.min() >= low and value.max() <= high
    for row in range(4):  # a row knows nothing of its batch
        alone = decomposer({key: column[row : row + 1] for key, column in batch.items()})
        torch.testing.assert_close(alone, value[row : row + 1], atol=1e-5, rtol=0)
    assert torch.equal(decomposer(batch), value)
    assert decomposer({key: column[:0] for key, column in batch.items()}).shape == (0, *value.shape[1:])
    preview = decomposer.preview(value)
    assert preview.shape[:2] == (4, 3) and preview.min() >= -1 and preview.max() <= 1
    assert decomposer.distance(value, value).eq(0).all()
    assert (decomposer.distance(value, value.roll(1, 0)) > 0.01).all()
    assert not list(decomposer.parameters()) and not decomposer.state_dict()


@pytest.mark.parametrize("name", ALL)
def test_dtype_follows_the_image(name):
    batch = example()
    value = ALL[name]()(batch)
    batch["image"] = batch["image"].double()
    double = ALL[name]()(batch)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), value, atol=1e-4, rtol=0)


def test_all_together_with_and_without_seed():
    decomposition = Decomposition({name: kind() for name, kind in ALL.items()})
    batch = example()
    assert decomposition(batch).keys() == ALL.keys()
    del batch["seed"]
    assert decomposition(batch).keys() == ALL.keys() - {"mask"}


def test_intensity_is_luma_without_a_seed():
    primaries = torch.eye(3)[:, :, None, None].expand(3, 3, 2, 2) * 2 - 1
    grey = Intensity()({"image": primaries})
    torch.testing.assert_close(grey[:, 0, 0, 0] / 2 + 0.5, torch.tensor([0.2126, 0.7152, 0.0722]))


def test_intensity_draws_every_weighting_equally_often():
    weights = torch.tensor(Intensity.WEIGHTS)
    torch.testing.assert_close(weights.sum(1), torch.ones(len(weights)))
    b = 300 * len(weights)
    image = torch.rand(1, 3, 1, 1).expand(b, -1, -1, -1) * 2 - 1
    grey = Intensity()({"image": image, "seed": torch.arange(b)}).flatten()
    seen = (grey[:, None] - weights @ image[0].flatten()).abs() < 1e-6
    assert seen.any(1).all()
    assert seen.sum(0).min() > 240 and seen.sum(0).max() < 360


def test_mask_keeps_all_but_the_region():
    batch = example(2, 8, 8)
    region = torch.zeros(2, 1, 8, 8)
    region[0, :, 2:4, 5:] = 1
    value = Mask()(batch | {"region": region})
    assert torch.equal(value[:, 3:], 1 - region)
    assert torch.equal(value[:, :3], batch["image"] * (1 - region))
    batch.pop("seed")
    assert torch.equal(Mask()(batch | {"region": region}), value)
    assert Mask().can_read(batch | {"region": region}) and not Mask().can_read(batch)
    with pytest.raises(ValueError, match=r"\(2, 1, 8, 8\), found \(2, 1, 4, 4\)"):
        Mask()(batch | {"region": torch.zeros(2, 1, 4, 4)})


def test_drawn_masks_vary_and_leave_something_to_do():
    batch = {"image": torch.zeros(500, 3, 64, 64), "seed": torch.arange(500)}
    kept = Mask()(batch)[:, 3].flatten(1)
    assert ((kept == 0) | (kept == 1)).all()
    share = kept.mean(1)
    assert share.min() > 0.05 and share.max() < 0.99 and 0.5 < share.mean() < 0.85
    assert len(kept.unique(dim=0)) == 500
    assert kept.mean(0).std() < 0.1  # no place is favoured much


def test_drawn_masks_keep_their_shape_at_any_size():
    seed = torch.arange(200)
    small, large = (Mask()({"image": torch.zeros(200, 3, s, s), "seed": seed})[:, 3:] for s in (64, 256))
    assert (F.avg_pool2d(large, 4) - small).abs().mean() < 0.03


def test_mask_distance_sees_only_what_was_kept():
    batch, mask = example(1, 8, 8), Mask()
    region = torch.zeros(1, 1, 8, 8)
    region[..., :4] = 1
    batch["image"] = batch["image"] * 0.5
    wanted = mask(batch | {"region": region})
    inside, outside = (mask({"image": batch["image"] + 0.25 * part, "region": region}) for part in (region, 1 - region))
    everywhere = mask({"image": batch["image"] + 0.25, "region": torch.zeros_like(region)})
    assert mask.distance(wanted, inside).item() == 0
    assert mask.distance(wanted, outside).item() == pytest.approx(0.25)
    assert mask.distance(wanted, everywhere).item() == pytest.approx(0.25)
    assert mask.distance(mask(batch | {"region": torch.ones_like(region)}), outside).item() == 0
