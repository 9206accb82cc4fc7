"""Guided sampling with a published schedule, against DDIM as its authors wrote it (Song et al. 2021, eq. 12)."""

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler, betas_for_alpha_bar

from composer.conditioning import Conditioning
from composer.diffusion.denoiser import Denoiser, Linear, ScaledLinear, SquaredCosine
from composer.diffusion.samplers import euler
from composer.networks.unet import UNet

STEPS, WEIGHT = 20, 3.0
BETAS = {
    "SquaredCosine": (SquaredCosine, betas_for_alpha_bar(1000).double()),
    "ScaledLinear": (ScaledLinear, DDPMScheduler(1000, 0.00085, 0.012, "scaled_linear").betas.double()),
    "Linear": (Linear, torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)),
}


@pytest.mark.parametrize("name", BETAS)
@torch.no_grad()
def test_guided_ddim_is_euler_in_sigma(name):
    schedule, betas = BETAS[name]
    kept = (1 - betas).cumprod(0)
    steps = torch.linspace(0, 999, STEPS).round().long().flip(0)
    network = UNet(width=32, multipliers=(1, 2), blocks=1, attention=(2,), vector_dim=128, token_dim=0, spatial_dim=0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.08)
    vectors = [Conditioning(vector=torch.randn(2, 128)), Conditioning(vector=torch.zeros(2, 128))]
    noise = torch.randn(2, 3, 8, 8)

    z = noise.double()
    for i, t in enumerate(steps.tolist()):
        asked, nothing = (network(z.float(), torch.full((2,), t / 1000), v).double() for v in vectors)
        eps = nothing + WEIGHT * (asked - nothing)
        image = ((z - (1 - kept[t]).sqrt() * eps) / kept[t].sqrt()).clamp(-1, 1)
        eps = (z - kept[t].sqrt() * image) / (1 - kept[t]).sqrt()
        to = kept[steps[i + 1]] if i + 1 < STEPS else torch.ones(())
        z = to.sqrt() * image + (1 - to).sqrt() * eps

    noise_levels = schedule()
    denoiser = Denoiser(network, noise_levels, "eps", sigma_data=1.0, time="step")
    sigmas = torch.cat([noise_levels.table[steps].exp().float(), torch.zeros(1)])

    def denoise(x, sigma):
        asked, nothing = (denoiser(x, sigma, v) for v in vectors)
        return (nothing + WEIGHT * (asked - nothing)).clamp(-1, 1)

    start = noise * (sigmas[0] ** 2 + 1).sqrt()
    assert (euler(denoise, start, sigmas) - z).abs().max() < 1e-4


@pytest.mark.parametrize("name", BETAS)
def test_a_step_is_where_its_noise_level_lies(name):
    schedule, betas = BETAS[name]
    kept = (1 - betas).cumprod(0)
    sigma = ((1 - kept) / kept).sqrt().float()
    torch.testing.assert_close(schedule().step(sigma), torch.arange(1000) / 1000, atol=2e-6, rtol=0)
    between = schedule().step((sigma[500] * sigma[501]).sqrt()[None])
    torch.testing.assert_close(between, torch.tensor([0.5005]), atol=2e-6, rtol=0)


def test_only_a_schedule_with_steps_tells_them():
    from composer import Cosine

    network = UNet(width=32, multipliers=(1,), blocks=1, attention=(), vector_dim=32, token_dim=0, spatial_dim=0)
    with pytest.raises(ValueError, match="Cosine has no steps"):
        Denoiser(network, Cosine(), time="step")
