"""The commands that draw, as a user types them, on a tiny model of all eight conditions."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from composer.__main__ import main
from composer.commands import drawing
from composer.commands.groups import MachineOptions
from composer.commands.tasks import TASKS
from composer.images.sheet import read_recipe

REGION = ["--region", "0.1,0.1,0.6,0.7"]


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def run(monkeypatch, eight, photos, tmp_path):
    """Runs a command; A and B stand for pictures, PCA for components."""
    monkeypatch.setattr(MachineOptions, "load", lambda *_: eight)
    monkeypatch.setattr(drawing, "digest_of", lambda folder: eight.sha256)
    basis = torch.linalg.qr(torch.randn(128, 16))[0].T.contiguous()
    save_file({"mean": torch.zeros(128), "components": basis}, tmp_path / "pca.safetensors")
    places = {"A": photos[0], "B": photos[1], "PCA": str(tmp_path / "pca.safetensors")}

    def command(*args, out, steps=2):
        words = [places.get(str(arg), str(arg)) for arg in args]
        words = [word.replace("A:", f"{photos[0]}:") for word in words]
        return main([*words, *(["--steps", str(steps)] if steps else []), "--out", str(out)])

    return command


EVERY = {
    "compose": ["compose", "--sketch", "A:0.5@0.1-0.9:0,0,0.5,1", "--and", "a blue ball:2", "--not", "grass"],
    "compose from a start": ["compose", "--start", "A:0.6", "--palette", "B"],
    "edit": ["edit", "A", *REGION, "--palette", "B", "--keep", "sketch"],
    "outpaint": ["outpaint", "A", "--by", "0.25,0,0.5,0", "--caption", "a red cube"],
    "vary": ["vary", "A", "--from-latent", "0.5"],
    "vary a region": ["vary", "A", *REGION, "--keep", "depth"],
    "interpolate": ["interpolate", "A", "B", "--frames", "2", "--from-latents"],
    "reconfigure": ["reconfigure", "A", "--sketch", "B"],
    "reconfigure a region": ["reconfigure", "A", *REGION, "--sketch", "B"],
    "translate": ["translate", "A", "--to", "a red cube", "--image-caption", "a blue ball"],
    "repose": ["repose", "A", "B", "--take", "instances", "sketch"],
    "colorize": ["colorize", "A", "--palette", "B", "#aa3311 0.6, #224488 0.4", "--frames", "2"],
    "restyle": ["restyle", "A", "B", "--strength", "0.5"],
    "try-on": ["try-on", "A", "B", *REGION],
    "turn": ["turn", "A", "--before", "a red cube", "--after", "a blue cube", "--shares", "0,0.5"],
    "reconstruct": ["reconstruct", "A", "--components", "1,16", "--pca", "PCA"],
}


def test_every_task_is_tried():
    assert {words[0] for words in EVERY.values()} == set(TASKS)


@pytest.mark.parametrize("name", EVERY)
def test_every_task_draws_and_makes_its_picture_again(run, out, tmp_path, capsys, name):
    words = EVERY[name]
    assert run(*words, out=out) == 0
    drawn = sorted(out.glob("*_seed0.png"))
    assert drawn and bool(list(out.glob("*_sheet.png"))) == (len(drawn) > 1)
    assert (name == "interpolate") == bool(list(out.glob("*.gif")))
    capsys.readouterr()
    original = ["A"] if "edit" in read_recipe(drawn[-1]) else []
    assert run(words[0], *original, "--from-png", drawn[-1], out=tmp_path / "again", steps=None) == 0
    shown = capsys.readouterr()
    assert "the same, bit for bit" in shown.out and shown.err == ""
    with Image.open(drawn[-1]) as x, Image.open(tmp_path / "again" / drawn[-1].name) as y:
        assert x.tobytes() == y.tobytes()


def test_a_picture_is_never_compared_with_itself(run, out, capsys):
    assert run("compose", "--palette", "A", out=out) == 0
    drawn = out / "compose_seed0.png"
    changed = np.asarray(Image.open(drawn)).copy()
    changed[0, 0] ^= 128
    from composer.images.sheet import save_png

    save_png(drawn, Image.fromarray(changed), read_recipe(drawn))
    before = drawn.read_bytes()
    assert run("compose", "--from-png", drawn, out=out, steps=None) == 0
    shown = capsys.readouterr()
    assert "3 of 768 values differ, by up to 128/255" in shown.err and "the same," not in shown.out
    assert drawn.read_bytes() == before and (out / "compose_seed0-2.png").exists()


def test_pictures_may_follow_options(run, out, photos):
    assert run("vary", "--seeds", "0,1", "A", out=out) == 0
    assert sorted(path.name for path in out.glob("*_seed*")) == ["vary_a_seed0.png", "vary_a_seed1.png"]


def test_a_sheet_over_two_options(run, out, photos):
    sheet = ["--sheet", "strength=0,1", "seed=3,4,5"]
    assert run("restyle", "A", "B", *sheet, out=out) == 0
    names = [f"restyle_a_seed{seed}_strength={s}.png" for seed in (3, 4, 5) for s in (0, 1)]
    assert sorted(path.name for path in out.glob("*_seed*")) == sorted(names)
    with Image.open(out / "restyle_a_sheet.png") as picture:
        cells = picture.width // 158, picture.height // 158  # the labels take less than a cell
    assert cells == (5, 2)  # two pictures that are given and three seeds; two strengths
    assert read_recipe(out / names[0])["seed"] == 3


def test_a_sheet_over_a_condition_and_its_strength(run, out, photos):
    sheet = ["--sheet", "palette=#aa3311:0.5,#224488:0.5; A:0.25", "guidance=1,3"]
    assert run("compose", "--palette", "B", "--sketch", "B", *sheet, out=out) == 0
    recipes = [read_recipe(path) for path in sorted(out.glob("compose_seed0_*"))]
    assert len(recipes) == 4 and {r["stages"]["base"]["guidance"] for r in recipes} == {1, 3}
    assert {r["strengths"].get("palette", {}).get("weight") for r in recipes} == {None, 0.25}


def test_a_sheet_varies_the_fields_of_a_request():
    compose = TASKS["compose"]
    two = compose.read(["--palette", "b.png", "--guidance", "7", "--sheet", "seed=0,1", "guidance=1,3"]).settings()
    assert [tuple(word for _, word in one.varied) for one in two] == [("0", "1"), ("0", "3"), ("1", "1"), ("1", "3")]
    assert [one.drawing.seeds for one in two] == [(0,), (0,), (1,), (1,)]
    assert [one.sampling.guidance for one in two] == [1, 3, 1, 3] and two[1].suffix == "_guidance=3"
    given = ["--palette", "b.png", "d.png", "--sketch", "b.png"]
    sheet = ["--sheet", "palette=#aa3311 0.6, #224488 0.4; x/c.png:0.5"]
    first, last = compose.read([*given, *sheet]).settings()
    assert first.conditions["palette"] == ("#aa3311 0.6, #224488 0.4",)
    assert last.conditions["palette"] == ("x/c.png:0.5",) and last.suffix == "_palette=c.png-0.5"
    assert last.conditions["sketch"] == ("b.png",)
    (still,) = TASKS["vary"].read(["a.png", "--keep", "sketch", "depth", "--sheet", "keep=palette"]).settings()
    assert still.arguments["keep"] == ("palette",)


def test_strengths_have_an_option_of_their_own(run, out, photos):
    assert run("compose", "--palette", "A", "--sketch", "B", "--strengths", "palette=0.5@0.2-0.8", out=out) == 0
    assert run("compose", "--palette", "A:0.5@0.2-0.8", "--sketch", "B", out=out / "short") == 0
    here, short = (read_recipe(folder / "compose_seed0.png") for folder in (out, out / "short"))
    assert (
        here["strengths"] == short["strengths"] == {"palette": {"weight": 0.5, "interval": [0.2, 0.8], "region": None}}
    )
    assert (out / "compose_seed0.png").read_bytes() == (out / "short/compose_seed0.png").read_bytes()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["compose", "--sketch", "A", "--strengths", "palette=0.5"], "names palette, but what is asked is sketch"),
        (["compose", "--sketch", "A", "--strengths", "sketch"], "a strength such as palette=0.7@0.2-0.8:mask.png"),
        (["compose", "--sketch", "A", "--strengths", "sketch=much"], "a strength such as palette=0.7@0.2-0.8:mask.png"),
    ],
)
def test_strengths_that_are_none(run, out, capsys, given, says):
    assert run(*given, out=out) == 1 and says in capsys.readouterr().err


def test_best_of_names_its_seed(run, out, capsys):
    assert run("vary", "A", "--best-of", "3", "--weights", "semantics=2", "--seeds", "4", out=out) == 0
    assert "the best of 3 closes" in capsys.readouterr().out
    assert read_recipe(out / "vary_a_seed4.png")["seed"] in (12, 13, 14)


def test_a_row_for_each_value(run, out):
    assert run("edit", "A", *REGION, "--palette", "A", "B", "--keep", "sketch", out=out) == 0
    assert len({path.read_bytes() for path in out.glob("edit_a_00*_seed0.png")}) == 2


def test_an_empty_region_gives_the_file_back(run, out, photos, tmp_path):
    Image.new("L", (50, 40)).save(tmp_path / "mask.png")
    assert run("repose", "A", "B", "--region", tmp_path / "mask.png", out=out) == 0
    with Image.open(photos[0]) as x, Image.open(out / "repose_a_seed0.png") as y:
        assert x.tobytes() == y.tobytes()


@pytest.mark.parametrize("name", ["vary a region", "reconfigure a region", "try-on"])
def test_all_outside_a_region_stays(run, out, photos, name):
    assert run(*EVERY[name], out=out) == 0
    before, after = (np.asarray(Image.open(path)) for path in (photos[0], out / f"{EVERY[name][0]}_a_seed0.png"))
    outside = np.ones((40, 50), bool)
    outside[4:28, 5:30] = False
    assert (before[outside] == after[outside]).all() and (before[~outside] != after[~outside]).any()


def test_a_caption_keeps_its_strength_under_and(run, out):
    assert run("compose", "--caption", "a red cube:0.5", "--and", "a blue ball", out=out) == 0
    made = read_recipe(out / "compose_seed0.png")
    assert made["strengths"]["caption"]["weight"] == 0.5 and [weight for _, weight in made["also"]] == [3]
    assert made["sources"] == {"caption": "a red cube", "caption +3": "a blue ball"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["edit", "A", "--palette", "B"], "this needs --region"),
        (["edit", "A", "--region", "0,0,60,1"], "within 50 x 40 pixels"),
        (["vary"], "expected the picture before all options, found no picture"),
        (["repose", "A"], "the picture and the one whose shapes to take before all options, found "),
        (["translate", "A"], "translate needs --to"),
        (["turn", "A", "--before", "a cube"], "turn needs --before and --after"),
        (["colorize", "A"], "colorize needs --palette"),
        (["reconfigure", "A"], "nothing changed"),
        (["reconfigure", "A", "--sketch", "A", "B"], "one value per condition, found 2"),
        (["compose", "--start", "A"], "a picture and a time"),
        (["compose", "--palette", "A", "--weights", "palette=2"], "the best of at least 2"),
        (["compose", "--palette", "A", "--best-of", "2", "--weights", "sketch=2"], "no sketch among what was asked"),
        (["compose", "--palette", "A", "--sheet", "gidance=1,2"], "no option --gidance (did you mean --guidance"),
        (["compose", "--palette", "A", "--sheet", "guidance"], "an option and values for --sheet"),
        (["reconfigure", "A", "--sketch", "B", "--best-of", "2"], "begin with the same noise"),
        (["reconstruct", "A", "--pca", "nowhere"], "nowhere"),
        (["vary", "A", "--keep", "style"], "needs style"),
        (["outpaint", "A", "--by", "1,2"], "four numbers left,top,right,bottom"),
    ],
)
def test_mistakes_are_explained(run, out, capsys, words, says):
    assert run(*words, out=out) in (1, 2)
    shown = capsys.readouterr().err
    assert says in shown and "Traceback" not in shown and not out.exists()


def test_a_model_without_the_conditions_says_so(saved, photos, out, capsys):
    a, b = photos
    for words, missing in (
        (["vary", a], "semantics"),
        (["restyle", a, b], "structure or segmentation"),
        (["try-on", a, b, *REGION], "semantics"),
        (["interpolate", a, b, "--between", "semantics"], "semantics"),
        (["repose", a, b], "segmentation"),
        (["reconstruct", a], "semantics"),
        (["compose", "--and", "a cube"], "caption"),
    ):
        assert main([*words, "--model", str(saved), "--out", str(out)]) == 1
        shown = capsys.readouterr().err
        assert f"needs {missing}, for which this model has no condition" in shown, words
    assert not out.exists()


def test_seeds_that_change_nothing_are_noted(run, out, capsys):
    assert run("reconfigure", "A", "--sketch", "B", "--seeds", "0,1", out=out) == 0
    assert "all seeds begin with the same noise" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["picture", "mask"])
def test_an_edit_is_refused_before_a_model_is_loaded(run, out, tmp_path, monkeypatch, capsys, what):
    monkeypatch.setattr(MachineOptions, "load", lambda *_: pytest.fail("the model was loaded"))
    if what == "picture":
        Image.new("CMYK", (50, 40)).save(tmp_path / "bad.tif")
        assert run("edit", tmp_path / "bad.tif", *REGION, out=out) == 1
        expected = "CMYK: save it as a PNG"
    else:
        Image.new("RGB", (50, 40), "red").save(tmp_path / "bad.png")
        assert run("edit", "A", "--region", tmp_path / "bad.png", out=out) == 1
        expected = "it is coloured: save it in grey"
    assert expected in capsys.readouterr().err and not out.exists()
