"""The network that reads Scenes back, its training, and the weights that ship."""

import json
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from composer.scenes import render_batch
from composer.scenes.reader import CATEGORIES, SceneReader, group_instances, instance_borders, load_reader
from composer.training.reader import ReaderTraining, count_matches, degrade, flip, save
from decomposers import SceneDepth, SceneInstances

TINY = SceneReader((8, 8, 8, 8), width=8)
SHIPPED = Path(__file__).parents[2] / "composer" / "assets" / "scenes_reader"


@pytest.fixture(scope="module")
def scenes():
    return render_batch("val", range(1000, 1016), 64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reader")
    save(TINY, {"steps": 0, "pictures": 0, "minutes": 0, "device": "cpu", "validation": {"val/depth_mae": 0.5}}, folder)
    return folder


def test_borders_are_where_two_instances_touch():
    ids = torch.zeros(1, 6, 8, dtype=torch.int64)
    ids[:, 1:5, 1:4], ids[:, 1:5, 4:7] = 1, 2
    expected = torch.zeros(1, 6, 8, dtype=torch.bool)
    expected[:, 1:5, 3:5] = True
    assert torch.equal(instance_borders(ids), expected)


def test_true_categories_and_borders_give_the_true_instances(scenes):
    """Up to names, but for things that another one cuts in two or hides to the last few pixels."""
    category, ids = scenes["instances"].long().unbind(1)
    agree = []
    for c, truth, border in zip(category.numpy(), ids.numpy(), instance_borders(ids).numpy(), strict=True):
        kept, found = group_instances(c, border)
        assert (kept == np.where(found > 0, c, 0)).all()
        pairs = np.unique(np.stack([truth[kept > 0], found[kept > 0]]), axis=1)
        assert len(np.unique(pairs[1])) == pairs.shape[1]  # no instance found spans two
        agree.append(pairs.shape[1] == len(np.unique(truth[truth > 0])))
    assert sum(agree) >= 14


def test_instances_of_one_kind_that_touch_are_cut_and_flecks_go():
    category = np.zeros((8, 12), dtype=np.int64)
    category[2:6, 1:11] = 3
    category[0, 0] = 2  # a fleck
    border = np.zeros((8, 12), dtype=bool)
    border[:, 5:7] = True
    kept, ids = group_instances(category, border)
    assert kept[0, 0] == 0 and ids.max() == 2
    assert (ids[2:6, 1:6] == ids[2, 1]).all() and (ids[2:6, 6:11] == ids[2, 10]).all()
    all_border = group_instances(category, np.ones_like(border))[1]
    assert all_border.max() == 1 and (all_border[2:6, 1:11] == 1).all()


def test_decomposers_of_one_folder_share_the_network(folder):
    assert SceneDepth(str(folder)).reader is SceneInstances(str(folder)).reader
    stored = load_reader(folder.resolve())
    for name, value in TINY.state_dict().items():
        torch.testing.assert_close(stored.state_dict()[name], value, atol=1e-3, rtol=1e-3)
    assert not any(parameter.requires_grad for parameter in stored.parameters()) and not stored.training


@pytest.mark.parametrize("size", [(64, 64), (32, 48), (130, 100)])
def test_any_size_goes_in_and_comes_out(folder, size):
    image = torch.rand(2, 3, *size) * 2 - 1
    depth, instances = SceneDepth(str(folder)), SceneInstances(str(folder))
    maps, ids = depth({"image": image}), instances({"image": image})
    assert maps.shape == (2, 1, *size) and maps.min() >= 0 and maps.max() <= 1
    assert ids.shape == (2, 2, *size) and torch.equal(ids, ids.round()) and ids[:, 0].max() <= len(CATEGORIES)
    assert torch.equal(ids[:, 0] > 0, ids[:, 1] > 0)
    torch.testing.assert_close(maps[1:], depth({"image": image[1:]}), atol=1e-4, rtol=0)
    torch.testing.assert_close(ids[1:], instances({"image": image[1:]}))


def test_missing_and_foreign_weights_are_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="SceneDepth needs the scenes reader"):
        SceneDepth(str(tmp_path / "absent"))
    with pytest.raises(FileNotFoundError, match=r"the scenes reader needs config\.json"):
        SceneInstances(str(tmp_path))
    config = json.loads((folder / "config.json").read_text())
    config["network"]["width"] = 12
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"weights do not match config\.json"):
        SceneDepth(str(tmp_path))


