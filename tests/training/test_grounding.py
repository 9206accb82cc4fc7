"""A trained model takes up GLIGEN's grounding: at first it draws what it drew, then only what is new learns."""

import json
import math
import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from composer.__main__ import main
from composer.cascade.assembling import carry_weights
from composer.cascade.cascade import Cascade
from composer.cascade.composition import Composition
from composer.cascade.options import SampleOptions
from composer.cascade.parts import Parts
from composer.cascade.stage import Stage
from composer.conditioning import ConditionSet
from composer.data.datasets import SceneImages
from composer.data.loading import ImageData
from composer.decomposition import Decomposer
from composer.diffusion.guidance import guide
from composer.images.sheet import read_recipe, save_png
from composer.networks.attention import Attention, GatedAttention
from composer.storage.folder import digest
from composer.storage.pretrained import locate
from composer.tasks.words import read_strengths
from composer.training import checkpoint
from composer.training.stage import StageTraining
from composer.training.warm_start import warm_start
from conditions import Grounding
from decomposers import Intensity, Mask, Objects, Palette
from tests.conftest import SIZE, TINY, talkative
from tests.training.test_warm_start import fit

pytestmark = pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have")
TEXT = "a red cube: 0.1,0.3,0.4,0.7; a blue ball: 0.6,0.5,0.8,0.8"
CLIP = "asset:scenes_clip"
WIDTH = 128  # of its phrases
NEW = ("conditions.objects.", ".grounding.")


def spec():
    """The tiny model's, with objects."""
    made = json.loads(json.dumps(TINY))
    (stage,) = made["stages"]
    stage["denoiser"]["init_args"]["network"]["init_args"]["object_dim"] = 12
    grounding = {"class_path": "conditions.Grounding", "init_args": {"in_dim": WIDTH, "object_dim": 12}}
    stage["conditions"]["objects"] = grounding
    made["decomposers"]["objects"] = {"class_path": "decomposers.Objects", "init_args": {"weights": CLIP, "slots": 4}}
    return made


def plan():
    torch.manual_seed(1)
    stage = Stage.from_spec(spec()["stages"][0])
    stage.weights().requires_grad_(True).train()
    return stage.denoiser, dict(stage.conditions.named())


def estimate(denoiser, conditions, reps):
    x, sigma = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2)), torch.tensor([0.7])
    return denoiser.eval()(x, sigma, conditions(reps, (SIZE, SIZE)))


@torch.no_grad()
def test_step_0_is_the_old_model_bit_for_bit(cascade, saved):
    denoiser, known = plan()
    conditions, old = ConditionSet(known), cascade.stages[0]
    assert warm_start(denoiser, conditions, SIZE, saved) == ("base.safetensors", ["objects"])
    palette = {"palette": torch.rand(1, 156)}
    objects = {"objects": Objects(weights=CLIP, slots=4).from_text(TEXT)}
    want = estimate(old.denoiser, old.conditions, palette)
    assert torch.equal(estimate(denoiser, conditions, palette), want)
    assert torch.equal(estimate(denoiser, conditions, palette | objects), want)
    for layer in denoiser.network.object_layers():
        layer.attention_gate.fill_(1)
    assert torch.equal(estimate(denoiser, conditions, palette), want)
    assert not torch.equal(estimate(denoiser, conditions, palette | objects), want)


def test_only_what_is_new_learns(saved, tmp_path, capsys):
    denoiser, conditions = plan()
    options: dict[str, Any] = {"learning_rate": 1e-2, "warmup_steps": 0, "weight_decay": 0.1}
    chosen = ["objects", "grounding"]
    model = StageTraining(denoiser, conditions, SIZE, start_from=str(saved), train_only=chosen, **options)
    fresh = {name: p.detach().clone() for name, p in model.named_parameters()}
    decomposers: dict[str, Decomposer] = {"palette": Palette(), "intensity": Intensity(), "mask": Mask()}
    decomposers |= {"objects": Objects(weights=CLIP, slots=4)}
    train, val = (SceneImages(split, SIZE, 8, objects=True) for split in ("train", "val"))
    data = ImageData(train, val, decomposers, batch_size=2)
    _, average = fit(tmp_path, model, steps=3, data=data)
    assert "new and silent at first: objects" in capsys.readouterr().err
    old, now = load_file(saved / "base.safetensors"), dict(model.named_parameters())
    assert all(torch.equal(now[name], old[name]) for name in old)  # no weight decay either
    new = {name for name in now if any(part in name for part in NEW)}
    assert now.keys() - old.keys() == new == average.shadow.keys()
    still = {name for name in new if torch.equal(now[name], fresh[name])}
    assert still == {"conditions.objects.no_phrase", "conditions.objects.no_box"}  # every phrase and box is known
    assert all(layer.attention_gate != 0 for layer in denoiser.network.object_layers())


