"""Conditions are chosen by their decomposers' kind: one that nobody foresaw takes part in tasks and evaluations."""

from pathlib import Path

import pytest
import torch

from composer import Cascade, Kind, SampleOptions
from composer.__main__ import main
from composer.data.datasets import SceneImages
from composer.evaluation.adherence import Evaluation
from composer.evaluation.report import report
from composer.evaluation.samples import open_sample
from composer.images.sheet import read_recipe
from composer.names import GLOBAL, LAYOUT, LOCAL
from composer.tasks import papers as tasks
from composer.tasks.composition import Source, of_kind, resolve_names
from tests.conftest import SIZE, TINY, shipped, small, spatial

EXAMPLES = Path(__file__).parents[2] / "examples"
PLUGIN, OLD = "ninth_condition", "tests.data.before_rooms.plugin"


@pytest.fixture
def nine(tmp_path, monkeypatch):
    """A folder with a tiny untrained model of the included conditions, a plugin's saturation and an old plugin's."""
    monkeypatch.syspath_prepend(EXAMPLES)
    full = shipped()
    conditions = {name: small(condition) for name, condition in full["stages"][0]["conditions"].items()}
    conditions |= {"saturation": spatial(1), "brightness": {**small(conditions["palette"])}}
    conditions["brightness"]["init_args"] = {**conditions["brightness"]["init_args"], "in_dim": 1, "shares": False}
    decomposers = {**full["decomposers"], "saturation": {"class_path": f"{PLUGIN}.Saturation"}}
    decomposers |= {"brightness": {"class_path": f"{OLD}.Brightness"}}
    stage = {**TINY["stages"][0], "conditions": conditions}
    spec = {**full, "name": "nine", "stages": [stage], "decomposers": decomposers, "plugins": [PLUGIN, OLD]}
    Cascade.from_spec(spec, [PLUGIN, OLD]).save(tmp_path / "nine", "# nine\n")
    return tmp_path / "nine"


def sources(cascade):
    scenes = SceneImages("val", 64, 2)
    return [Source.of(cascade, scenes.row(i, 0)["image"], source=f"picture {i}") for i in range(2)]


def test_kinds_give_the_names_that_included_models_have(eight):
    assert of_kind(eight, *LAYOUT) == list(LOCAL) and of_kind(eight, Kind.APPEARANCE) == list(GLOBAL)
    assert {name: decomposer.kind for name, decomposer in eight.decomposition.named()} == {
        "caption": Kind.TEXT,
        "semantics": Kind.APPEARANCE,
        "palette": Kind.APPEARANCE,
        "sketch": Kind.STRUCTURE,
        "depth": Kind.STRUCTURE,
        "instances": Kind.SEGMENTATION,
        "intensity": Kind.LUMINANCE,
        "mask": Kind.MASK,
    }
    pairs = Evaluation(eight, open_sample("scenes:val", 2, SIZE)).pairs()
    assert [a for a, _ in pairs] == ["sketch"] * 3 + ["depth"] * 3
    assert [b for _, b in pairs] == ["palette", "semantics", "caption"] * 2


def test_a_plugins_condition_takes_part_in_restyling_pairs_and_previews(nine):
    cascade = Cascade.load(nine, plugins=[PLUGIN, OLD])
    content, style = sources(cascade)
    half = tasks.style_transfer(cascade, content, style, 0.5)
    assert set(half.parts) == {*LOCAL, *GLOBAL, "saturation"}
    ends = [source.has.parts["saturation"] for source in (content, style)]
    torch.testing.assert_close(half.parts["saturation"], (ends[0] + ends[1]) / 2)
    assert "saturation" in tasks.try_on(cascade, content, style).parts
    evaluation = Evaluation(cascade, open_sample("scenes:val", 2, SIZE), options=SampleOptions(steps=1))
    assert [b for a, b in evaluation.pairs() if a == "depth"] == ["saturation", "palette", "semantics", "caption"]
    table = evaluation.measure()
    assert set(table.cross["sketch+saturation"]) == {"sketch", "saturation"}


def test_a_plugins_condition_takes_part_in_the_command(nine, photos, tmp_path):
    out = tmp_path / "out"
    plugins = ["--plugins", f"{PLUGIN},{OLD}"]
    how = ["--model", str(nine), "--steps", "1", "--out", str(out)]
    assert main([*plugins, "restyle", *photos, *how]) == 0
    [png] = out.glob("restyle*.png")
    assert set(read_recipe(png)["sources"]) == {*LOCAL, *GLOBAL, "saturation"}
    measured = report(png, Cascade.load(nine, plugins=[PLUGIN, OLD]))
    shown = {row.name: row for row in measured.rows}["saturation"]
    assert shown.closed is not None and shown.back.shape == (3, SIZE, SIZE)


def test_an_old_plugins_condition_has_no_kind_and_takes_part_where_it_is_named(nine):
    cascade = Cascade.load(nine, plugins=[PLUGIN, OLD])
    assert cascade.decomposition["brightness"].kind is None
    content, style = sources(cascade)
    found = tasks.style_transfer(cascade, content, style, keep=[*LAYOUT, "brightness"])
    assert "brightness" in found.parts
    assert "brightness" not in tasks.style_transfer(cascade, content, style).parts
    assert "brightness" in Evaluation(cascade, open_sample("scenes:val", 2, SIZE)).scored


def test_names_and_kinds_are_chosen_from(cascade, eight):
    assert resolve_names(eight, ["palette", Kind.APPEARANCE]) == ["palette", "semantics"]
    both = resolve_names(eight, ["structure", "mask"])
    assert both == ["mask", "sketch", "depth"]  # the model has a mask of that name
    assert resolve_names(eight, ["nothing"]) == ["nothing"] and resolve_names(eight, []) == []
    with pytest.raises(KeyError, match=r"restyling needs structure or segmentation, .*has palette, intensity, mask"):
        resolve_names(cascade, LAYOUT, "restyling")
