"""Trainings on two processes of this machine, by gloo: the same as on one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]

SMALL = [
    *("--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--trainer.log_every_n_steps", "1"),
    *("--data.train.init_args.count", "32", "--data.validation.init_args.count", "5"),
    *("--model.denoiser.init_args.network.init_args.dropout", "0.2", "--checkpoints.every", "1", "--grid.count", "1"),
    *("--model.init_args.warmup_steps", "1", "--data.validation_batch_size", "2"),
]
TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]


def start(folder, *options):
    command = [sys.executable, "-m", "composer", "fit", "-c", "tiny", "--trainer.default_root_dir", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, *SMALL, *options],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process, timeout=240):
    told, _ = process.communicate(timeout=timeout)
    assert process.returncode == 0, told
    return told


def checkpoint(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=False)


def losses(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (path,) = {path.parent for path in folder.rglob("events.out.tfevents*")}
    events = EventAccumulator(str(path))
    events.Reload()
    return {tag: events.Scalars(tag)[-1].value for tag in events.Tags()["scalars"] if tag.startswith("val/")}


def test_two_processes_learn_and_validate_what_one_does(tmp_path):
    one = ["--data.batch_size", "4", "--trainer.val_check_interval", "3"]
    two = ["--data.batch_size", "1", "--data.global_batch_size", "4", "--trainer.val_check_interval", "6", *TWO]
    for name, options in {"one": one, "two": two}.items():
        finish(start(tmp_path / name, "--trainer.max_steps", "3", *options))
    learnt, wanted = (checkpoint(tmp_path / name)["state_dict"] for name in ("two", "one"))
    assert learnt.keys() == wanted.keys()
    for name, value in learnt.items():
        torch.testing.assert_close(value, wanted[name], atol=2e-6, rtol=1e-4)
    found = losses(tmp_path / "two")
    assert len(found) > 5 and found == pytest.approx(losses(tmp_path / "one"), rel=1e-4)


def test_a_killed_process_ends_the_other_and_the_training_goes_on(tmp_path):
    endless = ["--trainer.max_steps", "100000", "--data.batch_size", "2", "--trainer.val_check_interval", "100000"]
    process = start(tmp_path, *endless, *TWO)
    last = tmp_path / "checkpoints" / "last.ckpt"
    begun = time.monotonic()
    while not last.exists():
        assert process.poll() is None and time.monotonic() - begun < 120, process.communicate()[0]
        time.sleep(0.2)
    (other,) = (
        int(pid)
        for pid in subprocess.run(
            ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
        ).stdout.split()
    )
    os.kill(other, signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode != 0
    step = checkpoint(tmp_path)["global_step"]
    told = finish(start(tmp_path, *endless, *TWO, "--ckpt_path", "last", "--trainer.max_steps", str(step + 1)))
    assert f"from step {step}" in told
    assert checkpoint(tmp_path)["global_step"] == step + 1
