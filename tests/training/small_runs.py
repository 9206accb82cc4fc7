"""Runs small trainings, also in two processes, and compares what they learnt."""

import os
import socket
import sys
import traceback

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from composer.__main__ import main
from composer.training import checkpoint as checkpoints


def fit(config, root, *words):
    """Trains in a folder; gives the last checkpoint."""
    assert main(["fit", "-c", str(config), f"--trainer.default_root_dir={root}", *words]) in (None, 0)
    return checkpoints.load(root / "checkpoints" / "last.ckpt")


def tensors(value, name=""):
    """All tensors of a part of a checkpoint, by name."""
    return dict(checkpoints._tensors(value, name))


def require_exact_resume(config, whole, root):
    """A training of six steps that stops after three and goes on learns bit for bit what `whole`'s did."""
    fit(config, root, "--trainer.max_steps", "3")
    resumed = fit(config, root, "--ckpt_path", "last")
    for part in ("state_dict", "ema", "optimizer_states"):
        own, found = tensors(whole[part]), tensors(resumed[part])
        assert own.keys() == found.keys() and all(torch.equal(x, found[name]) for name, x in own.items())


def require_same_in_halves(config, whole, root, batch):
    """A training whose batches come in two halves, as on two devices, learns what `whole`'s did."""
    halves = ["--data.batch_size", str(batch // 2), "--data.global_batch_size", str(batch)]
    own, found = tensors(whole["ema"]), tensors(fit(config, root, *halves)["ema"])
    assert own.keys() == found.keys()
    far = [float((found[name] - x).abs().max()) for name, x in own.items()]
    moved = [float(x.abs().max()) for x in own.values()]
    assert max(far) < 2e-3 * max(moved), (max(far), max(moved))


def run_on_two(name, train):
    """Calls a function in two processes, as torchrun starts them; what they say goes to NAME.0.log and NAME.1.log."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "COMPOSER_TRACEBACK": "1"}
    logs, children = [name.with_suffix(f".{rank}.log") for rank in (0, 1)], []
    for rank, log in enumerate(logs):
        if not (child := os.fork()):  # what is imported stays so
            status = 1
            try:
                sys.stdout = sys.stderr = log.open("w", buffering=1)
                os.environ |= environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                rank_zero_only.rank = rank
                status = train() or 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        children.append(child)
    ended = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert ended == [0, 0], "\n".join(log.read_text() for log in logs)
