"""What results are compared with: held-out images of the model's own, else Scenes, which is said."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from composer import Cascade
from composer.__main__ import main
from composer.data.datasets import SceneImages
from composer.data.folder import ImageFolder
from composer.evaluation.reading import STRANGERS, Reading
from composer.storage.folder import STRANGERS_FILE
from tests.conftest import SIZE

OLD = Path(__file__).parents[1] / "data" / "before_rooms"
NOTE = "chance is measured against 32 Scenes"


@pytest.fixture
def held_out(tmp_path):
    rng = np.random.default_rng(1)
    for i in range(STRANGERS):
        (tmp_path / "val").mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 60, (20, 20, 3), dtype=np.uint8)).save(tmp_path / "val" / f"{i:02d}.png")
    return tmp_path / "val"


@pytest.fixture
def export(monkeypatch, tmp_path):
    monkeypatch.setenv("COMPOSER_PLUGINS", "")
    monkeypatch.syspath_prepend(OLD)

    def run(*words):
        return main(["--plugins", "plugin", "export", str(OLD / "stage.ckpt"), str(tmp_path / "model"), *words])

    return run


def by_hand(cascade, images, wanted, got):
    """The share of the way, from the images that results are to be compared with."""
    reader = dict(cascade.readers.named())["intensity"]
    chance = reader.distance(wanted.expand(len(images), -1, -1, -1), reader({"image": images})).mean()
    return float(1 - reader.distance(wanted, reader({"image": got})) / chance)


def test_results_are_compared_with_the_models_own_images(export, held_out, tmp_path, capsys):
    assert export("--held-out", str(held_out)) == 0
    assert NOTE not in capsys.readouterr().err
    assert STRANGERS_FILE in json.loads((tmp_path / "model" / "manifest.json").read_text())
    cascade = Cascade.load(tmp_path / "model", plugins=["plugin"])
    asked, got = torch.full((1, 3, SIZE, SIZE), 0.5), torch.full((1, 3, SIZE, SIZE), 0.3)
    wanted = cascade.read({"image": asked})
    folder = ImageFolder(str(held_out), SIZE, captions="empty")
    images = torch.stack([folder.row(i, i)["image"] for i in range(STRANGERS)])
    own = Reading(cascade, got).closed(wanted)["intensity"]
    assert float(own[0]) == pytest.approx(by_hand(cascade, images, wanted["intensity"], got), abs=1e-5)
    again = tmp_path / "again"
    cascade.save(again, "# again\n")
    kept = Cascade.load(again, plugins=["plugin"]).strangers
    assert all(torch.equal(kept[name], value) for name, value in cascade.strangers.items()) and kept
    # Exported anew without them, the old ones are no longer the model's
    assert export() == 0 and NOTE in capsys.readouterr().err
    cascade = Cascade.load(tmp_path / "model", plugins=["plugin"])
    assert not cascade.strangers
    scenes = SceneImages("novel", SIZE, STRANGERS)
    images = torch.stack([scenes.row(i, 0)["image"] for i in range(STRANGERS)])
    other = Reading(cascade, got).closed(wanted)["intensity"]
    assert float(other[0]) == pytest.approx(by_hand(cascade, images, wanted["intensity"], got), abs=1e-5)
    assert abs(float(own[0] - other[0])) > 1e-2


def test_too_few_images_and_readings_that_do_not_fit(export, held_out, tmp_path, capsys):
    (held_out / "00.png").unlink()
    assert export("--held-out", str(held_out)) == 1
    assert "holds 31 images" in capsys.readouterr().err and not (tmp_path / "model").exists()
    cascade = Cascade.load(OLD / "model", plugins=["plugin"])
    [name] = [n for n in cascade.names if n in ("palette", "intensity")][:1]
    cascade.strangers[name] = torch.zeros(STRANGERS, 7)
    image = torch.zeros(1, 3, SIZE, SIZE)
    with pytest.raises(ValueError, match="held-out images have another shape"):
        Reading(cascade, image).measure(cascade.read({"image": image}))


def test_it_is_said_where_scenes_take_the_place(saved, tmp_path, capsys):
    how = ["--model", str(saved), "--out", str(tmp_path / "out"), "--steps", "1"]
    assert main(["compose", "--palette", "#aa3311", *how]) == 0
    assert NOTE in capsys.readouterr().err