def test_truth_is_mirrored_with_the_picture(scenes):
    image, depth, instances = flip(scenes["image"], scenes["depth"], scenes["instances"])
    mirrored = (image == scenes["image"].flip(-1)).flatten(1).all(1)
    assert 0 < mirrored.sum() < len(image)
    for got, was in ((depth, scenes["depth"]), (instances, scenes["instances"])):
        expected = torch.where(mirrored[:, None, None, None], was.flip(-1), was)
        assert torch.equal(got, expected)
    worse = degrade(image, noise=0.2, blur=0.8)
    assert worse.shape == image.shape and (worse - image).flatten(1).std(1).min() > 0.01


def test_instances_match_by_more_than_half():
    truth, found = torch.zeros(2, 8, 8, dtype=torch.int64)
    truth[:4, :4], truth[5:, 5:] = 1, 3
    found[:4, :3], found[5:, 2:5], found[0, 7] = 2, 1, 4
    assert count_matches(truth, found).tolist() == [1, 2 + 3]
    assert count_matches(truth, truth * 2).tolist() == [2, 4]
    assert count_matches(truth * 0, truth * 0).tolist() == [0, 0]


class Rows(torch.utils.data.Dataset):
    def __init__(self, scenes):
        self.scenes = scenes

    def __len__(self):
        return len(self.scenes["image"])

    def __getitem__(self, index):
        return {name: self.scenes[name][index] for name in ("image", "depth", "instances")} | {"seed": index}


def test_training_learns_and_writes_what_it_measured(scenes, tmp_path):
    training = ReaderTraining(SceneReader((8, 16, 16, 16), 16), 1e-2, warmup=5, out=str(tmp_path / "asset"))
    trainer = L.Trainer(
        max_steps=40,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        check_val_every_n_epoch=None,
        val_check_interval=20,
    )
    train = torch.utils.data.DataLoader(Rows(scenes), 8, shuffle=True)
    trainer.fit(training, train, torch.utils.data.DataLoader(Rows(scenes), 16))
    config = json.loads((tmp_path / "asset" / "config.json").read_text())
    measured = config["training"]["validation"]
    depth = SceneDepth(str(tmp_path / "asset"))
    error = depth.distance(scenes["depth"], depth({"image": scenes["image"]})).mean().item()
    assert error == pytest.approx(measured["val/depth_mae"], abs=2e-3) and error < 0.12
    assert f"{measured['val/depth_mae']:.4f}" in (tmp_path / "asset" / "README.md").read_text()
    assert not list((tmp_path / "asset").glob("*.partial"))


def test_the_shipped_reader_reads_scenes_it_never_saw(scenes):
    """Also noisy or without colour, as generated pictures may be; against the truth of another scene."""
    assert (SHIPPED / "model.safetensors").stat().st_size <= 2_000_000
    depth, instances = SceneDepth(), SceneInstances()
    clean = scenes["image"]
    noisy, grey = clean + 0.1 * torch.randn_like(clean), clean.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    for image, worst in ((clean, 1.0), (noisy, 1.5), (grey, 1.5)):
        got, ids = depth({"image": image}), instances({"image": image})
        assert depth.distance(scenes["depth"], got).mean() < 0.01 * worst
        found = instances.distance(scenes["instances"], ids).mean()
        assert found < 0.2 * worst < 0.8 < instances.distance(scenes["instances"].roll(1, 0), ids).mean()


def test_the_shipped_reader_reads_other_sizes(scenes):
    large = F.interpolate(scenes["image"], (128, 128), mode="bicubic").clamp(-1, 1)
    got = SceneDepth()({"image": large})
    truth = F.interpolate(scenes["depth"], (128, 128), mode="bilinear")
    assert SceneDepth().distance(truth, got).mean() < 0.015
