"""Samplers, guidance and noise levels, on an exact Gaussian denoiser and against diffusers' schedulers."""

import math

import diffusers
import pytest
import torch
from torch import nn

from composer.conditioning import Conditioning
from composer.diffusion.denoiser import Cosine, Denoiser, Linear, LogNormal, level
from composer.diffusion.guidance import Term, guide, lock
from composer.diffusion.samplers import ancestral, cosine_sigmas, dpmpp_2m, euler, heun, karras_sigmas, latents
from composer.networks.interface import Network

MEAN, STD = 0.3, 0.5


def gaussian(x, sigma):
    """The exact denoiser of N(MEAN, STD^2)."""
    s = sigma[:, None, None, None]
    return (STD**2 * x + s**2 * MEAN) / (STD**2 + s**2)


def mixture(x, sigma):
    """The exact denoiser of a pixel that is -0.7 or 0.7: curved, unlike the Gaussian's."""
    return 0.7 * torch.tanh(0.7 * x / sigma[:, None, None, None] ** 2)


@pytest.mark.parametrize("sampler", [euler, heun, dpmpp_2m, ancestral])
@pytest.mark.parametrize("sigmas", [karras_sigmas(200), cosine_sigmas(200)], ids=["karras", "cosine"])
def test_every_sampler_draws_from_a_gaussian(sampler, sigmas):
    x = latents(range(4), (3, 32, 32)) * sigmas[0]
    y = sampler(gaussian, x, sigmas, **({"seeds": range(4)} if sampler is ancestral else {}))
    assert y.mean() == pytest.approx(MEAN, abs=0.02)
    assert y.std() == pytest.approx(STD, abs=0.03)


@pytest.mark.parametrize(("sampler", "order"), [(euler, 1), (heun, 2), (dpmpp_2m, 2)])
def test_order_of_convergence(sampler, order):
    x = latents(range(4), (3, 16, 16)).double() * 80
    truth = MEAN + (x - MEAN) * math.sqrt((STD**2 + 0.01) / (STD**2 + 6400))  # the flow keeps the standard score
    steps = [karras_sigmas(n, sigma_min=0.1)[:-1].double() for n in (50, 99)]  # 49 and 98 intervals
    coarse, fine = ((sampler(gaussian, x, s) - truth).abs().mean() for s in steps)
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.35)


def test_heun_inverts():
    image = latents([0], (3, 8, 8)) * STD + MEAN
    sigmas = karras_sigmas(50)[:-1]
    x = heun(gaussian, image, sigmas.flip(0))
    assert torch.allclose(heun(gaussian, x, sigmas), image, atol=2e-3)


def scheduler_run(scheduler, steps, generator=None):
    """Runs a diffusers scheduler of noise-space z on the mixture's exact denoiser; gives sigmas and result too."""
    scheduler.set_timesteps(steps)
    ac = scheduler.alphas_cumprod.double()
    z = latents([0], (3, 8, 8)).double()
    start, levels = z / ac[scheduler.timesteps[0]].sqrt(), []
    for t in scheduler.timesteps:
        a = ac[t]
        sigma = ((1 - a) / a).sqrt()
        levels.append(sigma)
        clean = mixture(z / a.sqrt(), sigma.expand(1))
        z = scheduler.step((z - a.sqrt() * clean) / (1 - a).sqrt(), t, z).prev_sample
    return start, torch.stack([*levels, torch.zeros_like(levels[0])]), z


COSINE = {"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "trailing"}


def test_euler_is_diffusers_ddim():
    scheduler = diffusers.DDIMScheduler(**COSINE, clip_sample=False, set_alpha_to_one=True)
    x, sigmas, want = scheduler_run(scheduler, 20)
    assert torch.allclose(euler(mixture, x, sigmas), want, atol=1e-5)


def test_dpmpp_2m_is_diffusers_dpm_solver():
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **COSINE, algorithm_type="dpmsolver++", solver_order=2, lower_order_final=False, final_sigmas_type="zero"
    )
    x, sigmas, want = scheduler_run(scheduler, 20)
    assert torch.allclose(dpmpp_2m(mixture, x, sigmas), want, atol=1e-4)


