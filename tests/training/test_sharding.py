"""Weights spread over two processes of this machine, by gloo: the same training as on one."""

import os
import shutil
import socket
import sys
import traceback
from pathlib import Path

import pytest
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from composer.__main__ import main
from tests.training.small_runs import fit, tensors

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


def on_two(folder, *words):
    """Trains in two processes that torchrun would have started; gives what they said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    logs, children = [folder.with_suffix(f".{rank}.log") for rank in (0, 1)], []
    for rank, log in enumerate(logs):
        if not (child := os.fork()):
            status = 1
            try:
                sys.stdout = sys.stderr = log.open("w", buffering=1)
                os.environ |= environment | {"RANK": str(rank), "LOCAL_RANK": str(rank), "COMPOSER_TRACEBACK": "1"}
                rank_zero_only.rank = rank
                status = main(["fit", "-c", str(CONFIG), f"--trainer.default_root_dir={folder}", *words])
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        children.append(child)
    ended = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    said = "\n".join(log.read_text() for log in logs)
    assert ended == [0, 0], said
    return said


def checkpoint(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    fit(CONFIG, root / "one", *SMALL, "--data.batch_size", "4", "--trainer.val_check_interval", "3")
    on_two(root / "two", *SMALL, *SHARDED, "--trainer.val_check_interval", "3", "--checkpoints.keep_every", "2")
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
    on_two(tmp_path / "resumed", *SMALL, *SHARDED, "--ckpt_path", "last", "--trainer.limit_val_batches", "0")
    for part in ("state_dict", "ema", "optimizer_states"):
        wanted, found = tensors(checkpoint(runs / "two")[part]), tensors(checkpoint(tmp_path / "resumed")[part])
        assert wanted.keys() == found.keys() and all(torch.equal(found[name], x) for name, x in wanted.items())
