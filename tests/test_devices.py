"""Which device is chosen, and that a device without float64 (Apple's) gives what the CPU gives."""

from functools import partial

import pytest
import torch

from composer import Cascade
from composer.__main__ import main
from composer.cascade.options import SampleOptions
from composer.cascade.parts import slerp
from composer.cascade.start import InitialNoise
from composer.devices import pick_device, to_float64
from composer.diffusion.denoiser import Linear, LogNormal
from composer.diffusion.samplers import ancestral, cosine_sigmas, dpmpp_2m, euler, heun, karras_sigmas, latents
from composer.evaluation.adherence import Evaluation
from composer.evaluation.metrics import embed
from composer.evaluation.samples import Sample
from composer.prior.pca import dimensions_for, fit_pca
from composer.tasks.editing import Original, edit
from decomposers import Palette
from tests.prior.test_prior import autoregressive, corrected, diffusion, embeddings
from tests.stand_in import There, stand_in


def same(found, expected):
    """Compares, and holds that the result lies on the device."""
    assert isinstance(found, There)
    torch.testing.assert_close(found.here, expected, atol=1e-4, rtol=1e-4)


def has(monkeypatch, *devices):
    monkeypatch.setattr("torch.cuda.is_available", lambda: "cuda" in devices)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: "mps" in devices)


@pytest.mark.parametrize(
    ("devices", "expected"), [((), "cpu"), (("mps",), "mps"), (("cuda",), "cuda"), (("mps", "cuda"), "cuda")]
)
def test_the_fastest_device_is_picked(monkeypatch, devices, expected):
    has(monkeypatch, *devices)
    assert pick_device().type == expected
    assert pick_device("cpu").type == "cpu"


def test_a_device_that_is_not_there_is_refused(monkeypatch, capsys):
    has(monkeypatch, "mps")
    with pytest.raises(ValueError, match="has, mps or cpu, found cuda"):
        pick_device("cuda")
    assert main(["compose", "--device", "cuda", "--seeds", "0"]) == 1
    assert "expected a device that this machine has, mps or cpu, found cuda" in capsys.readouterr().err


def test_the_stand_in_refuses_what_apples_device_refuses():
    with stand_in() as device:
        x = torch.ones(3, device=device)
        assert float((x + 1).sum()) == 6 and x.add_(1) is x
        for wrong in (
            lambda: x.double(),
            lambda: x.to("cpu", torch.float64),
            lambda: torch.ones(3).double().to(device),
        ):
            with pytest.raises(TypeError, match=r"torch\.float64"):
                wrong()
        with pytest.raises(RuntimeError, match="two devices"):
            x + torch.ones(3)


def test_float64_is_reached_from_every_device():
    x = torch.tensor([0.1, 2.0])
    assert torch.equal(to_float64(x), x.double())
    with stand_in() as device:
        wide = to_float64(x.to(device))
        assert not isinstance(wide, There) and torch.equal(wide, x.double())


@pytest.mark.parametrize("levels", [Linear(), LogNormal()], ids=lambda levels: type(levels).__name__)
def test_noise_levels(levels):
    u = torch.tensor([0.01, 0.5, 0.99])
    expected = levels.sigma(u)
    with stand_in() as device:
        same(levels.sigma(u.to(device)), expected)


def test_great_circles():
    a, b = torch.randn(2, 5, 4).unbind()
    expected = slerp(a, b, 0.3)
    with stand_in() as device:
        same(slerp(a.to(device), b.to(device), 0.3), expected)


def test_principal_components():
    z = embeddings()
    expected = fit_pca(z, z.flip(1))
    with stand_in() as device:
        found = fit_pca(z.to(device), z.flip(1).to(device))
        assert all(torch.allclose(found[name], value, atol=1e-5) for name, value in expected.items())
        variance = expected["variance"]
        assert dimensions_for(variance.to(device), 0.9) == dimensions_for(variance, 0.9)


def test_features():
    images = torch.rand(3, 3, 4, 4) * 2 - 1
    with stand_in() as device:
        found = embed(images.to(device), lambda x: x.mean((2, 3)))
        assert found.dtype == torch.float64 and torch.equal(found, embed(images, lambda x: x.mean((2, 3))))


