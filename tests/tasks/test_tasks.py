"""Compositions and the papers' tasks, against formulas by hand and closed forms."""

import inspect
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from composer import tasks
from composer.cascade.cascade import Cascade
from composer.cascade.options import SampleOptions
from composer.cascade.parts import Parts, lerp, slerp
from composer.cascade.stage import Sampling
from composer.cascade.start import InitialNoise, NoisyImage
from composer.data.datasets import SceneImages
from composer.diffusion.guidance import guide
from composer.diffusion.strength import Strength
from composer.evaluation.adherence import quantise
from composer.evaluation.best_of import best_of
from composer.evaluation.reading import Reading
from composer.images.sheet import to_pil
from composer.tasks.composition import Composition, Source, from_words, interpolate, require
from composer.tasks.editing import Frame, Original, open_region
from composer.tasks.recipe import parse_recipe, recipe
from composer.tasks.words import read_value
from tests.conftest import SIZE

MEAN, STD = 0.1, 0.1


@pytest.fixture
def gaussian(cascade, monkeypatch):
    """The tiny cascade with the exact denoiser of N(MEAN, STD^2), whatever the conditions."""

    def denoise(x, sigma, cond):
        s = sigma[:, None, None, None]
        return (STD**2 * x + s**2 * MEAN) / (STD**2 + s**2)

    monkeypatch.setattr(cascade.stages[0].denoiser, "forward", denoise)
    return cascade


def flow(x, sigma):
    """Where the probability flow of that Gaussian ends: it keeps the standard score."""
    return MEAN + (x - MEAN) * STD / math.sqrt(STD**2 + sigma**2)


@pytest.fixture
def pair(eight):
    scenes = SceneImages("val", 64, 2)
    rows = [scenes.row(i, 0) for i in range(2)]
    return [Source.of(eight, row["image"], row["caption"], f"picture {i}") for i, row in enumerate(rows)]


def test_slerp_by_hand():
    a, b = torch.tensor([[2.0, 0, 0]]), torch.tensor([[0, 4.0, 0]])
    turned = slerp(a, b, 1 / 3)  # 30 of 90 degrees, a third of the way from length 2 to 4
    length = 2 + 2 / 3
    torch.testing.assert_close(turned, length * torch.tensor([[math.cos(math.pi / 6), 0.5, 0]]))
    beyond = slerp(a, b, 2.0)
    torch.testing.assert_close(beyond, torch.tensor([[-6.0, 0, 0]]))


def test_slerp_ends_exactly_and_survives_special_cases():
    a, b = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    assert torch.equal(slerp(a, b, 0.0), a) and torch.equal(slerp(a, b, 1.0), b)
    torch.testing.assert_close(slerp(a, a * 3, 0.5), a * 2)  # the same direction: the length alone changes
    torch.testing.assert_close(slerp(a, -a, 0.25), a * 0.5)  # opposite: through the middle
    zero = torch.zeros_like(a)
    assert torch.equal(slerp(zero, zero, 0.3), zero)
    for between in (slerp, lerp):  # without the tests' own checks of shapes
        with pytest.raises(ValueError, match=r"the same shape.*found \(3, 4, 5\) and \(2, 4, 5\)"):
            inspect.unwrap(between)(a, b[:2], 0.5)


@pytest.mark.parametrize("away", [False, True])
def test_and_and_not_are_sums_of_estimates(cascade, away):
    parts = cascade.decompose({"image": torch.rand(4, 3, SIZE, SIZE) * 2 - 1}).drop("mask")
    asked, led, wanted, refused = (parts.row(i) for i in range(4))
    stage, x, sigma = cascade.stages[0], torch.randn(1, 3, SIZE, SIZE), torch.tensor([1.5])
    also = ((wanted, 3.0), (refused, -1.25))
    composition = Composition(parts=asked, away=led if away else None, also=also)
    terms = stage.terms(composition, {}, (SIZE, SIZE), Sampling(guidance=2.0))

    def estimate(reps):
        return stage.denoiser(x, sigma, stage.encode(reps, (SIZE, SIZE)))

    left = 1 - 2.0 - 3.0 + 1.25
    by_hand = 2 * estimate(asked) + 3 * estimate(wanted) - 1.25 * estimate(refused)
    by_hand = by_hand + left * estimate(led if away else {})
    torch.testing.assert_close(guide(stage.denoiser, terms)(x, sigma), by_hand, atol=1e-4, rtol=1e-4)


