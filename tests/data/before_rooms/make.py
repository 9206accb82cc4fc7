"""What made this folder, with version 0.1.0 (flat composer/): a record, not to be run again."""

import sys
from pathlib import Path

import numpy as np
import torch
import yaml
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from PIL import Image

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
torch.set_num_threads(1)
torch.manual_seed(0)

from composer.clip_training import ClipTraining  # noqa: E402

from composer.__main__ import main  # noqa: E402
from composer.cascade import Cascade  # noqa: E402
from composer.prior import Prior  # noqa: E402
from composer.scenes import render_batch  # noqa: E402
from composer.storage import carry_weights  # noqa: E402

clip, model, prior = HERE / "clip", HERE / "model", HERE / "prior"


def enliven(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)


def make_clip():
    vision = CLIPVisionCfg(image_size=32, layers=(1, 1, 1, 1), width=4, head_width=32)
    text = CLIPTextCfg(vocab_size=84, width=32, heads=2, layers=1, context_length=40)
    training = ClipTraining(vision, text, "asset:scenes_clip/words.txt", embed_dim=16)
    from unittest.mock import Mock

    datamodule = Mock(train=[0], validation=[0], batch_size=1)
    training.trainer = Mock(
        datamodule=datamodule, global_step=0, callback_metrics={"val/image_to_text": 0, "val/text_to_image": 0}
    )
    training.started = 0
    training._half_error = lambda: 0.0
    training.save(clip)


NETWORK = {"width": 16, "multipliers": [1], "blocks": 1, "attention": [1], "head_dim": 16, "vector_dim": 16}
NETWORK |= {"token_dim": 8, "spatial_dim": 4}
WIDTHS = {"vector_dim": 16, "token_dim": 8}


def denoiser(noise):
    return {
        "class_path": "composer.denoiser.Denoiser",
        "init_args": {"network": {"class_path": "composer.unet.UNet", "init_args": NETWORK}, "noise": noise},
    }


def spatial(channels):
    return {"class_path": "conditions.Spatial", "init_args": {"in_channels": channels, "spatial_dim": 4, "hidden": 4}}


def make_model():
    vector = {"class_path": "conditions.Vector"}
    text = {"vocabulary_size": 84, "width": 16, "layers": 1, "heads": 2, "length": 40, **WIDTHS}
    noise = {"class_path": "composer.low_res.GaussianNoise", "init_args": {"highest": 0.1}}
    low_res = {"class_path": "composer.low_res.LowRes", "init_args": {"corruption": noise, "scale": 2}}
    base = {
        "file": "base.safetensors",
        "size": 16,
        "denoiser": denoiser({"class_path": "composer.denoiser.LogNormal"}),
        "conditions": {
            "caption": {"class_path": "conditions.TextTransformer", "init_args": text},
            "semantics": {**vector, "init_args": {"in_dim": 16, **WIDTHS}},
            "palette": {**vector, "init_args": {"in_dim": 156, "shares": True, **WIDTHS}},
            "intensity": spatial(1),
            "mask": spatial(4),
        },
        "sampling": {"steps": 4, "guidance": 2.0},
    }
    up = {
        "file": "up32.safetensors",
        "size": 32,
        "denoiser": denoiser({"class_path": "composer.denoiser.Cosine"}),
        "conditions": {
            "palette": {**vector, "init_args": {"in_dim": 156, "shares": True, **WIDTHS}},
            "low_res": {
                "class_path": "conditions.LowRes",
                "init_args": {"spatial_dim": 4, "vector_dim": 16, "width": 16},
            },
        },
        "sampling": {"sampler": "heun", "steps": 3, "guidance": 1.0},
        "low_res": low_res,
    }
    spec = {
        "name": "frozen",
        "stages": [base, up],
        "decomposers": {
            "caption": {
                "class_path": "decomposers.Tokens",
                "init_args": {"length": 40, "words": str(clip / "words.txt")},
            },
            "semantics": {"class_path": "decomposers.Semantics", "init_args": {"weights": str(clip)}},
            "palette": {"class_path": "decomposers.Palette"},
            "intensity": {"class_path": "decomposers.Intensity"},
            "mask": {"class_path": "decomposers.Mask"},
        },
        "readers": {"caption": {"class_path": "decomposers.Agreement", "init_args": {"weights": str(clip)}}},
    }
    cascade = Cascade.from_spec(spec)
    for stage in cascade.stages:
        enliven(stage.denoiser)
        enliven(stage.conditions)
    cascade.spec = carry_weights(spec, model)
    cascade.save(model, "# frozen\n")


