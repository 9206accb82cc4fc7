"""The autoencoder's loss, against torch's own distributions and torchmetrics' LPIPS."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.distributions import Normal
from torch.distributions import kl_divergence as by_torch
from torchmetrics.functional.image import lpips

from composer.networks.autoencoder import Autoencoder
from composer.networks.discriminator import PatchDiscriminator
from composer.training import autoencoder_loss as loss
from composer.training.feature_maps import BACKBONES, LPIPS


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
    apart = partial(loss.perceptual_distance, features=features)
    found = loss.autoencoder_loss(a, b, mean, log_variance, apart, 0.5, 0.1)
    assert torch.allclose(found, error + 0.1 * divergence + 0.5 * values * apart(a, b))


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
        apart = partial(loss.perceptual_distance, features=two_layers())
        value = loss.autoencoder_loss(images, found, mean, log_variance, apart).mean()
        optimizer.zero_grad()
        value.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters())
        optimizer.step()
        losses.append(value.item())
    assert math.isfinite(losses[-1]) and sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_the_adaptive_weight_is_the_ratio_of_two_gradients():
    """By finite differences of both losses along each weight of the decoder's last layer, in float64."""
    made = Autoencoder(channels=4, width=8, multipliers=[1, 2], blocks=1, groups=4).double()
    judge = PatchDiscriminator(width=4, levels=1, groups=2).double()
    images, latents = torch.rand(2, 3, 16, 16).double() * 2 - 1, torch.randn(2, 4, 8, 8).double()
    last = made.last_weight

    def losses():
        found = made.reconstruct(latents)
        return (images - found).abs().sum() + (images - found).square().sum(), -judge.layers(found).mean()

    own, against = losses()
    weight = loss.adaptive_weight(own, against, last)
    slopes = torch.zeros(2, last.numel()).double()
    with torch.no_grad():
        for i in range(last.numel()):
            for sign in (1, -1):
                last.view(-1)[i] += sign * 1e-6
                slopes[:, i] += sign * torch.stack(losses()) / 2e-6
                last.view(-1)[i] -= sign * 1e-6
    steep = slopes.norm(dim=1)
    torch.testing.assert_close(weight, steep[0] / (steep[1] + 1e-4), rtol=1e-4, atol=0)
    assert not weight.requires_grad and weight > 1
    still = -judge.layers(made.reconstruct(latents)).mean()
    assert loss.adaptive_weight(1e9 * losses()[0], still, last) == loss.LARGEST_WEIGHT


def test_the_hinge_stops_where_patches_are_told_apart():
    real, fake = torch.tensor([2.0, 0.5, -1.0]).view(3, 1, 1, 1), torch.tensor([-2.0, -0.5, 1.0]).view(3, 1, 1, 1)
    true = (sum([0, 0.5, 2]) / 3 + sum([0, 0.5, 2]) / 3) / 2
    assert math.isclose(loss.hinge_loss(real, fake), true, rel_tol=1e-6)


def test_a_patch_has_70_pixels_and_no_image_sees_another():
    judge = PatchDiscriminator(width=8)
    images = torch.rand(2, 3, 96, 96, requires_grad=True)
    with torch.no_grad():
        alone = torch.cat([judge(image[None]) for image in images])
    torch.testing.assert_close(judge(images), alone)
    plain = PatchDiscriminator(width=8)
    plain.layers = torch.nn.Sequential(*(layer for layer in plain.layers if "Norm" not in type(layer).__name__))
    logits = plain(images)
    (gradient,) = torch.autograd.grad(logits[0, 0, 5, 5], images)
    rows, columns = (gradient[0].abs().sum((0, axis)).nonzero().flatten() for axis in (1, 2))
    assert len(rows) == len(columns) == 70 and not gradient[1].any()


def test_sizes_of_a_discriminator_are_checked():
    with pytest.raises(ValueError, match="groups that divide the width, found 3, 5 and 64"):
        PatchDiscriminator(groups=5)


def test_lpips_is_torchmetrics(tmp_path, monkeypatch):
    """With weights of the right shapes in torchvision's layout; the layers' learned weights are torchmetrics' own."""
    torch.manual_seed(5)
    net = lpips._NoTrainLpips(net="alex", pnet_rand=True)
    stored = {f"features.{key.partition('.')[2]}": value for key, value in net.net.state_dict().items()}
    file = tmp_path / "checkpoints" / BACKBONES["alex"]
    file.parent.mkdir()
    torch.save({**stored, "classifier.1.weight": torch.zeros(2, 2)}, file)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    made = LPIPS("alex")
    a, b = torch.rand(2, 3, 64, 64) * 2 - 1, (torch.rand(2, 3, 64, 64) * 2 - 1).requires_grad_()
    found = made.distance(a, b)
    torch.testing.assert_close(found, net(a, b).flatten())
    found.sum().backward()
    assert b.grad.abs().sum() > 0 and len(made(a)) == 5
    with pytest.raises(FileNotFoundError, match=r"LPIPS needs torchvision's weights vgg16-397923af.pth"):
        LPIPS()
    with pytest.raises(ValueError, match="holds other weights"):
        LPIPS("vgg", str(file))