def sigma_run(scheduler, steps, **step):
    """Runs a diffusers scheduler of sigma space on the mixture's exact denoiser."""
    scheduler.set_timesteps(steps)
    x = start = latents([0], (3, 8, 8)) * scheduler.sigmas[0]
    levels = []
    for t in scheduler.timesteps:
        scheduler.scale_model_input(x, t)
        sigma = scheduler.sigmas[scheduler.step_index]
        levels.append(sigma)
        x = scheduler.step((x - mixture(x, sigma.expand(1))) / sigma, t, x, **step).prev_sample
    return start, scheduler.sigmas, x


def test_heun_is_diffusers_heun():
    x, sigmas, want = sigma_run(diffusers.HeunDiscreteScheduler(beta_schedule="linear"), 15)
    own = torch.cat([sigmas[:1], sigmas[1:-1:2], sigmas[-1:]])  # theirs lists each inner level twice
    assert torch.allclose(heun(mixture, x, own), want, atol=1e-4)


def test_ancestral_is_diffusers_euler_ancestral():
    shared = torch.Generator().manual_seed(7)
    scheduler = diffusers.EulerAncestralDiscreteScheduler(beta_schedule="linear")
    x, sigmas, want = sigma_run(scheduler, 15, generator=shared)
    seed = 7 ^ 0x5EED  # undoes the sampler's own separation of streams
    assert torch.allclose(ancestral(mixture, x, sigmas, [seed]), want, atol=1e-4)


def test_rows_depend_on_their_own_seed_alone():
    x = latents([5, 7], (3, 8, 8))
    assert torch.equal(x[1:], latents([7], (3, 8, 8)))
    two = ancestral(mixture, x * 10, karras_sigmas(5, sigma_max=10.0), [5, 7])
    one = ancestral(mixture, x[1:] * 10, karras_sigmas(5, sigma_max=10.0), [7])
    assert torch.equal(two[1:], one)


def test_noise_levels():
    u = torch.tensor([0.25, 0.5, 0.75])
    assert torch.allclose(Cosine(1e-6, 1 - 1e-6).sigma(u), torch.tensor([0.41421356, 1.0, 2.41421356]), atol=1e-4)
    assert LogNormal(-1.2, 1.2).sigma(u)[1] == pytest.approx(math.exp(-1.2))
    ac = diffusers.DDPMScheduler(beta_schedule="linear").alphas_cumprod
    table = ((1 - ac) / ac).sqrt()
    assert torch.allclose(Linear().sigma(torch.linspace(0, 1, 1000)), table, rtol=0.01)


class Echo(Network):
    """A network whose answer is exact for the target at hand: what a perfectly trained one would say."""

    def __init__(self, target, sigma_data):
        super().__init__()
        self.target, self.sd = target, sigma_data

    def forward(self, x, level, cond):
        s = torch.tan(level * math.pi / 2)[:, None, None, None]
        noisy = x * (s**2 + self.sd**2).sqrt()
        clean = gaussian(noisy, s.flatten())
        if self.target == "eps":
            return (noisy - clean) / s
        if self.target == "x0":
            return clean
        c_skip, c_out = self.sd**2 / (s**2 + self.sd**2), s * self.sd / (s**2 + self.sd**2).sqrt()
        return -(clean - c_skip * noisy) / c_out


def exact(target, sigma_data=0.5, **kwargs):
    return Denoiser(Echo(target, sigma_data), Cosine(), target, sigma_data, **kwargs)


@pytest.mark.parametrize("target", ["eps", "x0", "v"])
@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_every_target_recovers_the_clean_image(target, sigma_data):
    x, sigma = torch.randn(4, 3, 8, 8) * 3, torch.tensor([0.05, 0.5, 2.0, 20.0])
    got = exact(target, sigma_data)(x, sigma, Conditioning())
    assert torch.allclose(got, gaussian(x, sigma), atol=2e-4)


