"""Trains a tiny dVAE by `composer fit`, resumes it, exports it."""

import math

import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio as by_skimage

from composer.__main__ import main
from composer.autoregressive import kl_weight_at, learning_rate_at, temperature_at
from composer.data.datasets import Photographs, collate
from composer.networks.dvae import DVAE
from composer.training.dvae import DVAETraining
from tests.training.small_runs import fit, require_exact_resume, require_same_in_halves

YAML = """
model:
  class_path: DVAETraining
  init_args:
    autoencoder: {class_path: DVAE, init_args: {codes: 12, width: 8, start: 4, blocks: 1, levels: 3}}
    kl_weight: 0.5
    kl_steps: 4
    temperature_steps: 6
    learning_rates: [2.0e-3, 1.0e-4]
    learning_rate_steps: 6
data:
  train: {class_path: Photographs, init_args: {size: 32}}
  validation: {class_path: Photographs, init_args: {size: 32, names: [rocket.jpg, chelsea.png]}}
  decomposers: {}
  batch_size: 2
trainer:
  accelerator: cpu
  max_steps: 6
  val_check_interval: 3
  gradient_clip_val: 1.0
  log_every_n_steps: 1
ema: {decay: 0.9}
checkpoints: {every: 3}
grid: {count: 2}
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("dvae") / "small.yaml"
    path.write_text(YAML)
    return path


@pytest.fixture(scope="module")
def run(config):
    return config.parent / "whole", fit(config, config.parent / "whole")


def test_a_resumed_training_is_the_one_that_was_not_interrupted(config, run, tmp_path):
    require_exact_resume(config, run[1], tmp_path)


def test_draws_belong_to_the_images_whatever_the_batches(config, run, tmp_path):
    require_same_in_halves(config, run[1], tmp_path, batch=2)


def test_the_learning_rate_follows_its_schedule(run):
    (schedule,) = run[1]["lr_schedulers"]
    assert schedule["_last_lr"] == pytest.approx([1e-4])


def test_the_grid_shows_pictures_beside_their_reconstructions(run):
    grids = sorted((run[0] / "samples").iterdir())
    assert [path.name for path in grids] == ["0000003.png", "0000006.png"]
    with Image.open(grids[0]) as grid:
        assert min(grid.size) >= 2 * 32


@pytest.mark.parametrize("half", [False, True])
def test_the_exported_dvae_has_the_averaged_weights(run, tmp_path, half):
    assert main(["export", str(run[0]), str(tmp_path / "made"), *(["--half"] if half else [])]) in (None, 0)
    made = DVAE.load(tmp_path / "made")
    assert (made.codes, made.levels, made.stride) == (12, 3, 4)
    assert made.encode(torch.zeros(1, 3, 8, 12)).shape == (1, 2, 3)
    for name, value in run[1]["ema"].items():
        stored = made.state_dict()[name.removeprefix("autoencoder.")]
        assert torch.equal(stored, value.half().float() if half else value)


def test_schedules_are_the_papers_unless_told_otherwise():
    assert kl_weight_at(2) == kl_weight_at(2, 6.6, 5000) and kl_weight_at(2, 3.0, 4) == pytest.approx(1.5)
    assert temperature_at(150_000) == 1 / 16 and temperature_at(2, 0.5, 4) == pytest.approx(0.75)
    assert learning_rate_at(0) == 1e-4 and learning_rate_at(9, (1.0, 0.1), 4) == pytest.approx(0.1)


class Trainer:
    """What a validation step asks of its trainer."""

    class strategy:
        reduce = staticmethod(lambda value, reduce_op: value)


@torch.no_grad()
def test_validation_measures_hard_codes():
    torch.manual_seed(0)
    images = collate([Photographs(size=32, names=["rocket.jpg", "chelsea.png"])[i, 0] for i in range(2)])["image"]
    dvae = DVAE(codes=12, width=8, start=4, blocks=1, levels=3)
    dvae.encoder.last.weight.data *= 30  # as if it had learnt to use several codes
    training = DVAETraining(dvae)
    training.trainer = Trainer()
    logged = {}
    training.log = lambda name, value, **_: logged.update({name: float(value)})
    training.on_validation_epoch_start()
    training.validation_step({"image": images}, 0)
    training.on_validation_epoch_end()
    codes = dvae.encode(images)
    found = dvae.decode(codes)
    true = [by_skimage(a.numpy(), b.numpy(), data_range=2) for a, b in zip(images, found, strict=True)]
    assert math.isclose(logged["val/psnr"], sum(true) / 2, rel_tol=1e-5)
    assert logged["val/codes"] == len(codes.unique()) > 1
    x = (0.8 * (images.double() + 1) / 2 + 0.1).clamp(0.1, 0.9)
    mean, log_scale = dvae.decoder(torch.eye(12)[codes].movedim(-1, 1)).double().chunk(2, dim=1)
    p = dvae.encoder(x.float()).double().softmax(1)
    laplace = torch.distributions.Laplace(mean, log_scale.exp()).log_prob(x.logit()) - (x * (1 - x)).log()
    assert math.isclose(logged["val/nats"], -laplace.mean().item(), rel_tol=1e-5)
    assert math.isclose(logged["val/kl"], (p * (12 * p).log()).sum(1).mean().item(), rel_tol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"temperature": 0.0}, "temperature in"),
        ({"learning_rates": (1e-4, 0.0)}, "learning_rates > 0"),
        ({"kl_weight": -1.0}, "kl_weight"),
        ({"kl_steps": 0}, "at least 1"),
    ],
)
def test_what_is_out_of_range_is_refused(wrong, says):
    dvae = DVAE(codes=12, width=8, start=4, blocks=1, levels=2)
    with pytest.raises(ValueError, match=says):
        DVAETraining(dvae, **wrong)


def test_images_of_another_size_and_no_levels_are_refused():
    with pytest.raises(ValueError, match="multiples of 2, found 7 x 8"):
        DVAE(codes=12, width=8, start=4, blocks=1, levels=2).encode(torch.zeros(1, 3, 7, 8))
    with pytest.raises(ValueError, match="at least one level"):
        DVAE(levels=0)
