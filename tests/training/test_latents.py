"""Trains a tiny stage on latents by `composer fit`, exports it, draws with it."""

from typing import Any

import pytest
import torch

from composer import Cascade
from composer.__main__ import main
from composer.data import ImageFolder
from composer.data.columns import write_columns
from composer.data.datasets import Photographs
from composer.decomposition import Decomposition
from composer.images.sheet import save_png, to_pil
from composer.networks.autoencoder import Autoencoder
from composer.training import checkpoint as checkpoints
from composer.training.doctor import estimate_training_needs
from decomposers import Latents
from tests.conftest import diffusion

SIZE = 32
YAML = """
model:
  class_path: StageTraining
  init_args:
    denoiser:
      class_path: Denoiser
      init_args:
        network:
          class_path: UNet
          init_args:
            channels: CHANNELS
            width: 16
            multipliers: [1, 2]
            blocks: 1
            attention: [2]
            head_dim: 16
            vector_dim: 16
            token_dim: 16
            spatial_dim: 4
        noise: Cosine
        sigma_data: 1.0
    conditions:
      palette: {class_path: Vector, init_args: {in_dim: 156, vector_dim: 16, token_dim: 16}}
      mask: {class_path: Spatial, init_args: {in_channels: 4, spatial_dim: 4}}
    size: 32
    codec: CODEC
    muon_rate: 0.02
    warmup_steps: 0
data:
  train: {class_path: ImageFolder, init_args: {path: IMAGES, size: 32, captions: empty}}
  validation: {class_path: Photographs, init_args: {size: 32, names: [rocket.jpg]}}
  decomposers:
    palette: Palette
    mask: Mask
    latents: {class_path: Latents, init_args: {weights: CODEC}}
  batch_size: 2
trainer:
  accelerator: cpu
  max_steps: 2
  val_check_interval: 2
  gradient_clip_val: 1.0
  log_every_n_steps: 1
ema: {decay: 0.9}
checkpoints: {every: 1}
grid: {count: 1, samples: 1, steps: 2}
"""


def make_codec(folder, seed=1, **changes):
    torch.manual_seed(seed)
    plan: dict[str, Any] = {"width": 8, "multipliers": [1, 2], "blocks": 1, "groups": 4, "scale": 2.0}
    made = Autoencoder(**plan | changes)
    made.save(folder)
    return made


@pytest.fixture
def codec(tmp_path):
    return make_codec(tmp_path / "codec")


@pytest.fixture
def images(tmp_path):
    pictures = Photographs(SIZE, names=["chelsea.png", "coffee.png", "ihc.png"])
    (tmp_path / "images").mkdir()
    for i in range(3):
        save_png(tmp_path / "images" / f"{i}.png", to_pil(pictures.row(i, 0)["image"]))
    return ImageFolder(str(tmp_path / "images"), SIZE, captions="empty")


def write(folder, channels=4, **changes):
    text = YAML.replace("CODEC", str(folder / "codec")).replace("IMAGES", str(folder / "images"))
    text = text.replace("CHANNELS", str(channels))
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    path = folder / "small.yaml"
    path.write_text(text)
    return path


def fit(path, root, *words):
    return main(["fit", "-c", str(path), f"--trainer.default_root_dir={root}", *words])


def last(root):
    return checkpoints.load(root / "checkpoints" / "last.ckpt")


def test_a_stage_trained_on_latents_is_exported_and_draws(codec, images, tmp_path):
    assert fit(write(tmp_path), tmp_path / "run") in (None, 0)
    found = last(tmp_path / "run")
    frozen = {f"codec.{name}": value for name, value in codec.state_dict().items()}
    assert all(torch.equal(found["state_dict"][name], value) for name, value in frozen.items())
    assert not any(name.startswith("codec.") for name in found["ema"])
    trained = sum(len(group["params"]) for group in found["optimizer_states"][0]["param_groups"])
    assert trained == len(found["ema"]) == len(found["state_dict"]) - len(frozen)
    assert (tmp_path / "run" / "samples" / "0000002.png").is_file()

    (tmp_path / "codec").rename(tmp_path / "gone")  # the run holds all that it takes
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "model"), "--steps", "2"]) in (None, 0)
    model = Cascade.load(tmp_path / "model")
    own = diffusion(model).codec
    assert isinstance(own, Autoencoder) and own.arguments() == codec.arguments()
    assert all(torch.equal(own.state_dict()[name], value) for name, value in codec.state_dict().items())
    drawn = model.sample(seeds=[0, 1])
    assert drawn.shape == (2, 3, SIZE, SIZE) and drawn.isfinite().all() and not torch.equal(drawn[0], drawn[1])


