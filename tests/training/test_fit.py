"""`fit` from the command line, as a person meets it."""

import sys
from typing import Any

import pytest
import torch

from composer.__main__ import main
from composer.cascade.cascade import Cascade
from composer.cascade.options import SampleOptions
from composer.training import sample_grid

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore:.*LeafSpec:FutureWarning", "ignore:The '.*_dataloader' does not have"
)
FEW = {"trainer.accelerator": "cpu", "trainer.max_steps": 2, "trainer.val_check_interval": 2, "data.train.count": 4}
FEW |= {"data.validation.count": 2, "data.batch_size": 2, "grid.count": 1, "grid.samples": 1, "grid.steps": 2}


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs a command on the configuration tiny, made tinier; gives its status and what it said."""
    monkeypatch.setattr(sys, "argv", ["composer"])
    monkeypatch.setenv("COMPOSER_PLUGINS", "")
    root = f"--trainer.default_root_dir={tmp_path / 'run'}"

    few = [f"--{name}={value}" for name, value in FEW.items()]

    def run(command, *more):
        status = main([command, "-c", "configs/tiny.yaml", root, *few, *more])
        return status, capsys.readouterr().err

    return run


def test_without_a_bar_the_messages_stay_and_the_grid_is_what_compose_draws(tmp_path, run, monkeypatch):
    cells = []
    own = sample_grid.sheet  # type: ignore[attr-defined]
    monkeypatch.setattr(sample_grid, "sheet", lambda images, *args: cells.extend(images) or own(images, *args))
    prompts = ("--grid.prompts", '["a red cube on sand", "a purple zebra"]')
    status, said = run("fit", "--trainer.enable_progress_bar", "false", *prompts)
    assert status == 0 and "images/s" not in said and "step 1/2" not in said
    assert "training 2,332,587 parameters from the start" in said and "validation at step 2: loss" in said
    assert "tokens does not know or has no room for 'zebra' of 'a purple zebra'" in said
    folder, model = tmp_path / "run", tmp_path / "model"
    assert f"done: step 2 saved in {folder / 'checkpoints/last.ckpt'}. Make a model of it: composer" in said

    assert main(["export", str(folder), str(model)]) == 0
    cascade = Cascade.load(model)
    tokens: Any = cascade.decomposition["tokens"]
    for row, words in ((1, "a red cube on sand"), (2, "a purple zebra")):
        read = {"tokens": tokens.from_text(words)}
        made = cascade.sample(read, seeds=[0], options=SampleOptions(steps=2, guidance=2.0))[0]
        torch.testing.assert_close(cells[row][-1], made, atol=1e-4, rtol=0)

    files = sorted(folder.rglob("*"))
    assert run("validate", "--ckpt_path", "last")[0] == 0 and sorted(folder.rglob("*")) == files

    status, said = run("fit", "--ckpt_path", "last", "--data.train.count", "5")
    assert status == 1 and "train rows: 4 before, 5 now" in said and "--data.accept_changes true" in said
    status, said = run("fit", "--ckpt_path", "last", "--trainer.max_steps", "3", "--trainer.log_every_n_steps", "50")
    assert status == 0 and "from step 2 on" in said and "step 3/3  loss" in said and "about 0:00:00 left" in said
