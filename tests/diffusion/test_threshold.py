"""Quantiles against numpy's and torch's, thresholds against cases worked out by hand."""

import numpy as np
import pytest
import torch

from composer.diffusion.guidance import quantile, threshold

LARGE = 3 * 256 * 256


def identity(x, sigma):
    return x


def image(*values):
    return torch.tensor(values)[None, :, None, None]


def assert_is_numpys(values, share):
    want = np.quantile(values.double().numpy(), share, axis=1)
    assert np.allclose(quantile(values, share).double().numpy(), want, rtol=1e-6, atol=1e-6)


KINDS = {
    "normal": lambda b, n: torch.randn(b, n),
    "heavy tails": lambda b, n: torch.randn(b, n) / torch.randn(b, n).abs().clamp(min=1e-4),
    "constant": lambda b, n: torch.full((b, n), 0.7),
    "many ties": lambda b, n: torch.randint(0, 5, (b, n)).float(),
    "clipped": lambda b, n: torch.randn(b, n).abs().clamp(max=2.0),  # 4.6 % at the largest value
    "two values": lambda b, n: (torch.rand(b, n) > 0.995).float(),
    "ascending": lambda b, n: torch.linspace(-3, 3, n).expand(b, n),
    "descending": lambda b, n: torch.linspace(3, -3, n).expand(b, n),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 2, 3, 150, 2**16 - 1, LARGE + 5])
def test_quantile_is_numpys(kind, n):
    torch.manual_seed(n)
    values = KINDS[kind](2, n)
    for share in (0.005, 0.5, 0.9, 0.995, 0.99999):
        assert_is_numpys(values, share)


@pytest.mark.parametrize("every", range(1, 14, 2))
def test_a_misleading_sample_changes_nothing(every):
    """Whatever stride the sample has: all it sees lies above, or below, everything else."""
    torch.manual_seed(every)
    values = torch.rand(2, LARGE)
    values[0, ::every] += 10
    values[1, ::every] -= 10
    for share in (0.9, 0.995, 0.9999):
        assert_is_numpys(values, share)


def test_quantile_is_torchs_on_a_large_picture():
    values = torch.randn(2, 3 * 1024 * 1024, generator=torch.Generator().manual_seed(0)).abs()
    want = torch.stack([torch.quantile(row.double(), 0.995) for row in values])  # of floats torch 2.6 rounds the rank
    assert (quantile(values, 0.995) - want).abs().max() <= 1e-6


@pytest.mark.parametrize("n", [150, LARGE])
def test_a_nan_is_kept_to_its_row(n):
    values = torch.randn(4, n)
    values[1, 0], values[2, n // 2 + 1], values[3, :] = torch.nan, torch.nan, torch.nan
    assert torch.equal(quantile(values, 0.995).isnan(), torch.tensor([False, True, True, True]))
    assert_is_numpys(values[:1], 0.995)


@pytest.mark.parametrize("n", [1000, LARGE])
def test_some_infinite_values_do_not_reach_the_quantile(n):
    values = torch.randn(2, n)
    values[0, 1::500], values[1, ::500] = torch.inf, -torch.inf
    assert_is_numpys(values, 0.995)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_every_precision(dtype):
    values = torch.randn(2, LARGE).to(dtype)
    got = quantile(values, 0.995)
    assert got.dtype == dtype and torch.allclose(got, quantile(values.double(), 0.995).to(dtype))
    assert_is_numpys(values.double(), 0.995)


@pytest.mark.parametrize("n", [150, LARGE])
def test_gradient_is_torchs(n):
    values = torch.randn(2, n, dtype=torch.float64)
    ours, theirs = values.clone().requires_grad_(), values.clone().requires_grad_()
    quantile(ours, 0.995).sum().backward()
    torch.quantile(theirs, 0.995, dim=1).sum().backward()
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-9) and ours.grad.any()


def test_static_threshold_clips():
    x = image(0.2, -4.0, 1.5)
    assert torch.equal(threshold(identity)(x, torch.ones(1)), image(0.2, -1.0, 1.0))


@pytest.mark.parametrize(
    ("values", "percentile", "want"),
    [
        ((0.2, -4.0, 2.0), 0.5, (0.1, -1.0, 1.0)),  # s = 2, the middle one of the magnitudes
        ((0.2, -4.0, 2.0), 0.75, (0.2 / 3, -1.0, 2 / 3)),  # s = 3, half-way between 2 and 4
        ((0.2, -0.4, 3.0), 0.5, (0.2, -0.4, 1.0)),  # the quantile is 0.4: s is at least 1, and clips
        ((0.2, -0.4, 0.9), 0.5, (0.2, -0.4, 0.9)),  # nothing to do
        ((torch.inf, -4.0, 2.0), 0.5, (1.0, -1.0, 0.5)),  # s = 4
    ],
)
def test_dynamic_threshold_by_hand(values, percentile, want):
    got = threshold(identity, percentile)(image(*values), torch.ones(1))
    assert torch.allclose(got, image(*want), atol=1e-7)


def test_each_image_has_its_own_scale():
    x = torch.randn(3, 3, 160, 160) * torch.tensor([0.1, 1.0, 4.0])[:, None, None, None]
    s = torch.quantile(x.abs().flatten(1), 0.995, dim=1).clamp(min=1)[:, None, None, None]
    got = threshold(identity, 0.995)(x, torch.ones(3))
    assert torch.allclose(got, x.clamp(-s, s) / s, atol=1e-6) and torch.equal(got[0], x[0])
    assert torch.equal(got[1:2], threshold(identity, 0.995)(x[1:2], torch.ones(1)))


def test_an_image_with_a_nan_leaves_the_others_alone():
    x = torch.randn(2, 3, 8, 8) * 2
    want = threshold(identity, 0.9)(x[1:], torch.ones(1))
    x[0, 0, 0, 0] = torch.nan
    got = threshold(identity, 0.9)(x, torch.ones(2))
    assert got[0].isnan().all() and torch.equal(got[1:], want)


def test_reduced_precision_is_thresholded_in_full():
    x = (torch.randn(2, 3, 32, 32) * 2).bfloat16()
    got = threshold(identity, 0.995)(x, torch.ones(2))
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, threshold(identity, 0.995)(x.float(), torch.ones(2)).bfloat16())


@pytest.mark.parametrize("percentile", [0.0, 1.0, 99.5, -0.5])
def test_a_percentile_is_a_share(percentile):
    with pytest.raises(ValueError, match=r"in \(0, 1\)"):
        threshold(identity, percentile)
