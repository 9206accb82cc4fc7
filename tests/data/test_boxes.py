"""Boxes of objects follow the crops and flips of their image, from a folder and from prepared shards."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from composer.data import Crops, ImageFolder, Mixture, ShardFolder
from composer.data.boxes import crop_boxes, read_boxes
from composer.data.datasets import ImageDataset, collate
from composer.data.preparing import Preparation, prepare
from composer.data.sources import open_source
from composer.decomposition import Decomposition
from composer.images.reading import Refused
from decomposers import Objects

PIXELS = (40, 12, 72, 44)  # left, top, right, bottom of the red box
BOX = (PIXELS[0] / 128, PIXELS[1] / 64, PIXELS[2] / 128, PIXELS[3] / 64)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(2):
        image = np.zeros((64, 128, 3), dtype=np.uint8)
        image[PIXELS[1] : PIXELS[3], PIXELS[0] : PIXELS[2], 0] = 255 * (1 - i)
        Image.fromarray(image).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text("a red box")
    (folder / "0.boxes.json").write_text(json.dumps([[BOX, "a red cube"], [[56 / 128, 28 / 64], "its middle"]]))
    return folder


def objects():
    return Objects(weights="asset:scenes_clip", slots=3)


def shards(photos, out, **decomposers):
    prepare(open_source(photos, 2), out, Preparation(64), Decomposition(decomposers))
    return out


def seen(image):
    """The red box as its pixels show it, and how much of it."""
    rows, columns = torch.nonzero(image[0] > 0, as_tuple=True)
    share = len(rows) / ((PIXELS[2] - PIXELS[0]) * (PIXELS[3] - PIXELS[1]))
    if not len(rows):
        return None, share
    h, w = image.shape[1:]
    return (
        *(float(x.min()) / n for x, n in ((columns, w), (rows, h))),
        (columns.max() + 1) / w,
        (rows.max() + 1) / h,
    ), share


@pytest.mark.parametrize(
    ("kind", "crop"), [(k, c) for k in ("folder", "shards") for c in ("centre", "random")] + [("crops", "centre")]
)
def test_a_box_stays_around_its_pixels(photos, tmp_path, kind, crop):
    data: ImageDataset
    if kind == "shards":
        data = ShardFolder(str(shards(photos, tmp_path / "shards", objects=objects())), 64, crop=crop, flip=True)
    else:
        data = ImageFolder(str(photos), 64, crop=crop, flip=True)
    data = Crops(Mixture([data], [1]), 24) if kind == "crops" else data
    counts = []
    for seed in range(24):
        row = data.row(0, seed)
        wanted, share = seen(row["image"])
        found = [place for phrase, place in row["boxes"] if phrase == "a red cube"]
        assert len(found) == (share >= 0.5)
        if found:
            assert found[0] == pytest.approx([float(x) for x in wanted])
        counts.append(len(row["boxes"]))
        for x, y in (place for phrase, place in row["boxes"] if phrase == "its middle"):
            side = row["image"].shape[1]
            assert row["image"][0, int(y * side - 0.5), int(x * side - 0.5)] > 0.9
        if kind == "shards":
            of_boxes = objects()({"boxes": [row["boxes"]]})[0]
            kept = row["objects"][row["objects"][:, -1] > 0.5]
            torch.testing.assert_close(kept, of_boxes[: len(kept)], atol=4e-3, rtol=4e-3)
            assert len(kept) == len(row["boxes"]) and len(row["objects"].unique(dim=0)) == len(kept) + 1
        assert data.row(1, seed)["boxes"] == []
    assert set(counts) == {2} if (kind, crop) in (("folder", "centre"), ("shards", "centre")) else len(set(counts)) > 1
    assert collate([data.row(0, 0), data.row(1, 0)])["boxes"][1] == []


def test_what_a_crop_leaves_out():
    row = {
        "boxes": [
            ("half", (0.25, 0.0, 0.75, 1.0)),
            ("less", (0.125, 0.0, 0.75, 1.0)),
            ("corner", (0.5, 0.0)),
            ("out", (0.2, 0.5)),
        ]
    }
    assert crop_boxes(row, frozenset(), (0.5, 0.0, 0.5, 1.0)) == {"boxes": [("half", (0.0, 0.0, 0.5, 1.0))]}
    assert crop_boxes(row, frozenset(), (0.0, 0.0, 1.0, 1.0)) == row  # to the last bit


def test_tar_files_of_others_keep_their_boxes(photos, tmp_path):
    (tmp_path / "theirs").mkdir()
    with tarfile.open(tmp_path / "theirs" / "a.tar", "w") as tar:
        for path in sorted(photos.iterdir()):
            tar.add(path, path.name)
    data = ShardFolder(str(shards(tmp_path / "theirs", tmp_path / "shards")), 64)
    folder = ImageFolder(str(photos), 64)
    assert [data.row(i, 0)["boxes"] for i in range(2)] == [folder.row(i, 0)["boxes"] for i in range(2)]
    assert len(data.row(0, 0)["boxes"]) == 2


@pytest.mark.parametrize(
    "text",
    [
        *("", "[", "3", '{"a": 1}', '[["a"]]', "[[[0, 0, 1, 1], 3]]", '[[[0, 0, 1], "a"]]', '[[[0, 0, 1.1, 1], "a"]]'),
        *('[[[0.5, 0, 0.5, 1], "a"]]', '[[[0, 0, NaN, 1], "a"]]', '[["0011", "a"]]', "[" * 100_000),
    ],
)
def test_a_damaged_file_of_boxes_is_refused(photos, tmp_path, text):
    (photos / "0.boxes.json").write_text(text)
    with pytest.raises(Refused, match="its boxes: expected"):
        read_boxes(Path("0.png"), text.encode())
    with pytest.raises(Refused, match="its boxes: expected"):
        ImageFolder(str(photos), 64).read(0, 0)
    done = prepare(open_source(photos, 2), tmp_path / "shards", Preparation(64), Decomposition({}))
    assert done.images == 1 and [one.reason for one in done.refused] == ["damaged"]