def test_frozen_layers_before_the_first_that_reads_objects_keep_no_graph(saved):
    denoiser, conditions = plan()
    StageTraining(denoiser, conditions, SIZE, start_from=str(saved), train_only=["objects", "grounding"])
    inputs: dict[str, bool] = {}
    named = [(name, m) for name, m in denoiser.network.named_modules() if isinstance(m, GatedAttention | Attention)]
    for name, layer in named:
        layer.register_forward_pre_hook(lambda _, given, name=name: inputs.update({name: given[0].requires_grad}))
    reps = {"palette": torch.rand(1, 156), "objects": Objects(weights=CLIP, slots=4).from_text(TEXT)}
    cond = ConditionSet(conditions)(reps, (SIZE, SIZE))
    denoiser.loss(torch.randn(1, 3, SIZE, SIZE), cond, torch.ones(1), torch.randn(1, 3, SIZE, SIZE)).mean().backward()
    assert list(inputs.values()) == [False, False, *[True] * (len(named) - 2)]  # attention, objects, attention, ...
    grown = {name for name, p in denoiser.named_parameters() if p.grad is not None}
    assert grown and all(".grounding." in name for name in grown)


@pytest.fixture
def run(saved, tmp_path):
    """A checkpoint of a training of objects on the saved model, as `composer fit` writes it."""
    denoiser, known = plan()
    conditions = ConditionSet(known)
    warm_start(denoiser, conditions, SIZE, saved)
    for layer in denoiser.network.object_layers():
        torch.nn.init.constant_(layer.attention_gate, 0.5)
    (stage,) = spec()["stages"]
    chosen = {"start_from": str(saved), "train_only": ["objects", "grounding"], "size": SIZE}
    config = {
        "model": {"init_args": {"denoiser": stage["denoiser"], "conditions": stage["conditions"], **chosen}},
        "data": {"decomposers": spec()["decomposers"]},
    }
    weights = torch.nn.ModuleDict({"denoiser": denoiser, "conditions": conditions}).state_dict()
    checkpoint.save({"config": config, "state_dict": weights}, tmp_path / "run.ckpt")
    return tmp_path / "run.ckpt"


def test_an_add_on_holds_what_was_trained_alone(run, cascade, tmp_path, capsys):
    out = tmp_path / "addon"
    assert main(["export", str(run), str(out), "--addon", "--half"]) == 0
    assert "add-on to model in" in capsys.readouterr().out
    added = load_file(out / "base.safetensors")
    assert added and all(any(part in name for part in NEW) and x.dtype == torch.float16 for name, x in added.items())
    model = Cascade.load(out)
    whole = checkpoint.load_stage(run)[1]
    for name, x in model.stages[0].weights().state_dict().items():
        assert torch.equal(x, added[name].float() if name in added else whole[name])
    assert model.names == (*cascade.names, "objects") and "base" not in model.spec
    options = SampleOptions(steps=2)
    bare = cascade.sample(palette="#aa3311", options=options)
    assert torch.equal(model.sample(palette="#aa3311", options=options), bare)
    model.save(tmp_path / "merged")
    merged = Cascade.load(tmp_path / "merged")
    asked = {"palette": "#aa3311", "objects": TEXT}
    assert torch.equal(merged.sample(asked, options=options), model.sample(asked, options=options))
    assert not torch.equal(model.sample(asked, options=options), bare)


@torch.no_grad()
def test_another_base_or_none_is_refused(run, saved, tmp_path, capsys):
    out = tmp_path / "addon"
    assert main(["export", str(run), str(out), "--addon"]) == 0
    shutil.move(saved, tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="an add-on to the model model, which is neither included nor in"):
        Cascade.load(out)
    other = talkative(TINY)
    other.stages[0].denoiser.network.first.weight.mul_(2)
    other.save(saved, "")
    with pytest.raises(ValueError, match=r"an add-on to another model model than the one in .* expected the SHA-256"):
        Cascade.load(out)
    capsys.readouterr()
    assert main(["export", str(run), str(tmp_path / "more"), "--addon"]) != 0
    assert "is not the model that the run started from: " in capsys.readouterr().err
    assert not (tmp_path / "more").exists()


