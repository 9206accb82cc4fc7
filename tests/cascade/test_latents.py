"""Stages that work on the latents of a codec, on tiny untrained models."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from composer import Cascade, Composition, NoisyImage, SampleOptions
from composer.cascade.parts import Parts
from composer.cascade.start import InitialNoise, Kept
from composer.images.sheet import read_recipe, to_pil
from composer.networks.autoencoder import Autoencoder
from composer.networks.codec import Pixels
from composer.tasks.editing import edit, open_region
from composer.tasks.recipe import draw_recipe
from tests.conftest import SIZE, TINY, diffusion, talkative

PLAN = {"channels": 4, "width": 8, "multipliers": [1, 2], "blocks": 1, "groups": 4, "scale": 0.5}


def with_codec(plan=PLAN, channels=4, **changes):
    spec = copy.deepcopy(TINY)
    stage = spec["stages"][0]
    stage["codec"] = {"class_path": "composer.networks.autoencoder.Autoencoder", "init_args": {**PLAN, **plan}}
    stage["denoiser"]["init_args"]["network"]["init_args"] |= {"channels": channels}
    stage.update(changes)
    return spec


class Halved(Pixels):
    """Space to depth: an exact codec of factor 2, whose latents are pixels in another order."""

    channels, factor = 12, 2

    def encode(self, images, noise=None):
        return torch.nn.functional.pixel_unshuffle(images, 2)

    def decode(self, latents):
        return torch.nn.functional.pixel_shuffle(latents, 2)


@pytest.fixture(scope="module")
def latent():
    return talkative(with_codec())


@pytest.fixture
def images():
    return torch.rand(2, 3, SIZE, SIZE) * 2 - 1


def test_the_stage_draws_latents_and_gives_images(latent, images):
    parts = latent.decompose({"image": images[:1]})
    drawn = latent.sample(parts, seeds=[1, 2])
    assert drawn.shape == (2, 3, SIZE, SIZE) and drawn.abs().max() <= 1
    assert not torch.equal(drawn, latent.sample(parts.drop("palette"), seeds=[1, 2]))
    assert torch.allclose(drawn[1:], latent.sample(parts, seeds=[2]), atol=1e-5)
    codec = latent.stages[0].codec
    x, _ = latent.stages[0].start(None, [2], (SIZE, SIZE), 4, latent.stages[0].encode({}, (SIZE, SIZE)))
    assert x.shape == (1, codec.channels, SIZE // 2, SIZE // 2)
    large = latent.sample(parts, seeds=[1], options=SampleOptions(size=(2 * SIZE, SIZE)))
    assert large.shape == (1, 3, 2 * SIZE, SIZE)


def test_pixels_as_a_codec_are_a_stage_without_one(cascade, images):
    spec = copy.deepcopy(TINY)
    spec["stages"][0]["codec"] = {"class_path": "composer.networks.codec.Pixels"}
    twin = Cascade.from_spec(spec)
    twin.stages[0].weights().load_state_dict(cascade.stages[0].weights().state_dict())
    parts = cascade.decompose({"image": images})
    starts = [None, NoisyImage(images, 0.5)]
    for start in starts:
        asked = Composition(parts=parts, start=start)
        assert torch.equal(cascade.sample(asked, seeds=[1, 2]), twin.sample(asked, seeds=[1, 2]))
    noises = [model.invert(images, parts, steps=3).noise for model in (cascade, twin)]
    assert torch.equal(*noises)


def test_what_the_network_sees_and_what_is_given_go_through_the_codec(images):
    """With an exact codec and a network that has learnt nothing, all that is left of a picture is computed by hand."""
    spec = with_codec(channels=12)
    spec["stages"][0]["codec"] = {"class_path": "tests.cascade.test_latents.Halved"}
    model = Cascade.from_spec(spec, plugins=["tests.cascade.test_latents"])  # its last layer is 0: F = 0
    x = diffusion(model).codec.encode(images)
    estimate = diffusion(model).denoiser(x, torch.full((2,), 0.3), diffusion(model).encode({}, (SIZE, SIZE)))
    assert torch.allclose(estimate, x * 0.25 / (0.25 + 0.09))
    noise = model.invert(images, Parts(), steps=8)
    assert noise.noise.shape == (2, 12, SIZE // 2, SIZE // 2)
    asked = Composition(start=noise, options=SampleOptions(steps=8, sampler="heun", guidance=1.0))
    plain = Cascade.from_spec(TINY)
    by_pixels = plain.invert(images, Parts(), steps=8)
    assert torch.allclose(diffusion(model).codec.decode(noise.noise), by_pixels.noise, atol=1e-6)
    again = Composition(start=by_pixels, options=asked.options)
    assert torch.allclose(model.sample(asked, seeds=[0, 1]), plain.sample(again, seeds=[0, 1]), atol=1e-5)


def test_inversion_comes_back_to_what_the_codec_keeps(latent, images):
    parts = latent.decompose({"image": images[:1]}).pick("palette")
    noise = latent.invert(images[:1], parts, steps=24)
    options = SampleOptions(steps=24, sampler="heun", guidance=1.0)
    back = latent.sample(Composition(parts=parts, start=noise, options=options))
    codec = latent.stages[0].codec
    kept = codec.decode(codec.encode(images[:1])).clamp(-1, 1)
    other = latent.sample(Composition(parts=parts, options=options))
    assert (back - kept).abs().mean() < 0.05 * (other - kept).abs().mean()


def test_a_late_start_keeps_what_the_codec_keeps(latent, images):
    codec = latent.stages[0].codec
    kept = codec.decode(codec.encode(images)).clamp(-1, 1)
    drawn = latent.sample(Composition(start=NoisyImage(images, 1e-3)), seeds=[0, 1])
    assert (drawn - kept).abs().max() < 0.02


def test_nothing_outside_the_region_changes(latent, tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "picture.png"
    Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(path)
    region = open_region("10,5,30,25", (40, 60))
    (after,) = edit(latent, path, region, Parts(), keep=["intensity"])
    before, outside = np.asarray(Image.open(path)), region[0, 0].numpy() == 0
    assert (np.asarray(after)[outside] == before[outside]).all()
    assert (np.asarray(after)[~outside] != before[~outside]).mean() > 0.4


def test_the_kept_part_is_held_in_the_latents_too(latent, images):
    """Latents that cover a free pixel or border on it are free; the others are the picture's own."""
    where = torch.ones(1, 1, SIZE, SIZE)
    where[..., 3, 5] = 0
    stage = latent.stages[0]
    asked = Composition(kept=Kept(images[:1], where))
    denoise = stage.denoise(asked, {}, (SIZE, SIZE), stage.sampling)
    x = torch.randn(1, 4, SIZE // 2, SIZE // 2)
    same = (denoise(x, torch.ones(1)) == stage.codec.encode(images[:1])).all(1)[0]
    assert not same[1:3, 2:4].any() and same.sum() == same.numel() - 4


def test_a_recipe_with_initial_latents_draws_the_picture_again(latent, images, tmp_path):
    folder = tmp_path / "model"
    latent.save(folder)
    model = Cascade.load(folder)
    parts = model.decompose({"image": images[:1]}).pick("palette")
    asked = Composition(parts=parts, start=model.invert(images[:1], parts, steps=3))
    drawn = model.sample(asked, seeds=[5])
    unbound = Composition(parts=parts, start=InitialNoise(asked.start.noise))
    assert torch.equal(drawn, latent.sample(unbound, seeds=[5]))
    drawn.save(tmp_path / "out.png")
    again = draw_recipe(model, read_recipe(tmp_path / "out.png"))
    assert to_pil(again[0]).tobytes() == to_pil(drawn[0]).tobytes()


def test_saved_and_loaded_the_autoencoder_lies_in_the_stages_file(latent, tmp_path):
    latent.save(tmp_path / "model")
    loaded = Cascade.load(tmp_path / "model")
    own, found = diffusion(latent).codec, diffusion(loaded).codec
    assert isinstance(own, Autoencoder) and isinstance(found, Autoencoder)
    assert isinstance(found, Autoencoder) and found.arguments() == own.arguments()
    assert all(torch.equal(x, found.state_dict()[name]) for name, x in own.state_dict().items())
    assert not any(p.requires_grad for p in found.parameters()) and not found.training


def test_codecs_that_do_not_fit_are_refused(latent, cascade):
    with pytest.raises(ValueError, match="latents have 4 channels, the network's images 3"):
        Cascade.from_spec(with_codec(channels=3))
    with pytest.raises(ValueError, match=r"divides sides by 16, .* multiples of 32, found 16 px"):
        Cascade.from_spec(with_codec({"multipliers": [1] * 5}))
    with pytest.raises(ValueError, match="expected the name of a Codec"):
        Cascade.from_spec(with_codec(codec=TINY["decomposers"]["palette"]))
    with pytest.raises(ValueError, match=r"same latents: expected .*\(4, 2, 0\.5\), found \(4, 4, 0\.5\)"):
        latent.lead_away_from(Cascade.from_spec(with_codec({"multipliers": [1, 1, 1]})))
    spec = with_codec()
    spec["stages"][0]["denoiser"]["init_args"]["residual"] = 0.3
    with pytest.raises(ValueError, match="residual is of pixels"):
        Cascade.from_spec(spec)
    weights = {"base.safetensors": latent.stages[0].weights().state_dict()}
    with pytest.raises(ValueError, match="do not belong to this configuration"):
        Cascade.from_weights(with_codec({"multipliers": [1, 1]}), weights)


def test_what_latents_have_not_is_refused_before_drawing(latent, cascade, images):
    with pytest.raises(ValueError, match="have no bounds: leave out the percentile"):
        latent.sample(options=SampleOptions(percentile=0.99))
    with pytest.raises(ValueError, match="multiples of 4 pixels"):
        latent.sample(options=SampleOptions(size=(SIZE, SIZE + 2)))
    with pytest.raises(ValueError, match=r"side is a multiple of 4 pixels, found 7"):
        latent.sample(options=SampleOptions(tile=7))
    noise = cascade.invert(images[:1], Parts(), steps=2)
    with pytest.raises(ValueError, match=r"expected initial noise of shape \(4, 8, 8\), found \(3, 16, 16\)"):
        latent.sample(Composition(start=InitialNoise(noise.noise)))


def test_tiles_are_decoded_as_the_whole_is(latent, monkeypatch):
    """With tiles the network's latents differ a little; from the same latents come the same pictures."""
    parts = latent.decompose({"image": torch.rand(1, 3, SIZE, SIZE) * 2 - 1}).pick("palette")
    decoded, codec = [], latent.stages[0].codec

    def decode(x, tile):
        decoded.append((x, tile))
        return Autoencoder.decode_in_tiles(codec, x, tile)

    monkeypatch.setattr(codec, "decode_in_tiles", decode)
    options = SampleOptions(size=(2 * SIZE, 3 * SIZE), tile=SIZE)
    drawn = latent.sample(parts, options=options)
    ((x, tile),) = decoded
    assert tile == SIZE and x.shape[2:] == (SIZE, 3 * SIZE // 2)
    torch.testing.assert_close(drawn, codec.decode(x).clamp(-1, 1), rtol=0, atol=1e-4)
