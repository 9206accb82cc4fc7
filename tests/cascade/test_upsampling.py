"""Stages that enlarge: corruption of the smaller image, its condition, and cascades of several stages."""

import copy
import json
import math
from typing import Any

import pytest
import torch

from composer.__main__ import main
from composer.cascade.assembling import from_run
from composer.cascade.cascade import Cascade
from composer.cascade.low_res import GaussianBlur, GaussianNoise, LowRes, shrink
from composer.cascade.options import SampleOptions
from composer.cascade.parts import Parts
from composer.cascade.start import SmallImage
from composer.conditioning import Conditioning, ConditionSet
from composer.data.datasets import Crops, SceneImages
from composer.diffusion.denoiser import Denoiser, LogNormal
from composer.evaluation.adherence import quantise
from composer.evaluation.best_of import best_of
from composer.evaluation.reading import Reading
from composer.evaluation.report import report
from composer.images.reading import load_rgb
from composer.images.sheet import read_recipe, save_png
from composer.networks.unet import UNet
from composer.storage.building import build
from composer.tasks.composition import Composition
from composer.tasks.editing import Original, edit
from composer.tasks.recipe import draw_recipe, recipe
from conditions import LowRes as LowResCondition
from conditions import Spatial
from tests.conftest import SIZE, TINY

UP: dict[str, Any] = {
    "file": "up64.safetensors",
    "size": 4 * SIZE,
    "denoiser": {
        "class_path": "composer.diffusion.denoiser.Denoiser",
        "init_args": {
            "network": {
                "class_path": "composer.networks.unet.UNet",
                "init_args": {
                    "width": 16,
                    "multipliers": [1, 2],
                    "blocks": 1,
                    "attention": [],
                    "vector_dim": 32,
                    "token_dim": 0,
                    "spatial_dim": 3,
                    "first_stride": 2,
                },
            },
            "noise": {"class_path": "composer.diffusion.denoiser.LogNormal"},
        },
    },
    "conditions": {"low_res": {"class_path": "conditions.LowRes", "init_args": {"vector_dim": 32}}},
    "low_res": {
        "class_path": "composer.cascade.low_res.LowRes",
        "init_args": {"corruption": {"class_path": "composer.cascade.low_res.GaussianNoise"}},
    },
    "sampling": {"steps": 3, "guidance": 1.0},
}


@pytest.fixture(scope="module")
def two():
    """A base of 16 px and an upsampler to 64 px."""
    torch.manual_seed(0)
    made = Cascade.from_spec({**TINY, "name": "two", "stages": [*TINY["stages"], UP]})
    with torch.no_grad():
        for stage in made.stages:
            for parameter in stage.weights().parameters():
                parameter.add_(torch.randn_like(parameter) * 0.02)
    return made


def palette(cascade, b=1):
    return cascade.decompose({"image": torch.rand(b, 3, SIZE, SIZE) * 2 - 1}).pick("palette")


def test_noise_is_variance_preserving():
    flat = torch.full((2, 3, 64, 64), 0.5)
    out = GaussianNoise().corrupt(flat, torch.tensor([0.0, 0.2]), [1, 2])
    assert torch.equal(out[0], flat[0])
    angle = 0.2 * math.pi / 2
    assert out[1].mean() == pytest.approx(0.5 * math.cos(angle), abs=0.02)
    assert out[1].std() == pytest.approx(math.sin(angle), rel=0.03)
    assert torch.equal(out[1], GaussianNoise().corrupt(flat[:1], torch.tensor([0.2]), [2])[0])  # the seed alone counts


def test_blur_is_scipys():
    from scipy.ndimage import correlate

    image = torch.rand(1, 3, 9, 9)
    line = torch.exp(torch.tensor([-1.0, 0.0, -1.0]) / (2 * 0.6**2))
    kernel = torch.outer(line, line) / line.sum() ** 2
    expected = torch.from_numpy(correlate(image[0, 1].numpy(), kernel.numpy(), mode="nearest"))
    out = GaussianBlur().corrupt(image, torch.ones(1), [0])
    torch.testing.assert_close(out[0, 1], expected)
    half = GaussianBlur().corrupt(image, torch.full((1,), 0.5), [0])
    torch.testing.assert_close(half, (image + out) / 2)


def test_training_draws_levels_evenly_from_the_samples_seeds():
    batch = {"image": torch.zeros(512, 3, 8, 8), "seed": torch.arange(512)}
    value = LowRes(GaussianNoise(highest=0.5))(batch)
    assert value.shape == (512, 4, 2, 2)
    levels = value[:, 3, 0, 0]
    assert levels.min() >= 0 and levels.max() <= 0.5 and levels.mean() == pytest.approx(0.25, abs=0.02)
    rows = {"image": batch["image"][7:9], "seed": batch["seed"][7:9]}
    assert torch.equal(LowRes(GaussianNoise(highest=0.5))(rows), value[7:9])
    clean = LowRes(GaussianNoise())({"image": batch["image"]})
    assert not clean.any()


