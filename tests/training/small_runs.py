"""Runs small trainings from a configuration, and compares what they learnt."""

import torch

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