def make_prior():
    arguments = {"dim": 16, "caption_dim": 32, "width": 16, "layers": 1, "heads": 2, "length": 40, "steps": 4}
    spec = {
        "name": "frozen_prior",
        "priors": [
            {"file": "prior.safetensors", "class_path": "composer.prior.DiffusionPrior", "init_args": arguments}
        ],
        "decomposers": {
            "text": {"class_path": "decomposers.Caption", "init_args": {"weights": str(clip)}},
            "semantics": {"class_path": "decomposers.Semantics", "init_args": {"weights": str(clip)}},
        },
    }
    made = Prior.from_spec(spec)
    enliven(made)
    made.spec = carry_weights(spec, prior)
    made.save(prior, "# frozen prior\n")


def draw_pictures():
    image = render_batch("val", [3], 48)["image"][0]
    pixels = ((image + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(HERE / "photo.png")
    mask = np.zeros((48, 48), np.uint8)
    mask[10:30, 8:40] = 255
    Image.fromarray(mask).save(HERE / "region.png")
    common = ["--model", str(model), "--seeds", "5", "--out", str(HERE)]
    photo = str(HERE / "photo.png")
    for command in (
        ["compose", "--caption", "a red cube on grass", "--prior", str(prior), "--palette", photo],
        ["edit", photo, "--region", str(HERE / "region.png"), "--palette", "#aa3311"],
        ["vary", photo],
    ):
        assert main([*command, *common]) == 0, command


CONFIGURATIONS = {
    "stage": {
        "seed_everything": 0,
        "model": {
            "class_path": "composer.training.StageTraining",
            "init_args": {
                "denoiser": denoiser({"class_path": "composer.denoiser.Cosine"}),
                "conditions": {"intensity": spatial(1), "theirs": {"class_path": "plugin.Mean", "init_args": WIDTHS}},
                "size": 16,
                "warmup_steps": 1,
            },
        },
        "data": {
            "train": {
                "class_path": "composer.datasets.SceneImages",
                "init_args": {"split": "train", "size": 16, "count": 8},
            },
            "validation": {
                "class_path": "composer.data.SceneImages",
                "init_args": {"split": "val", "size": 16, "count": 2},
            },
            "decomposers": {
                "intensity": {"class_path": "decomposers.Intensity"},
                "theirs": {"class_path": "plugin.Brightness"},
            },
            "batch_size": 2,
        },
        "trainer": {"max_steps": 3, "val_check_interval": 3, "accelerator": "cpu", "log_every_n_steps": 1},
    },
    "clip": {
        "seed_everything": 0,
        "model": {
            "class_path": "composer.clip_training.ClipTraining",
            "init_args": {
                "embed_dim": 16,
                "vision": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 4, "head_width": 32},
                "text": {"context_length": 40, "vocab_size": 84, "width": 32, "heads": 2, "layers": 1},
                "words": "asset:scenes_clip/words.txt",
            },
        },
        "data": {
            "train": {
                "class_path": "composer.data.SceneImages",
                "init_args": {"split": "train", "size": 32, "count": 8},
            },
            "validation": {"class_path": "SceneImages", "init_args": {"split": "val", "size": 32, "count": 4}},
            "decomposers": {
                "tokens": {"class_path": "Tokens", "init_args": {"length": 40, "words": "asset:scenes_clip/words.txt"}}
            },
            "batch_size": 4,
        },
        "trainer": {"max_steps": 2, "val_check_interval": 2, "accelerator": "cpu", "inference_mode": False},
        "ema": {"decay": 0.0},
    },
    "reader": {
        "seed_everything": 0,
        "model": {
            "class_path": "composer.reader_training.ReaderTraining",
            "init_args": {"network": {"class_path": "composer.reader.SceneReader"}, "warmup": 1},
        },
        "data": {
            "train": {
                "class_path": "composer.data.SceneImages",
                "init_args": {"split": "train", "size": 64, "count": 4},
            },
            "validation": {
                "class_path": "composer.datasets.SceneImages",
                "init_args": {"split": "val", "size": 64, "count": 2},
            },
            "decomposers": {},
            "batch_size": 2,
        },
        "trainer": {"max_steps": 2, "val_check_interval": 2, "accelerator": "cpu"},
        "ema": {"decay": 0.0},
    },
}


def make_configurations():
    for name, configuration in CONFIGURATIONS.items():
        (HERE / f"{name}.yaml").write_text(yaml.safe_dump(configuration, sort_keys=False))


if __name__ == "__main__":
    make_clip()
    make_model()
    make_prior()
    draw_pictures()
    make_configurations()