def test_small_images_average_large_ones():
    ramp = torch.linspace(-0.9, 0.9, 64).expand(1, 3, 64, 64)
    small = shrink(ramp, 4)
    torch.testing.assert_close(small[..., 2:-2], ramp.unfold(3, 4, 4).mean(-1)[..., ::4, 2:-2], atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match="multiples of 4, found 18 x 16"):
        shrink(torch.zeros(1, 3, 16, 18), 4)


@pytest.mark.parametrize(("corruption", "level"), [(GaussianNoise(), 1.5), (None, 0.1)])
def test_levels_that_cannot_be(corruption, level):
    with pytest.raises(ValueError, match="expected augmentation levels in"):
        LowRes(corruption).corrupt(torch.zeros(1, 3, 4, 4), level, [0])


def test_the_condition_hands_on_the_enlarged_image_and_its_level():
    value = torch.cat([torch.rand(2, 3, 4, 4), torch.full((2, 1, 4, 4), 0.3)], 1)
    keep = torch.tensor([True, False])
    cond = LowResCondition(vector_dim=8)(value, keep, (16, 16))
    expected = torch.nn.functional.interpolate(value[:1, :3], (16, 16), mode="bilinear")
    assert torch.equal(cond.spatial[:1], expected) and not cond.spatial[1].any()
    assert cond.vector[0].any() and not cond.vector[1].any()
    assert LowResCondition()(value, keep, (16, 16)).vector is None
    assert LowResCondition(spatial_dim=5)(value, keep, (16, 16)).spatial.shape == (2, 5, 16, 16)


def test_joint_dropout_spares_it():
    conditions = ConditionSet({"low_res": LowResCondition(), "sketch": Spatial(1, 3)}, drop_all=0.5, keep_all=0.1)
    keep = conditions.draw_keep(200, torch.device("cpu"))
    assert keep["low_res"].all() and 0 < int(keep["sketch"].sum()) < 150
    only = conditions.keep_only([], 3, torch.device("cpu"))
    assert only["low_res"].all() and not only["sketch"].any()


def test_crops_are_cut_where_the_seed_says():
    scenes = SceneImages("val", 32, 2)
    crops, whole = Crops(scenes, 8), scenes.row(1, 5)
    row = crops.row(1, 5)
    assert row["image"].shape == (3, 8, 8) and row["depth"].shape == (1, 8, 8) and row["caption"] == whole["caption"]
    found = [
        (y, x)
        for y in range(25)
        for x in range(25)
        if torch.equal(whole["image"][:, y : y + 8, x : x + 8], row["image"])
    ]
    assert len(found) == 1
    y, x = found[0]
    assert torch.equal(row["instances"], whole["instances"][:, y : y + 8, x : x + 8])
    assert not torch.equal(crops.row(1, 6)["image"], row["image"])
    with pytest.raises(ValueError, match="at least 64 x 64 pixels to crop, found 32 x 32"):
        Crops(scenes, 64).row(0, 0)


def test_two_stages_draw_at_the_second_ones_size(two):
    parts = palette(two)
    both = two.sample(parts, seeds=[1, 2])
    assert both.shape == (2, 3, 4 * SIZE, 4 * SIZE)
    small = two.sample(parts, seeds=[1, 2], options=SampleOptions(until="base"))
    assert small.shape == (2, 3, SIZE, SIZE)
    torch.testing.assert_close(two.sample(Composition(start=SmallImage(small)), seeds=[1, 2]), both, atol=1e-4, rtol=0)
    torch.testing.assert_close(two.sample(parts, seeds=[2]), both[1:], atol=1e-4, rtol=0)  # its seed alone
    assert not torch.equal(
        two.sample(parts, seeds=[1, 2], options=SampleOptions(stages={"up64": {"augmentation": 0.5}})), both
    )


def test_each_stage_samples_in_its_own_way(two):
    own = two.settings(options=SampleOptions(steps=7, stages={"up64": {"steps": 2, "sampler": "euler"}}))
    assert (own["base"].steps, own["up64"].steps, own["up64"].sampler) == (7, 2, "euler")
    assert own["base"].guidance == 2.0 and own["up64"].guidance == 1.0
    with pytest.raises(KeyError, match="no stage up1024; this model has base, up64"):
        two.settings(options=SampleOptions(stages={"up1024": {"steps": 2}}))
    with pytest.raises(ValueError, match=r"the sampling of stage up64 has .*; found stepz"):
        two.settings(options=SampleOptions(stages={"up64": {"stepz": 2}}))
    with pytest.raises(KeyError, match="no stage tiny"):
        two.sample(palette(two), options=SampleOptions(until="tiny"))


