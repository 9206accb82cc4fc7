"""The closed loop of one picture: its own pixels against what its recipe asked."""

import numpy as np
import pytest
import torch
from PIL import Image

from composer.__main__ import main
from composer.cascade.cascade import Cascade
from composer.evaluation.reading import Reading
from composer.evaluation.report import report
from composer.images.reading import load_rgb, resize_and_crop
from composer.images.sheet import from_pil, read_recipe, save_png


def run(*args):
    return main([str(arg) for arg in args])


@pytest.fixture
def drawn(saved, photos, tmp_path):
    """A picture after another one's intensity, half as strong in its left half, and after colours in words."""
    given = ("--intensity", f"{photos[0]}:0.5:0,0,0.5,1", "--palette", "#aa3311 0.6, #eeddcc 0.4")
    assert run("compose", "--model", saved, *given, "--seeds", "3", "--out", tmp_path / "out") == 0
    return tmp_path / "out" / "compose_seed3.png"


@pytest.fixture
def edited(saved, photos, tmp_path):
    given = ("--region", "0.2,0.2,0.6,0.7", "--palette", photos[1], "--keep", "intensity")
    assert run("edit", photos[0], "--model", saved, *given, "--out", tmp_path / "out") == 0
    return tmp_path / "out" / "edit_a_seed0.png"


def rows(measured):
    return {row.name: row for row in measured.rows}


def test_numbers_are_those_of_the_pictures_own_pixels(drawn, saved, photos):
    model = Cascade.load(saved)
    found = rows(report(drawn, model))
    image = from_pil(Image.open(drawn))[None]
    source = resize_and_crop(load_rgb(photos[0]).image, 16)[None]
    palette = dict(model.readers.named())["palette"].from_text("#aa3311 0.6, #eeddcc 0.4")
    wanted = model.read({"image": source}).pick("intensity") | {"palette": palette}
    assert found.keys() == wanted.keys() == {"intensity", "palette"}
    for name, value in Reading(model, image).distances(wanted).items():
        assert found[name].distance == pytest.approx(float(value), abs=1e-6)
        assert found[name].closed == pytest.approx(float(Reading(model, image).closed(wanted)[name]), abs=1e-6)
    grey = dict(model.decomposition.named())["intensity"]
    assert torch.equal(found["intensity"].back, grey.preview(grey({"image": image}))[0])
    assert torch.equal(found["intensity"].asked, grey.preview(grey({"image": source}))[0])
    assert found["palette"].source == "#aa3311 0.6, #eeddcc 0.4" and found["palette"].strength == ""
    assert (
        found["intensity"].source.startswith("sha256:") and found["intensity"].strength == "0.5 in 50% of the picture"
    )


def test_a_picture_that_is_its_source_closes_all(drawn, saved, photos):
    source = resize_and_crop(load_rgb(photos[0]).image, 16)
    save_png(drawn, source, read_recipe(drawn))
    row = rows(report(drawn, Cascade.load(saved)))["intensity"]
    assert row.distance < 1 / 255 and row.closed > 0.98  # it was rounded to 8 bits on the way


def test_what_is_no_condition_stands_among_the_settings(saved, photos, tmp_path):
    options = ("--steps", "3", "--guidance", "1.5", "--sampler", "ancestral", "--start", f"{photos[0]}:0.7")
    assert run("compose", "--model", saved, "--palette", photos[0], *options, "--out", tmp_path) == 0
    says = report(tmp_path / "compose_seed0.png", Cascade.load(saved)).settings
    assert says["stage base"] == "ancestral, 3 steps, guidance 1.5, eta 1"
    assert says["begins with"] == "a picture, noisy as at time 0.7"


def test_of_an_edit_the_square_that_the_model_saw_is_measured(edited, saved, photos):
    measured = report(edited, Cascade.load(saved), photos[0])
    found = rows(measured)
    assert found.keys() == {"intensity", "palette", "mask"} and found["mask"].closed is None
    assert found["intensity"].distance > 0.01
    assert (found["mask"].asked == found["mask"].back).float().mean() > 0.5  # all but those that the region blends into
    (_, before, after), (_, seen, got) = measured.pictures
    assert before.shape == after.shape == (3, 40, 50) and seen.shape == got.shape == (3, 16, 16)
    save_png(edited, Image.open(photos[0]), read_recipe(edited))  # as if nothing had been changed
    found = rows(report(edited, Cascade.load(saved), photos[0]))
    assert found["intensity"].distance == pytest.approx(0, abs=1e-6)
    assert found["intensity"].closed == pytest.approx(1, abs=1e-6) and found["palette"].distance > 0.01


def test_the_command_says_it_all_and_draws_it(drawn, saved, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    out = tmp_path / "report"
    assert run("report", drawn, "--model", saved, "--out", out) == 0
    shown = capsys.readouterr().out
    row = rows(report(drawn, Cascade.load(saved)))["palette"]
    assert f"{row.distance:.4f}" in shown and f"{row.closed:.2f}" in shown and "#aa3311 0.6, #eeddcc 0.4" in shown
    assert "dpmpp_2m, 4 steps, guidance 2" in shown and "0.5 in 50% of the picture" in shown
    cells = np.array(Image.open(out / "report_compose_seed3.png"))
    result = np.array(Image.open(drawn)).repeat(8, 0).repeat(8, 1)
    corners = zip(*np.nonzero((cells == result[0, 0]).all(-1)), strict=True)
    assert any(np.array_equal(cells[y : y + 128, x : x + 128], result) for y, x in corners)


def test_the_command_measures_an_edit(edited, saved, photos, tmp_path):
    assert run("report", edited, "--image", photos[0], "--model", saved, "--out", tmp_path / "report") == 0
    assert (tmp_path / "report" / "report_edit_a_seed0.png").exists()


def test_mistakes_are_explained(drawn, edited, cascade, saved, photos, tmp_path, capsys):
    def says(*args):
        assert run("report", *args, "--out", tmp_path / "report") == 1
        return capsys.readouterr().err

    assert "has no recipe" in says(photos[0], "--model", saved)
    assert "is an edit of a.png: give the picture that was edited, too (--image)" in says(edited, "--model", saved)
    assert "not the picture that was edited" in says(edited, "--image", photos[1], "--model", saved)
    assert "not that of an edit" in says(drawn, "--image", photos[0], "--model", saved)
    save_png(edited, Image.open(edited).resize((100, 80)), read_recipe(edited))
    assert "was drawn with 50 x 40 pixels and has 100 x 80" in says(edited, "--image", photos[0], "--model", saved)
    cascade.save(tmp_path / "other", "# other\n", torch.float16)
    assert "give the former with --model" in says(drawn, "--model", tmp_path / "other")
    assert not (tmp_path / "report").exists()
