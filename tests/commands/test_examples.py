"""Training on a folder and a ninth condition, as users do it, at tiny size; the large configurations."""

import importlib
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import composer
from composer.__main__ import main
from composer.cascade.assembling import from_run
from composer.cascade.cascade import Cascade
from composer.cascade.stage import Stage
from composer.commands.registry import COMMANDS
from composer.images.sheet import read_recipe

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
QUIET = pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have")
SMALL = {"width": 16, "multipliers": "[1, 2]", "attention": "[2]", "head_dim": 16}
NETWORK = "--model.denoiser.init_args.network.init_args"
FEW = ["--trainer.max_steps", "2", "--data.batch_size", "2", "--trainer.accelerator", "cpu"]
FEW += [word for name, value in SMALL.items() for word in (f"{NETWORK}.{name}", str(value))]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder of the user's own, in which modules can be imported as `python -m` finds them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("COMPOSER_PLUGINS", "")
    yield tmp_path
    sys.modules.pop("ninth_condition", None)


@pytest.fixture
def quick(monkeypatch):
    """Two steps for each picture that `train` draws."""
    for name in ("evaluate", "compose"):
        run = COMMANDS[name]
        monkeypatch.setitem(COMMANDS, name, lambda args, plugins, run=run: run([*args, "--steps", "2"], plugins))


@QUIET
def test_train_on_a_folder(here, quick, capsys):
    rng = np.random.default_rng(0)
    for path in (here / "photos" / part / f"{i}.png" for part in ("train", "val") for i in range(2)):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
    words = ["train", "photos", "--out", "out", "--let.size", "16", *FEW]
    assert main(words) == 0
    assert Cascade.load("out/model").stages[0].size == 16
    table = json.loads((here / "out/adherence.json").read_text())
    assert set(table["alone"]) == {"palette", "sketch", "intensity"} and table["about"]["count"] == 2
    assert len(list((here / "out/recombined").glob("*_seed?.png"))) == 3
    assert re.search(r"compose_seed0: closed .*\(palette\)", capsys.readouterr().out)
    assert main([*words, "--trainer.max_steps", "3"]) == 0
    assert "resuming out/run/checkpoints/last.ckpt" in capsys.readouterr().err
    state = torch.load(here / "out/run/checkpoints/last.ckpt", weights_only=True)
    assert state["global_step"] == 3


@QUIET
def test_train_without_a_folder_rehearses_on_scenes(here, quick, monkeypatch):
    from composer.commands import train_on_folder

    monkeypatch.setattr(train_on_folder, "REHEARSAL", {"train": 2, "val": 2})
    assert main(["train", *FEW]) == 0
    assert len(list((here / "out/train/scenes/val").glob("*.png"))) == 2
    assert len(list((here / "out/train/recombined").glob("*_seed?.png"))) == 3


@QUIET
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train", "photos"], "there is no folder photos/train"),
        (["train", "photos", "-c", "scenes256"], "a stage that begins with noise"),
        (["train", "photos", "-c", "scenes_prior_ar"], "a stage that begins with noise"),
        (["train", "photos", "-c", "tini"], "did you mean tiny?"),
    ],
)
def test_train_says_what_it_expects(here, capsys, words, says):
    (here / "photos").mkdir()
    assert main(words) == 1
    assert says in capsys.readouterr().err and not (here / "out").exists()


@QUIET
def test_the_ninth_condition(here, capsys):
    """Performs the walk-through of docs/architecture.md, command by command, with nothing but the two files."""
    for name in ("ninth_condition.py", "ninth_condition.yaml"):
        shutil.copy(EXAMPLES / name, here)
    few = " ".join(shlex.quote(word) for word in FEW)
    tiny = {"scenes": "--workers 0", "fit": f"{few} --data.train.init_args.count 4 --data.validation.init_args.count 2"}
    tiny |= {"compose": "--steps 2", "evaluate": "--count 2 --steps 2"}
    for line in walk_through("bash").splitlines():
        words = shlex.split(line)
        command = next(word for word in words[1:] if word in ("scenes", "fit", "export", "decompose", *tiny))
        assert words[0] == "composer"
        assert main([*words[1:], *shlex.split(tiny.get(command, ""))]) == 0, line
    shown = capsys.readouterr().out
    assert (
        "saturation (1, 32, 32)" in shown and re.search(r"closed .*\(saturation\)", shown) and "| saturation |" in shown
    )
    assert read_recipe(here / "out/compose_seed0.png")["sources"]["saturation"] == "0.9"
    assert json.loads((here / "saturation.json").read_text())["alone"]["saturation"]["ceiling"] > 0.9
    with pytest.raises(ValueError, match="allow a module that you trust"):
        Cascade.load("models/ninth")
    assert "saturation" in Cascade.load("models/ninth", plugins=["ninth_condition"]).names


