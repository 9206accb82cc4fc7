"""The command line: every command as a user types it, on a tiny model, and the mistakes that users make."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from composer.__main__ import main
from composer.cascade.cascade import Cascade
from composer.cascade.options import SampleOptions
from composer.commands.registry import COMMANDS
from composer.images.sheet import read_recipe

ROOT = Path(__file__).parents[2]


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def run(*args):
    return main([str(arg) for arg in args])


def missing(text):
    """The repository's own files that a text names and that are not there."""
    named = re.findall(r"\b(?:configs|examples|docs|benchmarks|composer)/[\w./-]*\w", text)
    return [path for path in named if not (ROOT / path).exists()]


def test_missing_files_are_found():
    assert missing("-c configs/tiny.yaml, configs/paper/imagen1024.yaml.") == ["configs/paper/imagen1024.yaml"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(command, capsys, saved):
    options = ["--model", saved] if command in ("compose", "edit") else []  # of another model, other conditions
    with pytest.raises(SystemExit) as stop:
        run(command, *options, "--help")
    shown = capsys.readouterr().out
    assert stop.value.code == 0 and f"composer {command}" in shown and "examples:" in shown
    assert not missing(shown)


def test_overview_lists_every_command(capsys):
    assert run("--help") == 0
    shown = capsys.readouterr().out
    assert all(f"  {command} " in shown for command in COMMANDS) and not missing(shown)


def test_compose_draws_a_row_per_value_and_a_picture_per_seed(saved, photos, out, capsys):
    a, b = photos
    assert run("compose", "--model", saved, "--intensity", a, "--palette", a, b, "--seeds", "0,4", "--out", out) == 0
    names = sorted(path.name for path in out.glob("*_seed*.png"))
    assert names == [f"compose_00{row}_seed{seed}.png" for row in (0, 1) for seed in (0, 4)]
    assert (out / "compose_sheet.png").exists() and "compose_001_seed4: closed" in capsys.readouterr().out
    first, second = (np.asarray(Image.open(out / name)) for name in ("compose_000_seed0.png", "compose_001_seed0.png"))
    assert (first != second).any()


def test_a_composition_equals_the_python_interface(saved, photos, out):
    assert run("compose", "--model", saved, "--palette", photos[0], "--seeds", "7", "--steps", "3", "--out", out) == 0
    from composer.images.reading import load_rgb, resize_and_crop

    model = Cascade.load(saved)
    image = resize_and_crop(load_rgb(photos[0]).image, 16)[None]
    want = model.sample(model.decompose({"image": image}).pick("palette"), seeds=[7], options=SampleOptions(steps=3))
    got = torch.from_numpy(np.array(Image.open(out / "compose_seed7.png"))).permute(2, 0, 1)
    assert (got.float() - ((want[0] + 1) * 127.5).round()).abs().max() <= 1


def test_people_give_palettes_as_colours(saved, out):
    assert run("compose", "--model", saved, "--palette", "#aa3311:0.6,#eeddcc:0.4", "--out", out) == 0
    assert read_recipe(out / "compose_seed0.png")["sources"] == {"palette": "#aa3311:0.6,#eeddcc:0.4"}


def test_from_png_makes_the_same_picture(saved, photos, out, tmp_path, capsys):
    assert run("compose", "--model", saved, "--intensity", photos[0], "--seeds", "3", "--out", out) == 0
    source = out / "compose_seed3.png"
    assert str(tmp_path) not in json.dumps(read_recipe(source))  # hashes and names, never paths
    assert run("compose", "--model", saved, "--from-png", source, "--out", tmp_path / "again") == 0
    assert "the same, bit for bit" in capsys.readouterr().out
    assert (tmp_path / "again" / source.name).exists()


def test_a_picture_of_another_model_is_refused_before_anything_is_loaded(saved, out, tmp_path, capsys, monkeypatch):
    assert run("compose", "--model", saved, "--palette", "#aa3311", "--out", out) == 0
    other = tmp_path / "other"
    Cascade.load(saved).save(other, "# other\n")
    (other / "manifest.json").write_text((other / "manifest.json").read_text() + "\n")
    monkeypatch.setattr(Cascade, "load", lambda *_, **__: pytest.fail("it was loaded"))
    for words in (["compose", "--from-png", out / "compose_seed0.png"], ["report", out / "compose_seed0.png"]):
        assert run(*words, "--model", other) == 1
        assert "was drawn by the model 'tiny' with SHA-256" in capsys.readouterr().err


def test_no_recipe_leaves_no_trace(saved, photos, out, capsys):
    options = ("--model", saved, "--palette", photos[0], "--no-recipe", "--out", out)
    assert run("compose", *options) == 0
    with Image.open(out / "compose_seed0.png") as picture:
        assert "composer" not in picture.info
    assert run("compose", "--model", saved, "--from-png", out / "compose_seed0.png") == 1
    assert "has no recipe" in capsys.readouterr().err


def test_edit_keeps_the_outside(saved, photos, out):
    a, b = photos
    options = ("--region", "0.2,0.2,0.6,0.7", "--palette", b, "--keep", "intensity", "--seeds", "0,1", "--out", out)
    assert run("edit", a, "--model", saved, *options) == 0
    before, after = (np.asarray(Image.open(path)) for path in (a, out / "edit_a_seed1.png"))
    outside = np.ones((40, 50), bool)
    outside[8:28, 10:30] = False
    assert (before[outside] == after[outside]).all() and (before[~outside] != after[~outside]).any()


def test_an_edit_is_made_again_of_the_same_picture_only(saved, photos, out, tmp_path, capsys):
    a, b = photos
    assert run("edit", a, "--model", saved, "--region", "5,5,35,30", "--palette", b, "--out", out) == 0
    first = out / "edit_a_seed0.png"
    assert run("edit", a, "--model", saved, "--from-png", first, "--out", tmp_path / "again") == 0
    with Image.open(first) as x, Image.open(tmp_path / "again" / "edit_a_seed0.png") as y:
        assert x.tobytes() == y.tobytes()
    assert run("edit", b, "--model", saved, "--from-png", first) == 1
    assert "not the picture that was edited" in capsys.readouterr().err


def test_decompose_writes_parts_and_a_preview(saved, photos, out, capsys):
    assert run("decompose", *photos, "--model", saved, "--preview", "--out", out) == 0
    assert {path.name for path in out.iterdir()} == {
        "decompose_a.safetensors",
        "decompose_b.safetensors",
        "decompose_sheet.png",
    }
    assert "palette (156,)" in capsys.readouterr().out


def test_evaluate_writes_the_table(saved, out, capsys):
    file = out / "table.json"
    options = ("--data", "scenes:val", "--count", "4", "--steps", "2", "--json", file)
    assert run("evaluate", saved, *options) == 0
    table = json.loads(file.read_text())
    assert set(table["alone"]["palette"]) == {"closed", "distance", "chance", "ceiling"}
    assert {"alone", "all", "cross", "mask"} <= set(table) and table["mask"]["outside"] == 0
    assert "| palette |" in capsys.readouterr().out


def test_evaluate_reads_a_folder(saved, photos, tmp_path, out):
    file = out / "t.json"
    assert run("evaluate", saved, "--data", tmp_path, "--count", "2", "--steps", "1", "--alone", "--json", file) == 0
    assert set(json.loads(file.read_text())) == {"alone", "about"}


def test_decomposers_lists_licences(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert run("decomposers") == 0
    shown = capsys.readouterr().out
    assert "Palette" in shown and "AGPL-3.0" in shown and "name its weights" in shown


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--depth", "a.png"], "no option --depth; the conditions of"),
        (["--palette", "nowhere.png"], "nowhere.png"),
        (["--intensity", "a grey day"], "reads images"),
        ([], "nothing asked"),
        (["--palette", "A", "B", "--intensity", "A", "B", "A"], "one value or 3"),
        (["--palette", "A", "--steps", "0"], "expected a whole number from 1 to"),
    ],
)
def test_mistakes_are_explained(saved, photos, out, capsys, args, says):
    args = [{"A": photos[0], "B": photos[1]}.get(arg, arg) for arg in args]
    assert run("compose", "--model", saved, *args, "--out", out) in (1, 2)
    shown = capsys.readouterr().err
    assert says in shown and "Traceback" not in shown
    assert not out.exists()


def test_missing_model_is_explained(tmp_path, capsys):
    assert run("evaluate", tmp_path / "nowhere") == 1
    assert "expected a model folder" in capsys.readouterr().err


def test_captions_that_are_no_text_and_too_many_are_refused_before_anything_is_drawn(eight, tmp_path, out, capsys):
    eight.save(tmp_path / "eight", "# eight\n")
    model = ("--model", tmp_path / "eight", "--steps", "1", "--out", out)
    assert run("compose", "--caption", "a \udcff cube", *model) == 1
    assert "expected words in UTF-8, found 'a \\udcff cube'" in capsys.readouterr().err
    assert run("compose", "--palette", "#aa3311", "--and", *["a cube"] * 300, *model) == 1
    assert "expected at most 64 captions of --and and --not, found 300" in capsys.readouterr().err
    assert not out.exists()


def test_an_adherence_table_of_another_size_has_edits_of_the_images_size(saved, out, capsys):
    words = ("--count", "2", "--steps", "1", "--size", "32x32", "--json", out / "a.json")
    assert run("evaluate", saved, *words) == 0
    assert json.loads((out / "a.json").read_text())["mask"]["outside"] == 0