def test_guidance_within_a_region_does_not_lead_away_from_what_is_kept(eight, pair):
    a, b = pair
    original = Original(to_pil(a.image[0]), a.image[0])
    frame = Frame.around(original, open_region("0.25,0,0.75,1", (SIZE, SIZE)))
    mask = frame.restrict(eight, Composition()).parts.pick("mask")
    asked = b.pick("palette")
    also = from_words(eight, "caption", "a red cube").parts
    made = frame.restrict(eight, replace(asked, also=((also, 3.0),)))
    stage, x, sigma = eight.stages[0], torch.randn(1, 3, SIZE, SIZE), torch.tensor([1.5])

    def estimate(reps):
        return stage.denoiser(x, sigma, stage.encode(reps, (SIZE, SIZE)))

    terms = stage.terms(made, {}, (SIZE, SIZE), Sampling(guidance=2.0))
    by_hand = 2 * estimate(asked.parts | mask) + 3 * estimate(also | mask) - 4 * estimate(mask)
    torch.testing.assert_close(guide(stage.denoiser, terms)(x, sigma), by_hand, atol=1e-4, rtol=1e-4)
    alone = frame.restrict(eight, Composition())
    how = Sampling(guidance=7.0)
    (term,) = stage.terms(alone, {}, (SIZE, SIZE), how)  # both sides are the same: one estimate
    assert term.weight(1.5) == 1


def test_an_image_to_start_from_flows_as_a_gaussian_does(gaussian):
    image = torch.randn(1, 3, SIZE, SIZE) * STD + MEAN
    noise = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5))
    time = 0.4
    sigma = math.tan(math.pi / 2 * time)
    got = gaussian.sample(
        Composition(start=NoisyImage(image, time)), seeds=[5], options=SampleOptions(steps=300, sampler="heun")
    )
    torch.testing.assert_close(got, flow(image + sigma * noise, sigma).clamp(-1, 1), atol=5e-3, rtol=0)


def test_little_noise_gives_the_start_back_and_full_noise_forgets_it(gaussian):
    image = torch.randn(1, 3, SIZE, SIZE) * STD + MEAN
    near = gaussian.sample(Composition(start=NoisyImage(image, 1e-4)))
    torch.testing.assert_close(near, image, atol=2e-3, rtol=0)
    far = gaussian.sample(Composition(start=NoisyImage(image, 1.0)), options=SampleOptions(steps=100))
    torch.testing.assert_close(far, gaussian.sample({}, options=SampleOptions(steps=100)), atol=0.01, rtol=0)


def test_where_a_drawing_begins_is_said_once(cascade):
    image = torch.zeros(1, 3, SIZE, SIZE)
    with pytest.raises(ValueError, match=r"a time in \(0, 1\], found 1.5"):
        cascade.sample(Composition(start=NoisyImage(image, 1.5)))
    with pytest.raises(ValueError, match=r"initial noise of shape \(3, 16, 16\), found \(3, 8, 8\)"):
        cascade.sample(Composition(start=InitialNoise(torch.zeros(1, 3, 8, 8))))
    with pytest.raises(ValueError, match="1 or 3 rows"):
        cascade.sample(Composition(start=InitialNoise(torch.zeros(2, 3, SIZE, SIZE))), seeds=[0, 1, 2])


def test_a_latent_belongs_to_its_model(cascade, eight):
    latent = cascade.invert(torch.zeros(1, 3, SIZE, SIZE), {}, steps=2)
    with pytest.raises(ValueError, match="found by another model"):
        eight.sample(Composition(start=latent))
    with pytest.raises(ValueError, match="of different models"):
        latent.interpolate(InitialNoise(latent.noise, eight.identity), 0.5)
    halfway = latent.interpolate(InitialNoise(-2 * latent.noise, cascade.identity), 1.0)
    assert torch.equal(halfway.noise, -2 * latent.noise)


