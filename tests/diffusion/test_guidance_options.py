"""Guidance within an interval of noise levels, and away from a weaker model, against the same written out by hand."""

import pytest
import torch

from composer.__main__ import main
from composer.cascade.cascade import Cascade
from composer.cascade.options import SampleOptions
from composer.cascade.stage import Sampling
from composer.diffusion import samplers
from composer.diffusion.denoiser import level
from composer.diffusion.strength import Strength
from composer.images.sheet import read_recipe
from composer.tasks.composition import Composition
from composer.tasks.recipe import draw_recipe, recipe
from tests.conftest import SIZE, TINY, talkative


@pytest.fixture
def parts(cascade):
    image = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return cascade.decompose({"image": image}).pick("palette", "intensity")


@pytest.fixture
def pair():
    """A model and a weaker one of its plan."""
    strong, weak = talkative(TINY), talkative(TINY)
    with torch.no_grad():
        for parameter in weak.stages[0].denoiser.parameters():
            parameter.mul_(0.7)
    return strong, weak


def by_hand(cascade, estimate, steps=6):
    """DPM-Solver++ on a guided estimate (x, sigma) -> image, clipped."""
    stage = cascade.stages[0]
    sigmas = stage.denoiser.sigmas(steps)
    noise = samplers.latents([5], (3, SIZE, SIZE), cascade.device)
    with torch.no_grad():
        x = samplers.dpmpp_2m(lambda x, sigma: estimate(x, sigma).clamp(-1, 1), noise * sigmas[0], sigmas)
    return x.clamp(-1, 1)


def estimator(cascade, reps):
    stage = cascade.stages[0]
    with torch.no_grad():
        cond = stage.encode(reps, (SIZE, SIZE))
    return lambda x, sigma: stage.denoiser(x, sigma, cond)


def test_guidance_is_on_within_the_interval_alone(cascade, parts, monkeypatch):
    interval, guided, rows = (0.2, 0.8), [], []
    one, none = estimator(cascade, parts), estimator(cascade, {})

    def estimate(x, sigma):
        guided.append(interval[0] <= float(level(sigma[0])) <= interval[1])
        w = 4.0 if guided[-1] else 1.0
        return w * one(x, sigma) + (1 - w) * none(x, sigma)

    want = by_hand(cascade, estimate)
    denoiser = cascade.stages[0].denoiser
    own = type(denoiser).forward
    monkeypatch.setattr(type(denoiser), "forward", lambda s, x, *args: rows.append(len(x)) or own(s, x, *args))
    found = cascade.sample(parts, seeds=[5], options=SampleOptions(steps=6, guidance=4.0, guidance_interval=interval))
    torch.testing.assert_close(found, want, atol=1e-4, rtol=0)
    assert rows == [1 + on for on in guided] and 0 < sum(guided) < len(guided)  # a call for one row where it is off
    everywhere = cascade.sample(parts, seeds=[5], options=SampleOptions(steps=6, guidance=4.0))
    assert (everywhere - found).abs().max() > 0.01
    assert torch.equal(
        everywhere,
        cascade.sample(parts, seeds=[5], options=SampleOptions(steps=6, guidance=4.0, guidance_interval=(0.0, 1.0))),
    )


def test_the_interval_holds_for_all_that_guides(cascade, parts):
    """What is led away from, and AND and NOT."""
    also = ((cascade.decompose({"image": torch.zeros(1, 3, SIZE, SIZE)}).pick("palette"), 1.5),)
    how = SampleOptions(steps=4, guidance=3.0, guidance_interval=(0.0, 0.001))
    plain = cascade.sample(parts, seeds=[5], options=SampleOptions(steps=4, guidance=1.0))
    torch.testing.assert_close(cascade.sample(Composition(parts=parts, also=also), [5], how), plain, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        cascade.sample(Composition(parts=parts, away=also[0][0]), [5], how), plain, atol=1e-5, rtol=0
    )
    with pytest.raises(ValueError, match=r"guidance_interval within 0-1, found 0\.8-0\.2"):
        Sampling(guidance_interval=(0.8, 0.2))