@pytest.mark.parametrize("name", ["../model", "..", "/model", "model/../model", ""])
def test_a_base_elsewhere_on_the_disk_is_refused(run, tmp_path, name):
    out = tmp_path / "addon"
    assert main(["export", str(run), str(out), "--addon"]) == 0
    config = json.loads((out / "config.json").read_text())
    config["base"]["name"] = name
    (out / "config.json").write_text(json.dumps(config))
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["config.json"] = digest(out / "config.json")
    (out / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="expected a model's name"):
        Cascade.load(out)


def test_a_detectors_weights_are_carried_into_the_model(tmp_path):
    shutil.copytree(locate("asset:scenes_reader", wanted="", who=""), tmp_path / "own_reader")
    made = spec()
    detector = {"class_path": "decomposers.SceneInstances", "init_args": {"weights": str(tmp_path / "own_reader")}}
    made["decomposers"]["objects"]["init_args"]["detector"] = detector
    carried = carry_weights(made, tmp_path / "model")
    shutil.rmtree(tmp_path / "own_reader")
    model = Cascade.from_spec(carried, folder=tmp_path / "model")
    assert (tmp_path / "model/decomposers/objects/detector/own_reader/model.safetensors").is_file()
    assert model.decompose({"image": torch.zeros(1, 3, SIZE, SIZE)})["objects"].shape == (1, 4, WIDTH + 5)


def test_a_run_that_trained_everything_is_no_add_on(run, tmp_path, capsys):
    config, weights = checkpoint.load_stage(run)
    del config["model"]["init_args"]["train_only"]
    checkpoint.save({"config": config, "state_dict": weights}, run)
    assert main(["export", str(run), str(tmp_path / "out"), "--addon"]) != 0
    assert "expected a run with start_from and train_only" in capsys.readouterr().err


def test_what_cannot_be_added(saved, tmp_path):
    denoiser, conditions = plan()
    with pytest.raises(ValueError, match="objects with the network's object_dim of 12, found 9"):
        warm_start(denoiser, ConditionSet(conditions | {"objects": Grounding(WIDTH, 9)}), SIZE, saved)
    trained = talkative(spec())
    trained.save(tmp_path / "grounded", "")
    with pytest.raises(ValueError, match="the condition more makes objects, and this trained network reads objects"):
        warm_start(denoiser, ConditionSet(conditions | {"more": Grounding(WIDTH, 12)}), SIZE, tmp_path / "grounded")
    denoiser, conditions = plan()
    assert warm_start(denoiser, ConditionSet(conditions), SIZE, tmp_path / "grounded") == ("base.safetensors", [])
    theirs = dict(trained.stages[0].denoiser.named_parameters())
    assert all(torch.equal(p, theirs[name]) for name, p in denoiser.named_parameters())
    stage = Stage.from_spec(TINY["stages"][0])
    known = dict(stage.conditions.named())
    with pytest.raises(ValueError, match="objects with the network's object_dim of 0, found 12"):
        warm_start(stage.denoiser, ConditionSet(known | {"objects": Grounding(WIDTH, 12)}), SIZE, saved)
    with pytest.raises(ValueError, match="train_only out of palette, intensity, mask, first; found grounding"):
        StageTraining(stage.denoiser, known, SIZE, start_from=str(saved), train_only=["grounding"])


@torch.no_grad()
def test_a_grounded_model_takes_more_map_channels(tmp_path):
    trained = talkative(spec())
    trained.save(tmp_path / "grounded", "")
    wider = json.loads(json.dumps(spec()["stages"][0]).replace('"spatial_dim": 4', '"spatial_dim": 6'))
    stage = Stage.from_spec(wider)
    warm_start(stage.denoiser, stage.conditions, SIZE, tmp_path / "grounded")
    reps = {"objects": Objects(weights=CLIP, slots=4).from_text(TEXT), "intensity": torch.rand(1, 1, SIZE, SIZE)}
    want = estimate(trained.stages[0].denoiser, trained.stages[0].conditions, reps)
    torch.testing.assert_close(estimate(stage.denoiser, stage.conditions, reps), want, atol=1e-5, rtol=0)


