"""The sample grid: what it draws, from what, and who gets it."""

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from composer.cascade.low_res import GaussianNoise, LowRes, shrink
from composer.data.loading import ImageData
from composer.diffusion.denoiser import Denoiser, LogNormal
from composer.networks.unet import UNet
from composer.training import sample_grid
from composer.training.sample_grid import SampleGrid
from composer.training.stage import StageTraining
from conditions import LowRes as LowResCondition
from conditions import TextTransformer
from decomposers import Tokens
from tests.training.test_training import Gradients, Losses, data, stage, trainer

pytestmark = pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have")


class Wandb(Losses):
    """Takes what Lightning's logger for Weights & Biases takes."""

    def __init__(self):
        super().__init__()
        self.images = []

    def log_image(self, *args, **kwargs):
        given = inspect.signature(WandbLogger.log_image).bind(self, *args, **kwargs).arguments
        assert isinstance(given["images"], list)
        self.images.append((given["key"], given["step"], given["images"]))


def fit(root, model, data, grid, logger=False, **options):
    options = {"max_steps": 2, "limit_val_batches": 1, "val_check_interval": 2} | options
    trainer(root, grid, logger=logger, **options).fit(model, data)


def test_every_logger_that_takes_images_gets_the_grid(tmp_path):
    loggers = [CSVLogger(tmp_path), TensorBoardLogger(tmp_path, name="", version="board"), Wandb()]
    fit(tmp_path, stage(), data(), SampleGrid(count=2, samples=1, steps=1), loggers)
    saved = np.asarray(Image.open(tmp_path / "samples" / "0000002.png"))
    ((key, step, (picture,)),) = loggers[2].images
    assert (key, step) == ("samples", 2) and (np.asarray(picture) == saved).all()
    board = EventAccumulator(str(tmp_path / "board")).Reload()
    (event,) = board.Images("samples")
    assert event.step == 2 and (event.height, event.width) == saved.shape[:2]


@pytest.fixture
def drawn(monkeypatch):
    """Labels, columns and cells of each grid."""
    grids = []

    def sheet(images, rows, columns):
        grids.append((rows, [dict(zip(columns, row, strict=True)) for row in images]))
        return own(images, rows, columns)

    own = sample_grid.sheet  # type: ignore[attr-defined]
    monkeypatch.setattr(sample_grid, "sheet", sheet)
    return grids


def small(conditions, **kwargs):
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "width": 16,
        "multipliers": (1, 2),
        "blocks": 1,
        "head_dim": 16,
        "vector_dim": 16,
        "token_dim": 16,
    }
    network = UNet(attention=(2,), **sizes, **kwargs)
    model = StageTraining(Denoiser(network, LogNormal()), conditions, 16)
    for p in model.parameters():  # a new network ends in zeros
        p.data.add_(torch.randn_like(p) * 0.02)
    return model


def test_prompts_add_rows_that_compare_along_the_training(tmp_path, drawn, capsys):
    tokens = Tokens(length=8, words="asset:scenes_clip/words.txt")
    model = small({"tokens": TextTransformer(tokens.vocabulary_size, 16, 1, 1, 16, 16, length=8)})
    prompts = ["a red cube", "a zebra"]
    images = ImageData(Gradients(), Gradients(), {"tokens": tokens}, 4)
    fit(tmp_path, model, images, SampleGrid(2, 2, 2, prompts=prompts), val_check_interval=1)
    said = capsys.readouterr().err
    assert said.count("note: --grid.prompts: tokens does not know or has no room for 'zebra' of 'a zebra'") == 1
    assert len(drawn) == 2
    for labels, rows in drawn:
        assert labels == ["", "", *prompts]
        assert all(row["image"] is None and row["tokens"] is not None for row in rows[2:])
        assert not torch.equal(rows[2]["sample 0"], rows[3]["sample 0"])  # two prompts from one noise
        assert not torch.equal(rows[2]["sample 0"], rows[2]["sample 1"])


def test_prompts_need_a_model_that_reads_captions(tmp_path):
    with pytest.raises(ValueError, match=r"the conditions intensity, palette: none of them reads captions"):
        fit(tmp_path, stage(), data(), SampleGrid(prompts=["a red cube"]))


def test_a_stage_that_enlarges_draws_from_the_clean_small_image(tmp_path, drawn):
    def upsampler():
        return small({"low_res": LowResCondition(vector_dim=16)}, spatial_dim=3)

    link = LowRes(GaussianNoise())
    images = ImageData(Gradients(), Gradients(), {"low_res": link}, 4)
    fit(tmp_path, upsampler(), images, SampleGrid(2, 1, 1))
    ((_, rows),) = drawn
    clean = shrink(torch.stack([row["image"] for row in rows]), 4)
    assert torch.equal(torch.stack([row["low_res"] for row in rows]), clean)
    assert rows[0]["sample 0"].shape == (3, 16, 16)
    with pytest.raises(ValueError, match="the conditions low_res: it enlarges images"):
        fit(tmp_path, upsampler(), images, SampleGrid(prompts=["a red cube"]))
