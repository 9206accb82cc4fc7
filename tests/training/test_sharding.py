"""Weights spread over two processes of this machine, by gloo: the same training as on one."""

import shutil
from pathlib import Path

import pytest
import torch

from composer.__main__ import main
from tests.training.small_runs import fit, run_on_two, tensors

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "tiny.yaml"
SMALL = [
    *("--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--checkpoints.every", "1"),
    *("--data.train.init_args.count", "32", "--data.validation.init_args.count", "4", "--data.workers", "0"),
    *("--grid.count", "1", "--grid.samples", "1", "--grid.steps", "2", "--model.init_args.warmup_steps", "1"),
    *("--data.global_batch_size", "4", "--trainer.max_steps", "3", "--trainer.gradient_clip_val", "0.1"),
    *("--trainer.enable_progress_bar", "false", "--trainer.num_sanity_val_steps", "0"),
]
SHARDED = ["--data.batch_size", "2", "--trainer.devices", "2", "--trainer.strategy", "fully_shard"]


def fit_on_two(folder, *words):
    run_on_two(folder, lambda: main(["fit", "-c", str(CONFIG), f"--trainer.default_root_dir={folder}", *words]))


def checkpoint(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    fit(CONFIG, root / "one", *SMALL, "--data.batch_size", "4", "--trainer.val_check_interval", "3")
    fit_on_two(root / "two", *SMALL, *SHARDED, "--trainer.val_check_interval", "3", "--checkpoints.keep_every", "2")
    return root


def test_spread_weights_learn_what_whole_ones_do(runs):
    one, two = checkpoint(runs / "one"), checkpoint(runs / "two")
    assert two["skipped"] == 0 and (runs / "two" / "samples" / "0000003.png").exists()
    for part in ("state_dict", "ema", "optimizer_states"):
        wanted, found = tensors(one[part]), tensors(two[part])
        assert wanted.keys() == found.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, atol=5e-6, rtol=1e-3, msg=f"{part} {name}")


def test_spread_weights_resume_exactly(runs, tmp_path):
    last = tmp_path / "resumed" / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True)
    shutil.copy(runs / "two" / "checkpoints" / "step-0000002.ckpt", last)
    fit_on_two(tmp_path / "resumed", *SMALL, *SHARDED, "--ckpt_path", "last", "--trainer.limit_val_batches", "0")
    for part in ("state_dict", "ema", "optimizer_states"):
        wanted, found = tensors(checkpoint(runs / "two")[part]), tensors(checkpoint(tmp_path / "resumed")[part])
        assert wanted.keys() == found.keys() and all(torch.equal(found[name], x) for name, x in wanted.items())
