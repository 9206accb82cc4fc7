import json
from pathlib import Path
from typing import Any, no_type_check

import numpy as np
import pytest
import torch
from PIL import Image

from composer.cascade.cascade import Cascade
from composer.cascade.stage import Stage
from composer.scenes import layout
from composer.storage import loading
from composer.training import dry_run

torch.set_num_threads(1)

# They are called a hundred thousand times and take no tensor of a stated shape: to check each call at run time takes
# longer than the call, and mypy checks them anyway
OFTEN: tuple[Any, ...] = (layout.Dice, layout.Camera, layout._fits, layout._hidden)
OFTEN += (loading._Unfilled, dry_run.Kernels, dry_run.LiveBytes)
for often in OFTEN:
    no_type_check(often)


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture
def batch():
    """Two small images with structure, as a dataset would yield them."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32), indexing="ij")
    disc = ((x**2 + y**2) < 0.4).float() * 2 - 1
    image = torch.stack([torch.stack([disc, x, y]), torch.stack([y, disc, -x])])
    return {"image": image, "caption": ["a red disc", "a green disc"], "seed": torch.tensor([1, 2])}


SIZE = 16
NETWORK = {"width": 16, "multipliers": [1, 2], "blocks": 1, "attention": [2], "head_dim": 16, "vector_dim": 32}
NETWORK |= {"token_dim": 16, "spatial_dim": 4}


def spatial(channels):
    return {"class_path": "conditions.Spatial", "init_args": {"in_channels": channels, "spatial_dim": 4, "hidden": 4}}


TINY: dict[str, Any] = {
    "name": "tiny",
    "stages": [
        {
            "file": "base.safetensors",
            "size": SIZE,
            "denoiser": {
                "class_path": "composer.diffusion.denoiser.Denoiser",
                "init_args": {
                    "network": {"class_path": "composer.networks.unet.UNet", "init_args": NETWORK},
                    "noise": {"class_path": "composer.diffusion.denoiser.LogNormal"},
                },
            },
            "conditions": {
                "palette": {
                    "class_path": "conditions.Vector",
                    "init_args": {"in_dim": 156, "vector_dim": 32, "token_dim": 16, "shares": True},
                },
                "intensity": spatial(1),
                "mask": spatial(4),
            },
            "sampling": {"steps": 4, "guidance": 2.0},
        }
    ],
    "decomposers": {
        "palette": {"class_path": "decomposers.Palette"},
        "intensity": {"class_path": "decomposers.Intensity"},
        "mask": {"class_path": "decomposers.Mask"},
    },
}


def shipped():
    """All that the model that ships is read with: small networks come along."""
    folder = Path(__file__).parent.parent / "composer" / "assets" / "scenes256"
    return json.loads((folder / "config.json").read_text())


def small(condition):
    """A condition of the shipped model, for the tiny network."""
    own = condition["init_args"]
    args = {k: {"vector_dim": 32, "token_dim": 16, "spatial_dim": 4}.get(k, v) for k, v in own.items()}
    return {**condition, "init_args": args}


def diffusion(model: Cascade, i: int = 0) -> Stage:
    """Stage i, which draws by diffusion."""
    stage = model.stages[i]
    assert isinstance(stage, Stage)
    return stage


def talkative(spec):
    torch.manual_seed(0)
    made = Cascade.from_spec(spec)
    with torch.no_grad():  # an untrained network ends in zeros: give it something to say
        for parameter in diffusion(made).denoiser.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return made


@pytest.fixture(scope="session")
def cascade():
    return talkative(TINY)


@pytest.fixture(scope="session")
def eight_folder(tmp_path_factory):
    """A tiny untrained model of all eight conditions, saved."""
    full = shipped()
    conditions = {name: small(condition) for name, condition in full["stages"][0]["conditions"].items()}
    stage = {**TINY["stages"][0], "conditions": conditions}
    folder = tmp_path_factory.mktemp("models") / "eight"
    talkative({**full, "name": "eight", "stages": [stage]}).save(folder, "# eight\n")
    return folder


@pytest.fixture(scope="session")
def eight(eight_folder):
    return Cascade.load(eight_folder)


@pytest.fixture
def saved(cascade, tmp_path):
    cascade.save(tmp_path / "model", "# tiny\n")
    return tmp_path / "model"


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{name}.png" for name in "ab"]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
    return [str(path) for path in paths]
