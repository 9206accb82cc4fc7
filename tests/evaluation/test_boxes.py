"""Whether objects are found in their boxes, by a model that draws what was asked, and by one that does not."""

import json

import pytest

from composer.__main__ import main
from composer.cascade.cascade import Cascade
from composer.cascade.options import SampleOptions
from composer.evaluation.adherence import Evaluation
from composer.evaluation.boxes import count_boxes, measure_boxes
from composer.evaluation.samples import open_sample
from composer.scenes import render_batch
from tests.conftest import TINY, talkative

COUNT, SIDE = 8, 64


def grounded():
    """A tiny model of 64 px that reads objects, and their reader."""
    spec = json.loads(json.dumps(TINY))
    (stage,) = spec["stages"]
    stage["size"] = SIDE
    stage["denoiser"]["init_args"]["network"]["init_args"]["object_dim"] = 12
    grounding = {"class_path": "conditions.Grounding", "init_args": {"in_dim": 128, "object_dim": 12}}
    stage["conditions"]["objects"] = grounding
    weights = {"weights": "asset:scenes_clip"}
    spec["decomposers"]["objects"] = {"class_path": "decomposers.Objects", "init_args": weights | {"slots": 4}}
    spec["readers"] = {"objects": {"class_path": "decomposers.SceneObjects", "init_args": weights}}
    return talkative(spec)


def measured(model, drawn=None, monkeypatch=None):
    if drawn is not None:
        monkeypatch.setattr(Cascade, "sample", lambda self, what, seeds, options: drawn(seeds))
    evaluation = Evaluation(model, open_sample("scenes:val", COUNT, SIDE), rows=4, options=SampleOptions(steps=1))
    return measure_boxes(evaluation)


def test_a_model_that_draws_the_true_pictures_is_as_good_as_they_are(monkeypatch):
    def true(seeds):
        return render_batch("val", list(seeds), SIDE)["image"]

    def shifted(seeds):
        return render_batch("val", [(i - 1) % COUNT for i in seeds], SIDE)["image"]

    model = grounded()
    found = measured(model, true, monkeypatch)
    assert [*found] == ["objects", "true pictures", "other pictures"]
    assert found["objects"] == found["true pictures"]
    assert found["objects"].found > 0.95 and found["objects"].overlap > 0.85 and found["objects"].close > 0.95
    assert found["other pictures"].found < 0.2 and found["other pictures"].overlap < 0.03
    assert measured(model, shifted, monkeypatch)["objects"] == found["other pictures"]


def test_the_command_line_measures_boxes(tmp_path, capsys):
    grounded().save(tmp_path / "model", "")
    words = ["evaluate", str(tmp_path / "model"), "--boxes", "--count", "2", "--steps", "1"]
    assert main([*words, "--json", str(tmp_path / "boxes.json")]) == 0
    assert "| true pictures | 1.00 |" in capsys.readouterr().out
    found = json.loads((tmp_path / "boxes.json").read_text())
    assert found["boxes"]["true pictures"]["found"] == 1 and found["about"]["count"] == 2
    assert main(["evaluate", str(tmp_path / "model"), "--alone", "--count", "2", "--steps", "1"]) == 0
    assert "objects" in capsys.readouterr().out


def test_what_cannot_be_measured(cascade, saved, capsys):
    assert main(["evaluate", str(saved), "--boxes", "--count", "2"]) != 0
    assert "a model with the condition objects" in capsys.readouterr().err
    model = grounded()
    sample = open_sample("scenes:val", 2, SIDE)
    bare = Evaluation(model, type(sample)(2, lambda i: {"image": sample.read(i)["image"]}))
    assert count_boxes(bare) == 2
    model.readers["objects"].detector = None
    with pytest.raises(ValueError, match="a reader that finds objects in pictures, such as SceneObjects"):
        measure_boxes(bare)
