"""Trains a tiny DALL-E by `composer fit`, resumes it, exports it, draws with it."""

import shutil

import pytest
import torch
from PIL import Image

from composer.__main__ import main
from composer.autoregressive import ImageTokens
from composer.cascade.cascade import Cascade
from composer.cascade.token_stage import to_text
from composer.images.sheet import read_recipe
from composer.networks.dvae import DVAE
from composer.training.image_tokens import ImageTokensTraining
from decomposers import Agreement
from tests.training.small_runs import fit, require_exact_resume, require_same_in_halves

ENCODER = {"codes": 20, "width": 8, "start": 4, "blocks": 1, "levels": 3}
YAML = """
model:
  class_path: ImageTokensTraining
  init_args:
    tokens:
      class_path: ImageTokens
      init_args:
        {width: 16, layers: 3, heads: 2, vocabulary: 84, codes: 20, text_length: 30, rows: 8, columns: 8, kernel: 3}
    autoencoder: FOLDER
    size: 32
    learning_rate: 2.0e-3
    warmup_steps: 2
    drop: 0.5
data:
  train: {class_path: SceneImages, init_args: {split: train, size: 32, count: 8}}
  validation: {class_path: SceneImages, init_args: {split: val, size: 32, count: 4}}
  decomposers:
    caption: {class_path: Tokens, init_args: {length: 30, words: "asset:scenes_clip/words.txt"}}
  readers:
    caption: {class_path: Agreement, init_args: {weights: "asset:scenes_clip"}}
  batch_size: 2
trainer:
  accelerator: cpu
  max_steps: 6
  val_check_interval: 3
  gradient_clip_val: 1.0
  log_every_n_steps: 1
ema: {decay: 0.9}
checkpoints: {every: 3}
grid: {count: 2, samples: 1, guidance: 1.5, prompts: [a red cube]}
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokens")
    Agreement(weights="asset:scenes_clip")  # is built once in a process, which draws random numbers
    torch.manual_seed(0)
    dvae = DVAE(**ENCODER)
    dvae.encoder.last.weight.data *= 30  # as if it had learnt to use several codes
    dvae.save(root / "dvae")
    path = root / "small.yaml"
    path.write_text(YAML.replace("FOLDER", str(root / "dvae")))
    return path


@pytest.fixture(scope="module")
def run(config):
    return config.parent / "whole", fit(config, config.parent / "whole")


def test_a_resumed_training_is_the_one_that_was_not_interrupted(config, run, tmp_path):
    require_exact_resume(config, run[1], tmp_path)


def test_draws_belong_to_the_images_whatever_the_batches(config, run, tmp_path):
    require_same_in_halves(config, run[1], tmp_path, batch=2)


def test_the_dvae_is_a_part_of_the_checkpoint_and_is_not_trained(config, run):
    dvae = DVAE.load(config.parent / "dvae").state_dict()
    stored = {name: x for name, x in run[1]["state_dict"].items() if name.startswith("autoencoder.")}
    assert len(dvae) == len(stored) and all(torch.equal(stored[f"autoencoder.{name}"], x) for name, x in dvae.items())
    assert {name.partition(".")[0] for name in run[1]["ema"]} == {"tokens"}


def test_codes_of_another_dvae_are_refused(config, run, tmp_path, capsys):
    shutil.copytree(run[0], tmp_path / "run")
    DVAE(**ENCODER).save(tmp_path / "dvae")
    other = ["--model.autoencoder", str(tmp_path / "dvae")]
    words = ["fit", "-c", str(config), f"--trainer.default_root_dir={tmp_path / 'run'}", "--ckpt_path", "last"]
    assert main([*words, *other, "--trainer.max_steps", "8"]) == 1
    assert "this run learnt the codes of another dVAE" in capsys.readouterr().err
    DVAE(**ENCODER | {"codes": 21}).save(tmp_path / "larger")
    words = ["fit", "-c", str(config), f"--trainer.default_root_dir={tmp_path / 'new'}"]
    assert main([*words, "--model.autoencoder", str(tmp_path / "larger")]) == 1
    assert "expected 20 codes, found a dVAE of 21" in capsys.readouterr().err
    assert main([*words, "--model.autoencoder", str(tmp_path / "none")]) == 1
    assert "none" in capsys.readouterr().err


def test_the_grid_shows_captions_and_samples(run):
    grids = sorted((run[0] / "samples").iterdir())
    assert [path.name for path in grids] == ["0000003.png", "0000006.png"]
    with Image.open(grids[0]) as grid:
        assert min(grid.size) >= 3 * 32


@pytest.mark.parametrize("half", [False, True])
def test_the_exported_model_has_the_averaged_weights_and_draws(run, tmp_path, half):
    words = ["export", str(run[0]), str(tmp_path / "made"), "--guidance", "3", "--top-k", "7"]
    assert main([*words, *(["--half"] if half else [])]) in (None, 0)
    made = Cascade.load(tmp_path / "made")
    weights = made.stages[0].weights().state_dict()
    for name, value in (run[1]["state_dict"] | run[1]["ema"]).items():
        assert torch.equal(weights[name], value.half().float() if half else value)
    words = ["compose", "--model", str(tmp_path / "made"), "--caption", "a red cube", "--out", str(tmp_path / "out")]
    assert main([*words, "--best-of", "2"]) in (None, 0)
    settings = read_recipe(tmp_path / "out/compose_seed0.png")["stages"]["base"]
    assert settings == {"temperature": 1.0, "top_k": 7, "guidance": 3.0}


def test_export_refuses_settings_that_it_has_not(run, tmp_path, capsys):
    assert main(["export", str(run[0]), str(tmp_path / "made"), "--steps", "9"]) == 1
    assert "this model has temperature, top_k, guidance; found steps" in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


class Trainer:
    accumulate_grad_batches = world_size = 1
    global_step = global_rank = 0


@pytest.fixture
def training():
    torch.manual_seed(0)
    made = ImageTokensTraining(
        ImageTokens(16, 2, 2, 84, 20, 30, 4, 4, 3), "somewhere", 16, drop=0.0, learning_rate=1e-3
    )
    made.autoencoder = DVAE(**ENCODER)
    made.trainer = Trainer()
    return made


def batch(**more):
    value = torch.zeros(2, 30, 2)
    value[:, :4] = torch.tensor([[[82, 1], [5, 1], [6, 1], [83, 1]], [[82, 1], [7, 1], [9, 1], [83, 1]]])
    return {"image": torch.rand(2, 3, 16, 16) * 2 - 1, "representations": {"caption": value}, **more}


@torch.no_grad()
def test_the_loss_is_an_eighth_of_the_texts_and_seven_of_the_codes(training):
    given, logged = batch(), {}
    training.log = lambda name, value, **_: logged.update({name: float(value)})
    text = to_text(given["representations"]["caption"], 84, 30)
    codes = training.dvae.encode(given["image"])
    of_text, of_codes = training.tokens.negative_log_likelihood(text, codes)
    loss = training.training_step(given, 0)
    torch.testing.assert_close(loss, of_text.mean() / 8 + of_codes.mean() * 7 / 8)
    training.validation_step(given, 0)
    alone = training.tokens.negative_log_likelihood(torch.full_like(text, 84), codes)[1]
    assert logged["val/text"] == pytest.approx(of_text.mean().item())
    assert logged["val/codes"] == pytest.approx(of_codes.mean().item())
    assert logged["val/codes_without_text"] == pytest.approx(alone.mean().item())


def test_rows_without_a_caption_learn_codes_alone(training):
    training.log = lambda *_, **__: None
    given = batch(known={"caption": torch.tensor([True, False])})
    text = to_text(given["representations"]["caption"], 84, 30)
    text[1] = 84
    of_text, of_codes = training.tokens.negative_log_likelihood(text, training.dvae.encode(given["image"]))
    torch.testing.assert_close(training.training_step(given, 0), of_text[0].mean() / 16 + of_codes.mean() * 7 / 8)


def test_what_does_not_fit_is_refused(training):
    with pytest.raises(ValueError, match="of 16 x 16 pixels, the data gives 8 x 16"):
        training.training_step({**batch(), "image": torch.zeros(2, 3, 8, 16)}, 0)
    with pytest.raises(ValueError, match=r"drop in \[0, 1\]"):
        ImageTokensTraining(training.tokens, "somewhere", 16, drop=2.0)