@torch.no_grad()
def test_scheduled_sampling_is_a_strengths_interval():
    """GLIGEN, eq. 10: the gates are open at the first steps, and closed, as if there were no objects, at the others."""
    model = talkative(spec())
    stage, size = model.stages[0], (SIZE, SIZE)
    parts = Parts({"objects": Objects(weights=CLIP, slots=4).from_text(TEXT), "palette": torch.rand(1, 156)})
    asked = Composition(parts=parts, strengths=read_strengths(model, ["objects=1@0.7-1"]))
    how = replace(stage.sampling, guidance=1.0)

    def draw(time, composition):
        denoise = guide(stage.denoiser, stage.terms(composition, {}, size, how))
        sigma = torch.tensor([math.tan(time * math.pi / 2)])
        return denoise(torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0)) * sigma, sigma)

    always, never = Composition(parts=parts), Composition(parts=Parts({"palette": parts["palette"]}))
    for time, same, other in ((0.71, always, never), (0.69, never, always)):
        assert torch.equal(draw(time, asked), draw(time, same))
        assert not torch.equal(draw(time, asked), draw(time, other))


def test_the_command_line_takes_objects(tmp_path, capsys):
    talkative(spec()).save(tmp_path / "model", "")
    reloaded = Cascade.load(tmp_path / "model")
    assert "objects" in reloaded.names

    def compose(out, *more):
        return main(["compose", "--model", str(tmp_path / "model"), "--out", str(tmp_path / out), *more])

    assert compose("a", "--objects", TEXT, "--strengths", "objects=1@0.7-1") == 0
    assert compose("b", "--objects", f"{TEXT}@0.7-1") == 0
    pictures = [next((tmp_path / out).glob("*_seed*.png")) for out in "ab"]
    made = [read_recipe(path) for path in pictures]
    assert made[0]["strengths"] == made[1]["strengths"]
    assert made[0]["strengths"]["objects"] == {"weight": 1.0, "interval": [0.7, 1.0], "region": None}
    assert compose("c", "--objects", "a red cube:0.1,0.3,0.4,0.7") != 0  # the box is taken for a region
    assert "with a space after the colon" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("objects", "says"),
    [
        (
            "a red cube: 0.1,0.3,1.4,0.7",
            "in shares of the image from 0 to 1, left below right and top",
        ),
        ("a red cube: 0.4,0.3,0.1,0.7", "left below right and top below bottom; found 0.4,0.3,0.1,0.7"),
        (" : 0.1,0.3,0.4,0.7", "expected a phrase before the box 0.1,0.3,0.4,0.7, found none"),
        ("a red cube", "its box or a point such as 0.3,0.5, with a space after the colon; found 'a red cube'"),
        ("; ".join(f"a cube: {i / 10},0,{i / 10 + 0.1},1" for i in range(5)), "at most 4 objects, as many as there"),
        ("nowhere.png", "there is no file nowhere.png"),
    ],
)
def test_bad_objects_on_the_command_line(grounded, tmp_path, capsys, objects, says):
    words = ["compose", "--model", str(grounded), "--out", str(tmp_path / "out"), "--steps", "1"]
    assert main([*words, "--objects", objects]) != 0
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_doubtful_objects_are_drawn_and_said(grounded, tmp_path, capsys):
    words = ["compose", "--model", str(grounded), "--out", str(tmp_path / "out"), "--steps", "1"]
    assert main([*words, "--objects", "a red cube: 0,0,1,1; a blorp ball: 0.1,0.1,0.9,0.9"]) == 0
    said = capsys.readouterr().err
    assert "note: --objects: the boxes of 'a red cube' and 'a blorp ball' overlap by more than half" in said
    assert "does not know or has no room for blorp" in said


def test_objects_come_from_pictures(tmp_path, capsys):
    made = spec()
    made["decomposers"]["objects"]["init_args"]["detector"] = {"class_path": "decomposers.SceneInstances"}
    talkative(made).save(tmp_path / "model", "")
    scene = SceneImages("val", 64, 4).row(1, 0)["image"]
    save_png(tmp_path / "scene.png", scene)
    model, out = ["--model", str(tmp_path / "model")], ["--out", str(tmp_path / "out")]
    assert main(["decompose", str(tmp_path / "scene.png"), *model, *out, "--preview"]) == 0
    assert "objects (4, 133)" in capsys.readouterr().out
    assert main(["compose", "--objects", str(tmp_path / "scene.png"), *model, *out, "--steps", "1"]) == 0
    (drawn,) = (tmp_path / "out").glob("compose*.png")
    assert read_recipe(drawn)["sources"]["objects"].endswith(" scene.png")


@pytest.fixture
def grounded(tmp_path):
    talkative(spec()).save(tmp_path / "model", "")
    return tmp_path / "model"