def test_a_weaker_model_is_led_away_from(pair, parts):
    strong, weak = pair
    one, other = estimator(strong, parts), estimator(weak, parts)
    want = by_hand(strong, lambda x, sigma: 2.5 * one(x, sigma) - 1.5 * other(x, sigma))
    before = strong.sample(parts, seeds=[5], options=SampleOptions(steps=6, guidance=2.5))
    strong.lead_away_from(weak)
    found = strong.sample(parts, seeds=[5], options=SampleOptions(steps=6, guidance=2.5))
    torch.testing.assert_close(found, want, atol=1e-4, rtol=0)
    assert (found - before).abs().max() > 0.01
    strong.lead_away_from(None)
    assert torch.equal(strong.sample(parts, seeds=[5], options=SampleOptions(steps=6, guidance=2.5)), before)


def test_a_model_led_away_from_itself_is_not_guided(pair, parts):
    strong, _ = pair
    strengths = {"palette": Strength(weight=0.5)}
    plain = strong.sample(Composition(parts=parts, strengths=strengths), options=SampleOptions(guidance=1.0))
    strong.lead_away_from(talkative(TINY))
    torch.testing.assert_close(
        strong.sample(Composition(parts=parts, strengths=strengths), options=SampleOptions(guidance=4.0)),
        plain,
        atol=1e-4,
        rtol=0,
    )


def test_what_cannot_be_led_away_from(pair, parts, eight):
    strong, weak = pair
    with pytest.raises(ValueError, match="stage base draws 16 px from palette, intensity, mask; found 16 px, caption"):
        strong.lead_away_from(eight)
    strong.lead_away_from(weak)
    with pytest.raises(ValueError, match="leave out one of them"):
        strong.sample(Composition(parts=parts.pick("palette"), away=parts.pick("intensity")))


def test_a_recipe_names_both_models(pair, parts, tmp_path):
    strong, weak = pair
    for name, model in (("strong", strong), ("weak", weak)):
        model.save(tmp_path / name)
    strong, weak = Cascade.load(tmp_path / "strong"), Cascade.load(tmp_path / "weak")
    strong.lead_away_from(weak)
    composition = Composition(parts=parts)
    made = recipe(strong, composition, 3, SampleOptions(steps=3, guidance_interval=(0.1, 0.9)))
    want = strong.sample(composition, [3], options=SampleOptions(steps=3, guidance_interval=(0.1, 0.9)))
    assert torch.equal(draw_recipe(strong, made), want)
    strong.lead_away_from(None)
    with pytest.raises(ValueError, match=r"drawn away from 'tiny' .* from nothing: give the former"):
        draw_recipe(strong, made)


def test_on_the_command_line(pair, tmp_path, capsys):
    strong, weak = pair
    strong.save(tmp_path / "strong")
    weak.save(tmp_path / "weak")
    model = ["--model", str(tmp_path / "strong")]
    words = ["compose", *model, "--palette", "#aa3311", "--steps", "3", "--guidance", "3"]
    options = ["--autoguidance", str(tmp_path / "weak"), "--guidance-interval", "0.1-0.9"]
    assert main([*words, *options, "--out", str(tmp_path / "out")]) == 0
    png = tmp_path / "out" / "compose_seed0.png"
    made = read_recipe(png)
    assert made["stages"]["base"]["guidance_interval"] == [0.1, 0.9] and made["autoguidance"]["name"] == "tiny"
    capsys.readouterr()
    redo = ["compose", *model, "--from-png", str(png), "--out", str(tmp_path / "again")]
    assert main([*redo, *options[:2]]) == 0 and "the same, bit for bit" in capsys.readouterr().out
    assert main(redo) == 1 and "give the former with --autoguidance" in capsys.readouterr().err
    pixels = {}
    for stage in ("base:guidance_interval=0.1-0.9", "base:guidance_interval=0.5-0.9"):
        assert main([*words, "--stage", stage, "--out", str(tmp_path / stage[-7:])]) == 0
        pixels[stage] = (tmp_path / stage[-7:] / "compose_seed0.png").read_bytes()
    assert len(set(pixels.values())) == 2
    capsys.readouterr()
    assert main([*words, "--guidance-interval", "0.5"]) != 0
    assert "expected LOW-HIGH within 0-1, such as 0.2-0.8, found '0.5'" in capsys.readouterr().err
