"""What version 0.1.0 wrote still loads and gives the same numbers: models, recipes, a checkpoint, YAMLs, a plugin.

`data/before_rooms` was made by its `make.py` when `composer/` was one flat folder.
"""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from composer import Cascade
from composer.__main__ import main
from composer.cascade.options import SampleOptions
from composer.moved import MOVED

OLD = Path(__file__).parent / "data" / "before_rooms"
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore:.*LeafSpec:FutureWarning", "ignore:The '.*_dataloader' does not have"
)


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["composer"])
    monkeypatch.setenv("COMPOSER_PLUGINS", "")
    monkeypatch.syspath_prepend(OLD)


@pytest.mark.parametrize(
    ("command", "more"),
    [("compose", ["--prior", OLD / "prior"]), ("edit", [OLD / "photo.png"]), ("vary", [OLD / "photo.png"])],
)
def test_recipes_draw_the_same_pictures_again(command, more, tmp_path):
    [png] = OLD.glob(f"{command}_*.png")
    again = ["--from-png", png, "--model", OLD / "model", "--out", tmp_path]
    assert main([command, *map(str, more), *map(str, again)]) == 0
    [made] = tmp_path.glob("*.png")
    a, b = (np.asarray(Image.open(path)).astype(int) for path in (png, made))
    assert a.shape == b.shape and abs(a - b).max() <= 1  # machines add up in different orders


def test_a_checkpoint_is_exported_and_resumed(tmp_path, capsys):
    assert main(["--plugins", "plugin", "export", str(OLD / "stage.ckpt"), str(tmp_path / "model")]) == 0
    cascade = Cascade.load(tmp_path / "model", plugins=["plugin"])
    image = torch.linspace(-1, 1, 768).reshape(1, 3, 16, 16)
    made = cascade.sample(
        {"intensity": cascade.decomposition["intensity"]({"image": image})},
        seeds=[1, 2],
        options=SampleOptions(steps=3, guidance=2.0),
    )
    torch.testing.assert_close(made, torch.from_numpy(np.load(OLD / "stage.npy")), atol=1e-4, rtol=0)
    said = fit("stage", tmp_path, capsys, "--ckpt_path", str(OLD / "stage.ckpt"), "--trainer.max_steps", "4")
    assert "from step 3 on" in said and "step 4/4" in said


@pytest.mark.parametrize(
    ("name", "losses"), [("stage", (1.0547, 0.8607, 0.9849)), ("clip", (6.4497,)), ("reader", (3.7484,))]
)
def test_configurations_train_as_they_did(name, losses, tmp_path, capsys):
    """Stage and CLIP have the losses since they draw from each sample's seed: 0.9942, 0.9535, 0.7421, 6.0230 before."""
    said = fit(name, tmp_path, capsys)
    found = [float(line.split("loss ")[1].split()[0]) for line in said.splitlines() if line.startswith("step ")]
    assert found[: len(losses)] == pytest.approx(losses, abs=2e-3)


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_a_module_under_its_old_name_is_todays(old, new):
    assert importlib.import_module(old) is importlib.import_module(new)


def fit(name, folder, capsys, *more):
    root = ["--trainer.default_root_dir", str(folder / "run")]
    capsys.readouterr()
    assert main(["--plugins", "plugin", "fit", "-c", str(OLD / f"{name}.yaml"), *root, *more]) == 0
    return capsys.readouterr().err