def test_the_shipped_model_gives_a_picture_back():
    model = Cascade.load("scenes256")
    image = SceneImages("val", 64, 1).row(0, 0)["image"][None]
    parts = model.decompose({"image": image}).pick("semantics", "sketch", "palette")
    latent = model.invert(image, parts, steps=20)
    how = SampleOptions(steps=20, sampler="heun", guidance=1.0, until="base")
    back = model.sample(Composition(parts=parts, start=latent), seeds=[0], options=how)
    decibels = 10 * torch.log10(4 / (back - image).square().mean((1, 2, 3)))
    assert decibels.min() > 35


def test_interpolations_end_at_their_sources(eight, pair):
    a, b = pair
    found = tasks.interpolations(eight, a, b, 3, keep=["sketch"])
    assert [label for label, _ in found] == ["0.00", "0.50", "1.00"]
    for source, (_, end) in zip((a, b), (found[0], found[-1]), strict=True):
        own = source.pick("semantics", "palette") | a.pick("sketch")
        assert torch.equal(
            eight.sample(end, [3], options=SampleOptions(steps=2)),
            eight.sample(own, [3], options=SampleOptions(steps=2)),
        )
    middle = found[1][1].parts
    torch.testing.assert_close(middle["palette"], (a.has.parts["palette"] + b.has.parts["palette"]) / 2)
    torch.testing.assert_close(middle["semantics"].norm(), a.has.parts["semantics"].norm())
    with pytest.raises(ValueError, match="Sketch cannot interpolate between two representations"):
        tasks.interpolations(eight, a, b, 3, between=["sketch"])
    with pytest.raises(ValueError, match="at least 2 pictures"):
        tasks.interpolations(eight, a, b, 1)
    with pytest.raises(ValueError, match="the same representations at both ends"):
        interpolate(eight, a.pick("palette"), b.pick("semantics"), 0.5)


def test_interpolated_latents_end_at_their_sources(eight, pair):
    found = tasks.interpolations(eight, pair[0], pair[1], 2, latents=True, steps=2)
    for source, (_, end) in zip(pair, found, strict=True):
        own = eight.invert(source.image, source.pick("semantics", "palette").parts, 2)
        assert torch.equal(end.start.noise, own.noise)


def test_a_text_difference_turns_the_semantics(eight, pair):
    found = tasks.text_difference(eight, pair[0], "a red cube", "a blue cube", [0.0, 1.0], ["palette"], steps=2)
    still, turned = (composition for _, composition in found)
    z = pair[0].has.parts["semantics"]
    assert torch.equal(still.parts["semantics"], z) and torch.equal(turned.start.noise, still.start.noise)
    before, after = (
        from_words(eight, "semantics", f"a {colour} cube").parts["semantics"] for colour in ("red", "blue")
    )
    towards = (after - before) / (after - before).norm() * z.norm()
    torch.testing.assert_close(turned.parts["semantics"], towards)
    assert set(turned.parts) == {"semantics", "palette"} and turned.options.guidance == 1
    with pytest.raises(ValueError, match="two captions that differ"):
        tasks.text_difference(eight, pair[0], "a cube", "a cube", [0.1], steps=1)