def test_v_with_unit_data_is_the_papers_v():
    """v = alpha eps - s x0, Salimans and Ho (2022), appendix D: its error weighs SNR + 1 in x0 space."""
    sigma = torch.tensor([0.1, 1.0, 10.0])
    assert torch.allclose(exact("v", 1.0).weight(sigma), sigma**-2 + 1)
    assert torch.allclose(exact("eps", 1.0).weight(sigma), sigma**-2)
    assert torch.allclose(exact("v", 1.0, min_snr=5.0).weight(sigma), torch.tensor([5.0, 1.0, 0.01]))


def test_loss_of_the_exact_denoiser_is_the_posterior_variance():
    image = torch.randn(8, 3, 64, 64) * STD + MEAN
    sigma = torch.full((8,), 0.5)
    loss = exact("x0").loss(image, Conditioning(), sigma, torch.randn_like(image)).mean()
    assert loss.item() == pytest.approx(STD**2 * 0.25 / (STD**2 + 0.25), rel=0.02)


def test_draws_cover_the_distribution():
    denoiser = exact("v")
    u = level(denoiser.draw(1000, torch.Generator().manual_seed(0))).sort().values
    assert torch.allclose(u, torch.linspace(1e-3, 0.9946, 1000), atol=2e-3)


class Shifted(Denoiser):
    """A denoiser whose estimate is its conditioning's vector: guidance on it is arithmetic."""

    calls = 0

    def __init__(self):
        nn.Module.__init__(self)

    def prepare(self, cond):
        return cond

    def forward(self, x, sigma, cond):
        self.calls += 1
        return cond.vector[:, :, None, None].expand_as(x)


def cond(value):
    return Conditioning(vector=torch.full((1, 3), float(value)))


def test_guidance_is_a_weighted_sum_in_one_call():
    denoiser = Shifted()
    x, sigma = torch.zeros(2, 3, 4, 4), torch.ones(2)
    assert torch.allclose(guide(denoiser, [Term(cond(2), 3.0), Term(cond(1), -2.0)])(x, sigma), torch.full_like(x, 4.0))
    assert denoiser.calls == 1


def test_each_network_estimates_its_own_terms_in_one_call():
    strong, weak = Shifted(), Shifted()
    terms = [Term(cond(4), 2.0), Term(cond(1), -1.5, weak), Term(cond(2), 1.0), Term(cond(3), -0.5, weak)]
    found = guide(strong, terms)(torch.zeros(2, 3, 4, 4), torch.ones(2))
    assert (found == 2 * 4 - 1.5 * 1 + 2 - 0.5 * 3).all()
    assert strong.calls == weak.calls == 1


def test_weights_may_depend_on_sigma_and_on_place():
    x = torch.zeros(1, 3, 4, 4)
    left = torch.zeros(1, 1, 4, 4)
    left[..., :2] = 1
    by_place = guide(Shifted(), [Term(cond(2), left), Term(cond(1), 1 - left)])(x, torch.ones(1))
    assert (by_place[..., :2] == 2).all() and (by_place[..., 2:] == 1).all()
    by_sigma = guide(Shifted(), [Term(cond(2), lambda s: float(s > 1)), Term(cond(1), lambda s: float(s <= 1))])
    assert (by_sigma(x, torch.full((1,), 2.0)) == 2).all() and (by_sigma(x, torch.full((1,), 0.5)) == 1).all()


def test_weights_that_miss_one_are_refused():
    with pytest.raises(ValueError, match="sum to 1"):
        guide(Shifted(), [Term(cond(2), 0.5)])(torch.zeros(1, 3, 4, 4), torch.ones(1))


def test_lock_holds_a_region():
    image, keep = torch.rand(1, 3, 8, 8), torch.zeros(1, 1, 8, 8)
    keep[..., :4] = 1
    y = dpmpp_2m(lock(gaussian, image, keep), latents([0], (3, 8, 8)) * 80, karras_sigmas(20))
    assert torch.equal(y[..., :4], image[..., :4]) and not torch.allclose(y[..., 4:], image[..., 4:], atol=0.1)