def test_latents_beside_the_images_train_as_those_that_are_encoded(codec, images, tmp_path):
    path = write(tmp_path)
    assert fit(path, tmp_path / "encoded") in (None, 0)
    assert main(["cache", "-c", str(path), "--names", "latents"]) in (None, 0)
    column = ImageFolder(str(tmp_path / "images"), SIZE, captions="empty").row(1, 0)
    wanted = codec.encode(column["image"][None])[0]
    assert torch.allclose(column["latents"], wanted, atol=2e-3 * float(wanted.abs().max()))
    (tmp_path / "images" / "2.latents.npy").unlink()  # of a mixture, some rows may lack them
    assert fit(path, tmp_path / "cached") in (None, 0)
    one, other = (last(tmp_path / name)["ema"] for name in ("encoded", "cached"))
    assert all(torch.allclose(one[name], other[name], atol=1e-2) for name in one)
    loose = [float((one[name] - other[name]).abs().max()) for name in one]
    assert max(loose) > 0  # float16 columns were read


def test_latents_of_another_autoencoder_are_refused(codec, images, tmp_path, capsys):
    path = write(tmp_path)
    make_codec(tmp_path / "another", seed=2)
    write_columns(images, Decomposition({"latents": Latents(str(tmp_path / "another"))}))
    assert fit(path, tmp_path / "a") == 1
    assert "the latents beside the images are not those of" in capsys.readouterr().err
    for file in (tmp_path / "images").glob("*.npy"):
        file.unlink()
    make_codec(tmp_path / "coarser", multipliers=[1, 2, 2])
    write_columns(images, Decomposition({"latents": Latents(str(tmp_path / "coarser"))}))
    assert fit(path, tmp_path / "b") == 1
    assert "expected latents of shape (4, 16, 16) beside the images, found (4, 8, 8)" in capsys.readouterr().err


def test_a_codec_that_does_not_fit_the_stage_is_refused(codec, images, tmp_path, capsys):
    assert fit(write(tmp_path, channels=3), tmp_path / "a") == 1
    assert "latents have 4 channels, the network's images 3" in capsys.readouterr().err
    make_codec(tmp_path / "codec", multipliers=[1, 1, 1, 1, 1, 1])
    assert fit(write(tmp_path), tmp_path / "b") == 1
    assert "divides sides by 32, the network by 2: expected a size in multiples of 64" in capsys.readouterr().err


def test_a_run_is_not_resumed_on_other_latents(codec, images, tmp_path, capsys):
    path = write(tmp_path)
    assert fit(path, tmp_path / "run") in (None, 0)
    make_codec(tmp_path / "codec", scale=3.0)
    assert fit(path, tmp_path / "run", "--ckpt_path", "last", "--trainer.max_steps", "3") == 1
    assert "works on the latents of another codec" in capsys.readouterr().err


def test_a_resumed_stage_is_the_one_that_was_not_interrupted(codec, images, tmp_path):
    path = write(tmp_path)
    assert fit(path, tmp_path / "whole") in (None, 0)
    assert fit(path, tmp_path / "parts", "--trainer.max_steps", "1") in (None, 0)
    assert fit(path, tmp_path / "parts", "--ckpt_path", "last") in (None, 0)
    for part in ("state_dict", "ema"):
        whole, parts = (last(tmp_path / name)[part] for name in ("whole", "parts"))
        assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_warm_start_takes_the_stage_and_leaves_the_codec(codec, images, tmp_path, capsys):
    path = write(tmp_path)
    assert fit(path, tmp_path / "run") in (None, 0)
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "model"), "--half"]) in (None, 0)
    start = ["--model.start_from", str(tmp_path / "model")]
    assert fit(path, tmp_path / "next", *start, "--trainer.max_steps", "1", "--model.learning_rate", "1e-9") in (
        None,
        0,
    )
    found, model = last(tmp_path / "next")["state_dict"], Cascade.load(tmp_path / "model")
    name = "denoiser.network.embed.0.weight"
    assert torch.allclose(found[name], model.stages[0].weights().state_dict()[name], atol=1e-6)
    assert all(torch.equal(found[f"codec.{name}"], value) for name, value in codec.state_dict().items())
    make_codec(tmp_path / "codec", scale=3.0)
    assert fit(path, tmp_path / "third", *start) == 1
    assert "works on other latents: expected a codec with channels, factor and scale" in capsys.readouterr().err


def test_a_reader_loss_on_latents_is_refused(codec, images, tmp_path, capsys):
    reader = "{class_path: composer.training.reader_loss.ReaderLoss, init_args: {readers: {palette: Palette}}}"
    path = write(tmp_path, **{"muon_rate: 0.02": f"reader_loss: {reader}"})
    assert fit(path, tmp_path / "run") == 1
    assert "reader_loss reads pictures" in capsys.readouterr().err


def test_the_doctor_counts_latents_not_pixels(codec, images, tmp_path):
    path = write(tmp_path)
    found = estimate_training_needs(["-c", str(path)], batch=1, device="cpu")
    small = ["--model.codec", "null", "--model.size", "16"]
    plain = estimate_training_needs(["-c", str(path), *small], batch=1, device="cpu")
    assert found.codec == sum(p.numel() for p in codec.parameters()) and plain.codec == 0
    assert plain.sampling == found.sampling and plain.configured == found.configured
    assert found.encoding_flops > 0 and plain.encoding_flops == 0
