"""The autoencoder's loss, against torch's own distributions and torchmetrics' LPIPS."""

import math

import torch
from torch import nn
from torch.distributions import Normal
from torch.distributions import kl_divergence as by_torch
from torchmetrics.functional.image import lpips

from composer.networks.autoencoder import Autoencoder
from composer.training import autoencoder_loss as loss


def two_layers():
    torch.manual_seed(3)
    first, second = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 7, 3, stride=2)
    return lambda x: ((h := first(x)), second(h.relu()))


def test_the_divergence_is_that_of_normal_distributions():
    mean, log_variance = torch.randn(3, 4, 2, 5), torch.randn(3, 4, 2, 5)
    true = by_torch(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).flatten(1).sum(1)
    assert torch.allclose(loss.kl_divergence(mean, log_variance), true, rtol=1e-5)
    assert (loss.kl_divergence(torch.zeros(1, 4, 2, 2), torch.zeros(1, 4, 2, 2)) == 0).all()


def test_the_perceptual_distance_is_lpips_with_weights_of_one():
    """torchmetrics' own steps: features of unit length, squared differences, means over places."""
    features, a, b = two_layers(), torch.rand(2, 3, 9, 12) * 2 - 1, torch.rand(2, 3, 9, 12) * 2 - 1
    layers = []
    for x, y in zip(features(a), features(b), strict=True):
        difference = (lpips._normalize_tensor(x) - lpips._normalize_tensor(y)) ** 2
        layers.append(lpips._spatial_average(difference.sum(1, keepdim=True), keep_dim=False)[:, 0])
    true = torch.stack(layers).sum(0)
    assert torch.allclose(loss.perceptual_distance(a, b, features), true, rtol=1e-5)
    assert (loss.perceptual_distance(a, a, features) == 0).all()


def test_the_loss_is_the_sum_of_its_terms():
    a, b = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    mean, log_variance, features = torch.randn(2, 4, 2, 2), torch.randn(2, 4, 2, 2), two_layers()
    error, values = (a - b).abs().sum((1, 2, 3)), 3 * 8 * 8
    divergence = loss.kl_divergence(mean, log_variance)
    found = loss.autoencoder_loss(a, b, mean, log_variance)
    assert torch.allclose(found, error + 1e-6 * divergence)
    found = loss.autoencoder_loss(a, b, mean, log_variance, features, 0.5, 0.1)
    assert torch.allclose(found, error + 0.1 * divergence + 0.5 * values * loss.perceptual_distance(a, b, features))


def test_a_tiny_autoencoder_learns_by_it():
    torch.manual_seed(0)
    made = Autoencoder(channels=4, width=8, multipliers=[1, 2], blocks=1, groups=4)
    ramp = torch.linspace(-1, 1, 8)
    images = torch.stack([ramp.expand(3, 8, 8), -ramp.expand(3, 8, 8), ramp[:, None].expand(3, 8, 8)])
    optimizer, losses = torch.optim.AdamW(made.parameters(), 3e-3), []
    for step in range(40):
        mean, log_variance = made.moments(images)
        noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(step))
        found = made.reconstruct(mean + (log_variance / 2).exp() * noise)
        value = loss.autoencoder_loss(images, found, mean, log_variance, two_layers()).mean()
        optimizer.zero_grad()
        value.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters())
        optimizer.step()
        losses.append(value.item())
    assert math.isfinite(losses[-1]) and sum(losses[-5:]) < 0.5 * sum(losses[:5])
