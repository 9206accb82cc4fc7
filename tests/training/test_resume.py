"""Real trainings, killed with SIGKILL at random moments and resumed, end bit for bit like one that was not.

COMPOSER_KILLS is the number of kills per number of workers (default 2; 20 is the long version).
"""

import multiprocessing
import os
import random
import signal
import sys
import time

import pytest
import torch

from composer.__main__ import main
from composer.training import checkpoint as checkpoints

KILLS = int(os.environ.get("COMPOSER_KILLS", "2"))
STEPS = 12
# Each run is a process of its own; they are forked off one that has imported everything, which takes longer than a run
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["composer.__main__", "composer.training.cli", "tests.training.test_resume"])
YAML = """
let: {vector_dim: 16, token_dim: 16, spatial_dim: 4}
model:
  class_path: StageTraining
  init_args:
    denoiser:
      class_path: Denoiser
      init_args:
        network:
          class_path: UNet
          init_args:
            width: 16
            multipliers: [1, 2]
            blocks: 1
            attention: [2]
            head_dim: 16
            dropout: 0.1
            vector_dim: ${let.vector_dim}
            token_dim: ${let.token_dim}
            spatial_dim: ${let.spatial_dim}
        noise: Cosine
    conditions:
      palette:
        class_path: Vector
        init_args: {in_dim: 156, vector_dim: "${let.vector_dim}", token_dim: "${let.token_dim}"}
      mask:
        class_path: Spatial
        init_args: {in_channels: 4, spatial_dim: "${let.spatial_dim}"}
    size: 16
    warmup_steps: 5
RECIPE
data:
  train: {class_path: Photographs, init_args: {size: 16, names: [chelsea.png, coffee.png, ihc.png]}}
  validation: {class_path: Photographs, init_args: {size: 16, names: [rocket.jpg]}}
  decomposers: {palette: Palette, mask: Mask}
  batch_size: 2
trainer:
  accelerator: cpu
  max_steps: 12
  val_check_interval: 5
  gradient_clip_val: 1.0
  accumulate_grad_batches: 2
  log_every_n_steps: 1
ema: {decay: 0.9}
checkpoints: {every: 2}
grid: {count: 1, samples: 1, steps: 2}
"""
RECIPES = {
    "paper": "",
    "words": """
    muon_rate: 0.02
    decay_steps: 20
    keep_one: 0.4
    keep_weights: {palette: 2}
    noise_without_maps: {class_path: LogNormal, init_args: {mean: 0.5, std: 1.6}}
""",
}


@pytest.fixture
def config(tmp_path, recipe):
    path = tmp_path / "small.yaml"
    path.write_text(YAML.replace("RECIPE", RECIPES[recipe]))
    return path


@pytest.fixture
def uninterrupted(config):
    finish(*start(config, config.parent / "whole", workers=0))
    return state(config.parent / "whole")


def train(words, errors):
    """Runs in a process of its own, whose errors go into a pipe."""
    os.dup2(errors.fileno(), 2)
    errors.close()
    sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", closefd=False)
    multiprocessing.set_start_method(None, force=True)  # a DataLoader's workers begin as they do for users
    torch.set_num_threads(1)
    sys.exit(main(words))


def start(config, root, workers):
    """Starts a run; returns its process and the lines that it writes to stderr."""
    words = ["fit", "-c", str(config), "--ckpt_path", "last"]
    words += [f"--trainer.default_root_dir={root}", f"--data.workers={workers}"]
    reader, writer = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=train, args=(words, writer))
    process.start()
    writer.close()
    lines = os.fdopen(os.dup(reader.fileno()), encoding="utf-8")
    reader.close()
    return process, lines


def finish(process, lines):
    with lines:
        errors = lines.read()
    process.join()
    assert process.exitcode == 0, errors


def state(root):
    last = checkpoints.load(root / "checkpoints" / "last.ckpt")
    assert last["global_step"] == STEPS
    tensors = {f"{part}.{name}": value for part in ("state_dict", "ema") for name, value in last[part].items()}
    moments = last["optimizer_states"][0]["state"]
    return tensors | {f"{i}.{name}": value for i, m in moments.items() for name, value in m.items()}


def kill_once(config, root, workers, chance):
    """Kills the run somewhere between its first and its last step; False where it was done before that."""
    process, lines = start(config, root, workers)
    wanted = None
    with lines:
        for line in lines:
            if line.startswith("step "):
                step = int(line.split()[1].partition("/")[0])
                wanted = chance.randint(step, STEPS) if wanted is None else wanted
                if step >= wanted:
                    time.sleep(chance.random() * 0.2)
                    break
        process.kill()
        process.join()
    return process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize(("recipe", "workers"), [("paper", 0), ("words", 2)])
def test_killed_runs_end_like_one_that_was_not(config, uninterrupted, workers, capsys):
    chance = random.Random()
    kills = runs = 0
    while kills < KILLS:
        root = config.parent / f"killed-{workers}-{runs}"
        for _ in range(2):
            kills += kill_once(config, root, workers, chance)
        finish(*start(config, root, workers))
        killed = state(root)
        different = [name for name in uninterrupted if not torch.equal(killed[name], uninterrupted[name])]
        assert killed.keys() == uninterrupted.keys() and not different
        runs += 1
    with capsys.disabled():
        print(f" [{workers} workers: {kills} kills in {runs} runs, {runs} identical]", end="")