def test_components_by_hand(eight, pair):
    z = pair[0].has.parts["semantics"]
    basis = torch.linalg.qr(torch.randn(128, 128, dtype=torch.float64))[0].float().T
    mean = torch.randn(128) * 0.1
    found = dict(tasks.truncated(eight, pair[0], mean, basis, [0, 2, 128], keep=["palette"]))
    torch.testing.assert_close(found["128"].parts["semantics"], z, atol=1e-4, rtol=1e-4)
    two = mean + ((z - mean) @ basis[0]) * basis[0] + ((z - mean) @ basis[1]) * basis[1]
    torch.testing.assert_close(found["2"].parts["semantics"][0], two / two.norm() * z.norm(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found["0"].parts["semantics"], mean[None] / mean.norm() * z.norm())
    assert set(found["2"].parts) == {"semantics", "palette"}
    with pytest.raises(ValueError, match="width 64 and 0 to 9 components, found width 128 and 10"):
        tasks.truncated(eight, pair[0], torch.zeros(64), torch.zeros(9, 64), [10])


def test_variations_from_the_latent(eight, pair):
    still = tasks.variations(eight, pair[0], ["palette"], eta=0.0, steps=25)
    assert (eight.sample(still, [0]) - pair[0].image).square().mean() < 1e-3
    varied = tasks.variations(eight, pair[0], ["palette"], eta=1.0, steps=5)
    assert (eight.sample(varied, [0]) - eight.sample(varied, [1])).square().mean() > 1e-3
    assert eight.ignores_seeds(still) and not eight.ignores_seeds(varied)
    assert eight.ignores_seeds(varied, SampleOptions(eta=0.0))
    with pytest.raises(ValueError, match=r"fresh noise in \[0, 1\], found 2"):
        tasks.variations(eight, pair[0], ["palette"], eta=2.0)


def test_a_reconfiguration_leads_from_what_was_to_what_is_to_be(eight, pair):
    a, b = pair
    made = tasks.reconfigure(eight, a, b.pick("sketch"), ["palette", "sketch"], steps=3)
    assert set(made.parts) == set(made.away) == {"palette", "sketch"}
    assert torch.equal(made.parts["sketch"], b.has.parts["sketch"])
    assert torch.equal(made.away["sketch"], a.has.parts["sketch"])
    assert torch.equal(made.start.noise, eight.invert(a.image, made.away, 3).noise)
    every = tasks.reconfigure(eight, a, b.pick("depth"), steps=1)
    assert set(every.parts) == set(eight.names) - {"mask"}
    unchanged = tasks.reconfigure(eight, a, a.pick("palette"), ["sketch"], steps=25)
    assert (eight.sample(unchanged, [0]) - a.image).square().mean() < 1e-3  # c2 = c1: any guidance gives it back


def test_colours_pass_from_palette_to_palette(eight, pair):
    red, blue = (from_words(eight, "palette", colour) for colour in ("#ff0000", "#0000ff"))
    found = tasks.colorize(eight, pair[0], [red, blue, red], 2)
    shares = [composition.parts["palette"] for _, composition in found]
    assert len(found) == 5 and torch.equal(shares[2], blue.parts["palette"])
    torch.testing.assert_close(shares[1], (red.parts["palette"] + blue.parts["palette"]) / 2)
    assert all(set(composition.parts) == {"intensity", "palette"} for _, composition in found)


def test_styles_by_strength(eight, pair):
    content, style = pair
    none = tasks.style_transfer(eight, content, style, 0.0)
    full = tasks.style_transfer(eight, content, style, 1.0)
    for name in tasks.GLOBAL:
        assert torch.equal(none.parts[name], content.has.parts[name])
        assert torch.equal(full.parts[name], style.has.parts[name])
    assert torch.equal(full.parts["depth"], content.has.parts["depth"])


def test_what_a_model_lacks_is_named(cascade, eight, pair):
    with pytest.raises(KeyError, match=r"colorization needs sketch.*it has palette, intensity, mask"):
        require(cascade, "palette", "sketch", task="colorization")
    with pytest.raises(KeyError, match="try-on needs semantics"):
        tasks.try_on(cascade, *pair)
    with pytest.raises(KeyError, match="this needs caption"):
        tasks.text_to_image(cascade, "a red cube")
    with pytest.raises(ValueError, match="Sketch reads images"):
        from_words(eight, "sketch", "a red cube")


def test_compositions_combine_name_by_name(eight, pair):
    a, b = pair
    weak = replace(
        a.pick("palette", "sketch"), strengths={"palette": Strength(weight=0.5), "sketch": Strength(weight=0.2)}
    )
    both = weak | b.pick("palette")
    assert torch.equal(both.parts["palette"], b.has.parts["palette"]) and set(both.strengths) == {"sketch"}
    assert both.sources == {"sketch": "picture 0", "palette": "picture 1"} and set(both.wanted) == {"sketch", "palette"}
    assert set(both.drop("sketch").strengths) == set() and set(both.pick("sketch").parts) == {"sketch"}
    with pytest.raises(KeyError, match="no palette among these parts"):
        a.pick("sketch").pick("palette")


def test_a_prior_draws_for_each_seed(eight):
    def drawn(seeds):
        return Parts(semantics=torch.stack([torch.full((128,), float(seed)) for seed in seeds]))

    composition = Composition(draw_parts=drawn)
    pictures = eight.sample(composition, [4, 5], options=SampleOptions(steps=2))
    alone = eight.sample(composition, [5], options=SampleOptions(steps=2))
    torch.testing.assert_close(pictures[1:], alone)
    found = best_of(eight, composition, [4, 5], 1, options=SampleOptions(steps=2))
    assert [float(one.parts["semantics"][0, 0]) for one in found.compositions] == [4, 5]


def test_the_best_of_several(eight, pair):
    asked = pair[0].pick("palette", "sketch")
    one = best_of(eight, asked, [7], 1, options=SampleOptions(steps=2))
    assert torch.equal(one.images, eight.sample(asked, [7], options=SampleOptions(steps=2))) and one.seeds == [7]
    found = best_of(eight, asked, [2, 3], 4, options=SampleOptions(steps=2))
    drawn = torch.cat(
        [eight.sample(asked, range(first, first + 4), options=SampleOptions(steps=2)) for first in (8, 12)]
    )
    scores = torch.stack(list(Reading(eight, quantise(drawn)).closed(asked.wanted).values())).mean(0).view(2, 4)
    torch.testing.assert_close(found.scores, scores, atol=1e-3, rtol=0)
    assert found.seeds == [8 + int(found.scores[0].argmax()), 12 + int(found.scores[1].argmax())]
    torch.testing.assert_close(found.images, drawn[[seed - 8 for seed in found.seeds]], atol=1e-4, rtol=0)


def test_weights_choose(eight, pair):
    asked = pair[0].pick("palette", "intensity", "semantics")
    scores = Reading(eight, eight.sample(asked, range(8), options=SampleOptions(steps=2))).closed(asked.wanted)
    chosen = {}
    for name in ("palette", "semantics"):
        weights = {other: float(other == name) for other in asked.parts}
        (chosen[name],) = best_of(eight, asked, [0], 8, weights, options=SampleOptions(steps=2)).seeds
        assert chosen[name] == int(scores[name].argmax())
    assert chosen["palette"] != chosen["semantics"]
    for weights, n, error, says in [
        (
            {"depth": 1.0},
            2,
            KeyError,
            "no depth among what was asked and can be measured: semantics, palette, intensity",
        ),
        (dict.fromkeys(asked.parts, 0.0), 2, ValueError, "nothing to choose by"),
        ({"palette": 1.0}, 1, ValueError, "the best of at least 2, found 1"),
        ({}, 0, ValueError, "the best of at least 1, found 0"),
    ]:
        with pytest.raises(error, match=says):
            best_of(eight, asked, [0], n, weights)
    with pytest.raises(ValueError, match="begin with the same noise"):
        best_of(
            eight,
            replace(asked, start=InitialNoise(torch.zeros(1, 3, SIZE, SIZE))),
            [0],
            2,
            options=SampleOptions(sampler="euler"),
        )


@pytest.mark.parametrize(
    ("name", "text", "value", "weight", "interval", "place"),
    [
        ("palette", "A:0.7", "A", 0.7, (0, 1), False),
        ("palette", "A@0.2-0.8", "A", 1, (0.2, 0.8), False),
        ("palette", "A:M", "A", 1, (0, 1), True),
        ("palette", "A:0,0,0.5,1", "A", 1, (0, 1), True),
        ("sketch", "A:.5@0.2-1:M", "A", 0.5, (0.2, 1), True),
        ("palette", "#aa3311 0.6:0.5", "#aa3311 0.6", 0.5, (0, 1), False),
        ("palette", "#aa3311:0.6,#eeddcc:0.4", None, None, None, None),
        ("palette", "#aa3311:0.6", None, None, None, None),
        ("caption", "a red cube:1.5", "a red cube", 1.5, (0, 1), False),
        ("caption", "a clock: a red cube", None, None, None, None),
        ("caption", "a clock at 10:30", None, None, None, None),
        ("caption", "a 16:9 picture by M.Weber", None, None, None, None),
    ],
)
def test_strengths_on_the_command_line(eight, photos, tmp_path, name, text, value, weight, interval, place):
    torch.manual_seed(0)
    mask = tmp_path / "mask.png"
    Image.fromarray(np.asarray(Image.open(photos[1]))[..., 0]).save(mask)

    def full(text):
        return text.replace("A", photos[0]).replace(":M", f":{mask}") if text and text.startswith("A") else text

    found = read_value(eight, name, full(text))
    plain = read_value(eight, name, full(value) or full(text))
    assert torch.equal(found.parts[name], plain.parts[name])
    if value is None:
        assert found.strengths == {} and found.sources == {name: text}
    else:
        strength = found.strengths[name]
        assert (strength.weight, strength.interval) == (weight, interval)
        assert (strength.region is not None) == place and found.sources == plain.sources


def test_a_recipe_restores_everything(eight, pair):
    a, b = pair
    region = torch.zeros(1, 1, 8, 8)
    region[..., :4] = 1
    given = Composition(
        parts=a.has.parts.pick("palette", "sketch"),
        wanted=a.has.wanted.pick("palette", "caption"),
        sources={"palette": "sha256:0", "caption": "a red cube"},
        strengths={"palette": Strength(weight=0.5, interval=(0.25, 0.75), region=region)},
        away=b.has.parts.pick("palette"),
        also=((b.has.parts.pick("caption", "sketch"), -1.5),),
    )
    for start in (eight.invert(a.image, {}, 2), NoisyImage(b.image, 0.6)):
        made = recipe(eight, replace(given, start=start), 11, SampleOptions(steps=3))
        redo = parse_recipe(eight, made)
        back = redo.composition
        assert redo.seed == 11 and redo.options.stages["base"]["steps"] == 3
        for field in ("parts", "wanted", "away"):
            before, after = getattr(given, field), getattr(back, field)
            assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)
        assert back.sources == given.sources and back.also[0][1] == -1.5
        assert all(torch.equal(back.also[0][0][n], v) for n, v in given.also[0][0].items())
        strength = back.strengths["palette"]
        assert (strength.weight, strength.interval) == (0.5, (0.25, 0.75)) and torch.equal(strength.region, region)
        if isinstance(start, InitialNoise):
            assert torch.equal(back.start.noise, start.noise)
        else:
            assert torch.equal(back.start.image, b.image) and back.start.time == 0.6
        with_begin = replace(given, start=start)
        assert torch.equal(
            eight.sample(back, [11], redo.options), eight.sample(with_begin, [11], options=SampleOptions(steps=3))
        )


def test_a_condition_of_a_file_is_read_alone(eight, photos, monkeypatch):
    whole = Source.open(eight, photos[0]).pick("palette")

    def refuse(batch):
        raise AssertionError("nobody asked for this")

    for named in (eight.decomposition.named(), eight.readers.named()):
        for name, decomposer in named:
            if name != "palette":
                monkeypatch.setattr(decomposer, "forward", refuse)
    alone = read_value(eight, "palette", photos[0])
    assert set(alone.parts) == set(alone.wanted) == {"palette"} and alone.sources == whole.sources
    assert torch.equal(alone.parts["palette"], whole.parts["palette"])
    assert torch.equal(alone.wanted["palette"], whole.wanted["palette"])
