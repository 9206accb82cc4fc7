"""Trains a tiny autoencoder by `composer fit`, resumes it, exports it."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio as by_skimage

from composer.__main__ import main
from composer.data.datasets import Photographs, collate
from composer.networks.autoencoder import Autoencoder
from composer.networks.discriminator import PatchDiscriminator
from composer.training.autoencoder import AutoencoderTraining
from composer.training.autoencoder_loss import hinge_loss
from composer.training.feature_maps import SceneFeatures
from composer.training.stage import noise_like, stream
from tests.training.small_runs import fit, require_exact_resume, require_same_in_halves

YAML = """
model:
  class_path: AutoencoderTraining
  init_args:
    autoencoder: {class_path: Autoencoder, init_args: {width: 8, multipliers: [1, 2], blocks: 1, groups: 4}}
    features: {class_path: SceneFeatures}
    perceptual_weight: 0.1
    learning_rate: 2.0e-3
    warmup_steps: 2
data:
  train:
    class_path: Crops
    init_args: {size: 32, dataset: {class_path: Photographs, init_args: {size: 64}}}
  validation: {class_path: Photographs, init_args: {size: 64, names: [rocket.jpg, chelsea.png]}}
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


AGAINST = """
    discriminator: {class_path: PatchDiscriminator, init_args: {width: 8, levels: 2}}
    adversarial_start: 2
    muon_rate: 0.01
data:
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("autoencoder") / "small.yaml"
    path.write_text(YAML)
    return path


@pytest.fixture(scope="module")
def run(config):
    return config.parent / "whole", fit(config, config.parent / "whole")


def test_a_resumed_training_is_the_one_that_was_not_interrupted(config, run, tmp_path):
    require_exact_resume(config, run[1], tmp_path)


def test_draws_belong_to_the_images_whatever_the_batches(config, run, tmp_path):
    require_same_in_halves(config, run[1], tmp_path, batch=2)


def test_a_training_against_a_discriminator_resumes_exactly_and_is_exported(tmp_path):
    path = tmp_path / "against.yaml"
    path.write_text(YAML.replace("data:\n", AGAINST.lstrip("\n"), 1))
    whole = fit(path, tmp_path / "whole")
    judge = {name for name in whole["state_dict"] if name.startswith("discriminator.")}
    assert judge and judge < set(whole["ema"])
    require_exact_resume(path, whole, tmp_path / "resumed")
    assert main(["export", str(tmp_path / "whole"), str(tmp_path / "made")]) in (None, 0)
    Autoencoder.load(tmp_path / "made")


def adversarial(step, weight=0.5):
    """The gradients of one step of a training whose discriminator counts from step 3 on, and the batch."""
    torch.manual_seed(1)
    made = Autoencoder(width=8, multipliers=[1, 2], blocks=1, groups=4)
    judge = PatchDiscriminator(width=8, levels=2)
    training = AutoencoderTraining(made, discriminator=judge, adversarial_weight=weight, adversarial_start=3)
    trainer = {"global_step": step, "accumulate_grad_batches": 1, "global_rank": 0}
    training._fabric, training.trainer = None, SimpleNamespace(**trainer)
    training.log_dict = lambda values: None
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    training.training_step({"image": images, "seed": torch.arange(2)}, 0).backward()
    return made, judge, images


def test_both_networks_learn_by_losses_of_their_own():
    """The autoencoder never learns to help the discriminator, nor the discriminator to flatter the autoencoder."""
    _, judge, _ = adversarial(2)
    assert all((p.grad == 0).all() for p in judge.parameters())
    unweighted, judge, images = adversarial(3, weight=0.0)
    twin = copy.deepcopy(judge)
    twin.zero_grad()
    with torch.no_grad():
        mean, log_variance = unweighted.moments(images)
        noise = noise_like(mean, [stream("noise", 0, seed) for seed in range(2)])
        found = unweighted.reconstruct(mean + (log_variance / 2).exp() * noise)
    hinge_loss(twin(images), twin(found)).backward()
    for own, true in zip(judge.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(own.grad, true.grad)
    weighted, _, _ = adversarial(3)
    last = (weighted.decoder.last[-1].weight, unweighted.decoder.last[-1].weight)
    change = (last[0].grad - last[1].grad).norm()
    torch.testing.assert_close(change, 0.5 * last[1].grad.norm(), rtol=1e-2, atol=0)  # that is what the weight is for


def test_the_reader_is_no_part_of_what_is_trained(run):
    names = {name.partition(".")[0] for name in run[1]["state_dict"]}
    assert names == {"autoencoder", "latent_moments"}
    assert set(run[1]["ema"]) == {name for name in run[1]["state_dict"] if name != "latent_moments"}


def test_the_grid_shows_pictures_beside_their_reconstructions(run):
    grids = sorted((run[0] / "samples").iterdir())
    assert [path.name for path in grids] == ["0000003.png", "0000006.png"]
    with Image.open(grids[0]) as grid:
        assert min(grid.size) >= 2 * 64


@pytest.mark.parametrize("half", [False, True])
def test_the_exported_autoencoder_has_the_averaged_weights_and_latents_of_unit_variance(run, tmp_path, half):
    assert main(["export", str(run[0]), str(tmp_path / "made"), *(["--half"] if half else [])]) in (None, 0)
    made = Autoencoder.load(tmp_path / "made")
    for name, value in run[1]["ema"].items():
        stored = made.state_dict()[name.removeprefix("autoencoder.")]
        assert torch.equal(stored, value.half().float() if half else value)
    mean, square = run[1]["state_dict"]["latent_moments"].tolist()
    assert math.isclose(made.scale, (square - mean**2) ** -0.5, rel_tol=1e-6)


def test_the_scale_is_one_over_the_deviation_of_the_training_images_latents():
    training = AutoencoderTraining(Autoencoder(width=8, multipliers=[1, 2], blocks=1, groups=4))
    latents = 3 + 0.5 * torch.randn(8, 4, 16, 16)
    training.trainer = type("Trainer", (), {"global_step": 10_000})()
    for _ in range(1000):
        training._measure(latents)
    mean, square = training.latent_moments.tolist()
    assert math.isclose((square - mean**2) ** 0.5, float(latents.std()), rel_tol=1e-3)
    training._measure(latents * math.inf)
    assert training.latent_moments.isfinite().all()


def test_validation_measures_the_psnr_of_whole_pictures():
    images = collate([Photographs(size=64, names=["rocket.jpg", "chelsea.png"])[i, 0] for i in range(2)])["image"]
    made = Autoencoder(width=8, multipliers=[1, 2], blocks=1, groups=4)
    training = AutoencoderTraining(made)
    logged = {}
    training.log = lambda name, value, **_: logged.update({name: float(value)})
    training.validation_step({"image": images}, 0)
    found = made.decode(made.encode(images)).clamp(-1, 1)
    true = [by_skimage(a.numpy(), b.numpy(), data_range=2) for a, b in zip(images, found, strict=True)]
    assert math.isclose(logged["val/psnr"], sum(true) / 2, rel_tol=1e-5)


def test_what_does_not_go_together_is_refused(run, tmp_path, capsys):
    with pytest.raises(ValueError, match="scale is measured in the training"):
        AutoencoderTraining(Autoencoder(width=8, multipliers=[1, 2], groups=4, scale=0.5))
    with pytest.raises(ValueError, match="sides are multiples of 32 pixels, found 48 x 64"):
        SceneFeatures()(torch.zeros(1, 3, 64, 48))
    assert main(["export", str(run[0]), str(tmp_path / "made"), "--guidance", "2"]) == 1
    assert "draws nothing: leave out guidance" in capsys.readouterr().err and not (tmp_path / "made").exists()


def test_features_are_frozen_and_lead_back_to_the_images():
    images = torch.rand(1, 3, 64, 64, requires_grad=True)
    layers = SceneFeatures()(images)
    assert [layer.shape[2] for layer in layers] == [64, 32, 16, 8, 4, 2]
    sum(layer.sum() for layer in layers).backward()
    assert images.grad.abs().sum() > 0