def test_other_shapes_than_squares(two):
    out = two.sample(palette(two), options=SampleOptions(size=(64, 96)))
    assert out.shape == (1, 3, 64, 96)
    with pytest.raises(ValueError, match="stage base draws sides in multiples of 2 pixels, which become 8 in the end"):
        two.sample(palette(two), options=SampleOptions(size=(64, 100)))
    assert two.sample(Composition(start=SmallImage(torch.zeros(1, 3, 8, 12)))).shape == (1, 3, 32, 48)
    with pytest.raises(ValueError, match="these images become 48 x 32 pixels, not 64 x 64"):
        two.sample(Composition(start=SmallImage(torch.zeros(1, 3, 8, 12))), options=SampleOptions(size=(64, 64)))


def test_stages_that_do_not_follow_each_other():
    wrong = copy.deepcopy(UP)
    wrong["size"] = 128
    with pytest.raises(ValueError, match=r"stage up64 \(128 px\) cannot follow base \(16 px\): it enlarges 4 times"):
        Cascade.from_spec({**TINY, "stages": [*TINY["stages"], wrong]})
    del wrong["low_res"]
    with pytest.raises(ValueError, match="go together"):
        Cascade.from_spec({**TINY, "stages": [*TINY["stages"], wrong]})


def test_an_upsampler_alone_wants_an_image():
    alone = Cascade.from_spec({**TINY, "stages": [UP], "decomposers": {}})
    assert alone.names == () and alone.sample(Composition(start=SmallImage(torch.zeros(1, 3, 8, 8)))).shape == (
        1,
        3,
        32,
        32,
    )
    with pytest.raises(ValueError, match="stage up64 enlarges: give it an image"):
        alone.sample({})


def test_a_region_is_held_at_every_stage(two, tmp_path):
    image = torch.rand(3, 50, 70) * 2 - 1
    save_png(tmp_path / "a.png", image)
    region = torch.zeros(1, 1, 50, 70)
    region[..., 10:40, 20:50] = 1
    (result,) = edit(two, Original.open(tmp_path / "a.png"), region, palette(two))
    result.save(tmp_path / "b.png")
    before, after = load_rgb(tmp_path / "a.png").image, load_rgb(tmp_path / "b.png").image
    assert after.shape == before.shape and not torch.equal(after, before)
    assert torch.equal((after * (1 - region[0])), before * (1 - region[0]))


def test_a_recipe_repeats_all_stages(two, tmp_path):
    parts, how = palette(two), SampleOptions(steps=3, stages={"up64": {"steps": 2}}, size=(64, 96))
    image = two.sample(parts, seeds=[5], options=how)
    save_png(tmp_path / "a.png", image[0], recipe(two, Composition(parts=parts), 5, how))
    assert torch.equal(draw_recipe(two, read_recipe(tmp_path / "a.png")), image)
    small = recipe(two, Composition(parts=parts), 5, SampleOptions(until="base"))
    assert torch.equal(draw_recipe(two, small), two.sample(parts, seeds=[5], options=SampleOptions(until="base")))


def test_the_best_of_several_is_measured_by_the_last_stage(two, tmp_path, photos, capsys):
    parts = palette(two)
    asked = Composition(parts=parts, wanted=parts)
    assert (
        best_of(two, asked, [0], 2, options=SampleOptions(steps=1)).closed is None
    )  # the choice saw the first stage's pictures
    small = best_of(two, asked, [0, 1], 2, options=SampleOptions(steps=1, until="base"))
    again_ = Reading(two, quantise(small.images)).closed(asked.wanted)["palette"]
    torch.testing.assert_close(small.closed["palette"], again_, atol=1e-3, rtol=0)
    two.save(tmp_path / "model")
    words = ["--palette", photos[0], "--best-of", "2", "--steps", "1", "--stage", "up64:steps=1"]
    assert main(["compose", "--model", str(tmp_path / "model"), *words, "--out", str(tmp_path)]) == 0
    (row,) = report(tmp_path / "compose_seed0.png", Cascade.load(tmp_path / "model")).rows
    assert f"compose_seed0: closed {row.closed:.2f} (palette)" in capsys.readouterr().out


def alone(cascade, stage, folder):
    """One of a cascade's stages as a model of its own."""
    part = Cascade.from_spec({**cascade.spec, "stages": [stage.spec]})
    part.load_weights({stage.spec["file"]: dict(stage.weights().state_dict())})
    part.save(folder, f"# {stage.name}\n")
    return str(folder)