@pytest.mark.parametrize("make", [diffusion, corrected, autoregressive])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_priors_draw(make, guidance):
    prior, words = make(), torch.randn(2, 6, 9)
    words[..., -1] = 1
    with torch.no_grad():
        expected = prior.draw(words, [1, 2], guidance, lambda steps: steps)
    with stand_in() as device:
        same(prior.to(device).draw(words.to(device), [1, 2], guidance, lambda steps: steps), expected)


@pytest.fixture
def folder(eight, tmp_path):
    """The tiny model of eight conditions, to be loaded here and there."""
    eight.save(tmp_path / "eight", "# eight\n")
    return tmp_path / "eight"


@pytest.mark.parametrize(
    "sampler",
    [euler, heun, dpmpp_2m, partial(ancestral, seeds=[1, 2])],
    ids=["euler", "heun", "dpmpp_2m", "ancestral"],
)
@pytest.mark.parametrize("sigmas", [cosine_sigmas(4), karras_sigmas(4)], ids=["cosine", "karras"])
def test_samplers(sampler, sigmas):
    def denoise(x, sigma):
        return x / (1 + sigma[:, None, None, None] ** 2)

    x = latents([1, 2], (3, 2, 2)) * sigmas[0]
    expected = sampler(denoise, x, sigmas)
    with stand_in() as device:
        same(sampler(denoise, x.to(device), sigmas), expected)


def test_a_model_draws_there_what_it_draws_here(folder, batch):
    here = Cascade.load(folder)
    how = SampleOptions(steps=2, guidance=2.0, percentile=0.9)
    parts = here.decompose(batch)
    expected = here.sample(parts, seeds=[0, 1], options=how)
    with stand_in() as device:
        moved = Cascade.load(folder).to(device)
        there = moved.decompose({**batch, "image": batch["image"].to(device)})
        for name, value in parts.items():
            same(there[name], value)
        same(moved.sample(there, seeds=[0, 1], options=how), expected)


def test_a_model_inverts_and_edits_there(folder, photos):
    here = Cascade.load(folder)
    image, original = here.open(photos[0]), Original.open(photos[0])
    region = torch.zeros(1, 1, *original.image.shape[1:])
    region[..., 10:30, 10:30] = 1
    reps = here.decompose({"image": image}).pick("palette", "semantics")

    def both(model, reps):
        latent = model.invert(model.open(photos[0]), reps, steps=2)
        other = InitialNoise(latents([3], tuple(latent.noise.shape[1:]), model.device), model.identity)
        between = latent.interpolate(other, 0.5)
        [edited] = edit(model, original, region, reps, keep=["sketch"], seeds=[0], options=SampleOptions(steps=2))
        return latent.noise, between.noise, edited

    noise, between, edited = both(here, reps)
    with stand_in() as device:
        moved = Cascade.load(folder).to(device)
        found = both(moved, moved.decompose({"image": moved.open(photos[0])}).pick("palette", "semantics"))
        same(found[0], noise)
        same(found[1], between)
    assert abs(torch.tensor(list(found[2].tobytes())).int() - torch.tensor(list(edited.tobytes())).int()).max() <= 1


def test_a_model_is_measured_there(saved):
    images = torch.rand(3, 3, 16, 16) * 2 - 1

    def table(cascade):
        sample = Sample(len(images), lambda index: {"image": images[list(index)]})
        return Evaluation(cascade, sample, options=SampleOptions(steps=1)).measure().json()

    expected = table(Cascade.load(saved))
    with stand_in() as device:
        found = table(Cascade.load(saved).to(device))
    assert found["alone"]["palette"] == pytest.approx(expected["alone"]["palette"], abs=1e-4)
    assert found["mask"] == pytest.approx(expected["mask"], abs=1e-4)


def test_palettes_show_the_same():
    palette = Palette()
    value = torch.rand(2, 156)
    expected = palette.preview(value)
    with stand_in() as device:
        same(palette.preview(value.to(device)), expected)