def walk_through(language, block=0):
    text = (ROOT / "docs/architecture.md").read_text().partition("## The ninth condition")[2]
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)[block]


@QUIET
def test_the_model_that_ships_takes_up_a_ninth_condition(here, capsys):
    """Performs that part of the walk-through; then the model has nine, and of the others nothing has changed."""
    for name in ("ninth_condition.py", "ninth_condition_warm.yaml"):
        shutil.copy(EXAMPLES / name, here)
    few = "--trainer.max_steps 2 --trainer.limit_val_batches 0 --trainer.num_sanity_val_steps 0 --data.batch_size 2 "
    few += "--data.train.init_args.count 2 --trainer.precision 32-true --trainer.accelerator cpu"
    tiny = {"fit": few, "export": "", "evaluate": "--count 2 --steps 1"}
    for line in walk_through("bash", 1).splitlines():
        words = shlex.split(line)
        assert words[:3] == ["composer", "--plugins", "ninth_condition"]
        assert main([*words[1:], *shlex.split(tiny[words[3]])]) == 0, line
    shown = capsys.readouterr()
    assert "new and silent at first: saturation" in shown.err and "| saturation |" in shown.out
    shipped, nine = Cascade.load("scenes256"), Cascade.load("models/ninth_warm", plugins=["ninth_condition"])
    assert set(nine.names) == {*shipped.names, "saturation"} and len(shipped.names) == 8
    old, new = shipped.stages[0].weights().state_dict(), nine.stages[0].weights().state_dict()
    assert all(torch.equal(new[name], old[name]) for name in old)
    assert new["conditions.saturation.encode.2.weight"].any()
    words = ["fit", "-c", "ninth_condition_warm.yaml", "--trainer.default_root_dir", "elsewhere"]
    assert main(["--plugins", "ninth_condition", *words, "--model.start_from", "nowhere"]) == 1
    assert "expected a model folder with config.json and manifest.json at nowhere" in capsys.readouterr().err


def test_the_walk_through_shows_what_the_files_say(here):
    scope, module = {}, (EXAMPLES / "ninth_condition.py").read_text()
    exec(walk_through("python"), scope)
    (here / "ninth_condition.py").write_text(module)
    theirs, ours = importlib.import_module("ninth_condition").Saturation(), scope["Saturation"]()
    image = torch.rand(2, 3, 8, 8) * 2 - 1
    value = ours({"image": image})
    assert torch.equal(value, theirs({"image": image}))
    assert torch.equal(ours.preview(value), theirs.preview(value))
    want = torch.tensor([[[[1.0, 0.0, 0.5]]]])
    colours = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.8, 0.4, 0.6]]).T[None, :, None] * 2 - 1
    torch.testing.assert_close(ours({"image": colours}), want)
    assert theirs.from_text("0.8").item() == pytest.approx(0.8)
    with pytest.raises(ValueError, match="a saturation in 0 to 1"):
        theirs.from_text("strong")
    lines = [line.strip() for line in walk_through("yaml").splitlines()]
    assert all(line in (EXAMPLES / "ninth_condition.yaml").read_text() for line in lines)


@QUIET
@pytest.mark.parametrize(("name", "stated"), [("folder64", "144.4 M"), ("paper/composer_base", "2,038,876,005")])
def test_large_configurations_parse_and_state_their_size(name, stated, monkeypatch):
    """All of the YAML is parsed as `fit` parses it; the model alone is built, without memory: data needs weights."""
    from composer.training.cli import Configuration

    monkeypatch.setattr(sys, "argv", ["composer"])
    path = ROOT / "configs" / f"{name}.yaml"
    cli = Configuration(["-c", str(path)])
    spec = from_run(json.loads(cli.parser.dump(cli.config, format="json")), name, {})
    with torch.device("meta"):
        stage = Stage.from_spec(spec["stages"][0])
    count = sum(p.numel() for p in (*stage.denoiser.parameters(), *stage.conditions.parameters()))
    assert stated in (f"{count:,}", f"{count / 1e6:.1f} M") and stated in path.read_text()
    eight = {"caption", "semantics", "palette", "sketch", "instances", "depth", "intensity", "mask"}
    assert spec["decomposers"].keys() == stage.conditions.keys() == eight
    assert composer.UNet is type(stage.denoiser.network)
