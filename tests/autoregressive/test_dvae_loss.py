"""The dVAE's training loss, against torch's distributions and sums written out."""

import math

import pytest
import torch
from torch.distributions import Categorical, Laplace, SigmoidTransform, TransformedDistribution, kl_divergence
from torch.nn import functional as F

from composer.autoregressive import dvae_loss, kl_weight_at, learning_rate_at, temperature_at
from composer.autoregressive.dvae import kl_to_uniform, logit_laplace, relax
from composer.networks.dvae import DVAE


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("mean", "scale"), [(0.0, 1.0), (1.5, 0.3), (-2.0, 2.0), (0.7, 0.01)])
def test_the_density_integrates_to_1_and_is_torchs(mean, scale):
    x = torch.linspace(-50, 30, 400_001, dtype=torch.double).sigmoid()
    log_f = logit_laplace(x, torch.full_like(x, mean), torch.full_like(x, math.log(scale)))
    assert torch.trapezoid(log_f.exp(), x).item() == pytest.approx(1, abs=1e-4)
    inner = torch.linspace(0.1, 0.9, 50, dtype=torch.double)
    laplace = TransformedDistribution(Laplace(inner.new_tensor(mean), inner.new_tensor(scale)), [SigmoidTransform()])
    ours = logit_laplace(inner, torch.full_like(inner, mean), torch.full_like(inner, math.log(scale)))
    torch.testing.assert_close(ours, laplace.log_prob(inner), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 1 / 16])
def test_the_relaxation_is_torchs_with_a_generator_of_its_own(temperature):
    logits = torch.randn(2, 5, 3, 4)
    ours = relax(logits, temperature, generator(7))
    torch.manual_seed(7)
    assert torch.equal(ours, F.gumbel_softmax(logits, temperature, dim=1))


def test_at_a_low_temperature_codes_are_one_hot_and_as_frequent_as_they_are_likely():
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    drawn = relax(logits.view(1, 4, 1, 1).expand(1, 4, 100, 100), 1e-3, generator())
    assert (drawn.amax(1) > 0.99).float().mean() > 0.99
    torch.testing.assert_close(drawn.mean((0, 2, 3)), logits.softmax(0), rtol=0, atol=0.02)


def test_the_divergence_is_torchs():
    logits = 3 * torch.randn(2, 6, 3, 4)
    by_torch = kl_divergence(Categorical(logits=logits.movedim(1, -1)), Categorical(logits=torch.zeros(2, 3, 4, 6)))
    torch.testing.assert_close(kl_to_uniform(logits), by_torch, rtol=1e-5, atol=1e-5)
    assert kl_to_uniform(torch.zeros(1, 6, 1, 1)).abs().item() < 1e-6
    one_hot = torch.tensor([200.0, 0, 0, 0, 0, 0]).view(1, 6, 1, 1)
    assert kl_to_uniform(one_hot).item() == pytest.approx(math.log(6))


def small():
    torch.manual_seed(0)
    return DVAE(codes=9, width=8, start=4, blocks=1)


def test_the_loss_is_the_bound_written_out():
    dvae, images = small(), torch.rand(2, 3, 16, 24) * 2 - 1
    loss = dvae_loss(dvae, images, 0.5, 6.6, generator(3))
    pixels = 0.8 * (images.double() + 1) / 2 + 0.1
    logits = dvae.encoder(pixels.float())
    torch.manual_seed(3)
    out = dvae.decoder(F.gumbel_softmax(logits, 0.5, dim=1)).double()
    mean, scale = out[:, :3], out[:, 3:].exp()
    density = (-((pixels / (1 - pixels)).log() - mean).abs() / scale).exp() / (2 * scale * pixels * (1 - pixels))
    p = logits.double().softmax(1)
    divergence = (p * (p * 9).log()).sum(1)
    for b in range(2):
        nats, kl = -density[b].log().sum(), divergence[b].sum()
        assert loss.total[b].item() == pytest.approx(((nats + 6.6 * kl) / (16 * 24 * 3)).item(), rel=1e-5)
        assert loss.reconstruction[b].item() == pytest.approx((nats / (16 * 24 * 3)).item(), rel=1e-5)
        assert loss.kl[b].item() == pytest.approx((kl / 6).item(), abs=1e-6)


def test_the_divergence_per_code_weighs_beta_over_192():
    loss = dvae_loss(small(), torch.rand(3, 3, 16, 16) * 2 - 1, 1.0, 6.6, generator())
    torch.testing.assert_close(loss.total, loss.reconstruction + 6.6 / 192 * loss.kl)


def test_every_weight_learns_and_the_loss_falls():
    dvae, images = small(), F.interpolate(torch.rand(8, 3, 2, 2, generator=generator()) * 2 - 1, size=16)
    optimizer, noise = torch.optim.Adam(dvae.parameters(), lr=1e-2), generator()
    losses = []
    for step in range(30):
        loss = dvae_loss(dvae, images, 1.0, kl_weight_at(step), noise).total.mean()
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in dvae.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < sum(losses[:5]) - 5 * 0.1


@pytest.mark.parametrize(
    ("schedule", "start", "end", "steps"),
    [
        (kl_weight_at, 0, 6.6, 5_000),
        (temperature_at, 1, 1 / 16, 150_000),
        (learning_rate_at, 1e-4, 1.25e-6, 1_200_000),
    ],
)
def test_schedules_follow_half_a_cosine(schedule, start, end, steps):
    assert schedule(0) == pytest.approx(start) and schedule(steps) == pytest.approx(end)
    assert schedule(steps // 2) == pytest.approx((start + end) / 2)
    assert schedule(steps // 4) == pytest.approx(start + (end - start) * (1 - math.sqrt(0.5)) / 2)
    assert schedule(steps + 1) == schedule(10 * steps) == schedule(steps)


def test_a_temperature_of_0_is_refused():
    with pytest.raises(ValueError, match="temperature above 0"):
        relax(torch.zeros(1, 2, 1, 1), 0.0, generator())