def test_assembled_from_parts(two, tmp_path, capsys):
    base, up = (alone(two, stage, tmp_path / stage.name) for stage in two.stages)
    assert main(["assemble", str(tmp_path / "all"), f"base={base}", f"up64={up}"]) == 0
    assert "16 -> 64 px" in capsys.readouterr().out
    whole = Cascade.load(tmp_path / "all")
    assert torch.equal(whole.sample(palette(whole, 2), seeds=[0, 1]).isfinite(), torch.ones(2, 3, 64, 64).bool())
    parts = palette(two)
    assert torch.equal(whole.sample(parts), two.sample(parts))
    assert (tmp_path / "all" / "README.md").read_text() == "# all\n\n# base\n\n# up64\n"
    manifest = json.loads((tmp_path / "all" / "manifest.json").read_text())
    assert {"base.safetensors", "up64.safetensors", "config.json"} <= set(manifest)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["up64={up}", "base={base}"], "cannot follow"),
        (["base={base}", "base={up}"], "a different name"),
        (["{base}"], "expected STAGE=MODEL"),
        (["base={base}", "up64={nothing}"], "expected a model folder"),
    ],
)
def test_parts_that_do_not_fit_are_refused(two, tmp_path, capsys, names, says):
    places = {stage.name.rstrip("64"): alone(two, stage, tmp_path / stage.name) for stage in two.stages}
    places["nothing"] = str(tmp_path / "nothing")
    assert main(["assemble", str(tmp_path / "all"), *(name.format(**places) for name in names)]) == 1
    assert says in capsys.readouterr().err
    assert not (tmp_path / "all" / "manifest.json").exists()


def test_weights_of_another_stage_are_refused(two, tmp_path):
    base, _ = two.stages
    folder = alone(two, base, tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    wrong = Cascade.from_spec({**config, "stages": [UP | {"file": "base.safetensors"}]})
    with pytest.raises(ValueError, match="do not belong to this configuration of stage base"):
        wrong.load_weights({"base.safetensors": dict(Cascade.load(folder).stages[0].weights().state_dict())})


def test_an_exported_upsampler_takes_its_corruption_along():
    run = {
        "model": {"init_args": {"size": 256, "denoiser": {}, "conditions": {"low_res": {}}}},
        "data": {"decomposers": {"low_res": UP["low_res"]}},
    }
    spec = from_run(run, "up", {"steps": 5})
    assert spec["decomposers"] == {} and spec["stages"][0]["file"] == "up256.safetensors"
    assert spec["stages"][0]["low_res"] == UP["low_res"]


def test_the_command_line_reaches_every_stage(two, tmp_path, photos, capsys):
    two.save(tmp_path / "model")
    options = ["--stage", "up64:steps=2", "--size", "96x64", "--out", str(tmp_path / "out")]
    assert main(["compose", "--model", str(tmp_path / "model"), "--palette", photos[0], *options]) == 0
    path = tmp_path / "out" / "compose_seed0.png"
    assert load_rgb(path).image.shape == (3, 64, 96)
    assert read_recipe(path)["stages"]["up64"]["steps"] == 2
    again = ["--from-png", str(path), "--out", str(tmp_path / "again")]
    assert main(["compose", "--model", str(tmp_path / "model"), *again]) == 0
    assert "the same, bit for bit" in capsys.readouterr().out


def test_parts_know_no_low_res(two):
    with pytest.raises(KeyError, match="no condition low_res"):
        two.sample(Parts(low_res=torch.zeros(1, 4, 16, 16)))


def test_working_on_the_residual_is_a_change_of_variables():
    network, unit = build(UP["denoiser"]["init_args"]["network"], UNet), 0.2
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    plain, residual = Denoiser(network, LogNormal()), Denoiser(network, LogNormal(), residual=unit)
    image, noise = torch.rand(2, 3, 16, 16), torch.randn(2, 3, 16, 16)
    origin, sigma = torch.rand(2, 3, 16, 16), torch.tensor([0.1, 3.0])
    cond = Conditioning(spatial=origin, origin=origin)
    x, scaled = image + sigma[:, None, None, None] * noise, (image - origin) / unit
    expected = origin + unit * plain((x - origin) / unit, sigma / unit, cond)
    torch.testing.assert_close(residual(x, sigma, cond), expected)
    loss = plain.loss(scaled, cond, sigma / unit, noise)
    torch.testing.assert_close(residual.loss(image, cond, sigma, noise), loss, rtol=1e-4, atol=1e-5)
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    torch.testing.assert_close(residual.draw(5, generators[0]), unit * plain.draw(5, generators[1]))
    torch.testing.assert_close(residual.sigmas(7), unit * plain.sigmas(7))
    with pytest.raises(ValueError, match="residual above 0"):
        Denoiser(network, LogNormal(), residual=0.0)
