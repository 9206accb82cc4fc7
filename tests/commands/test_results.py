"""What the drawing commands leave behind: files that overwrite nothing, figures on a scale, recipes old and new."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from composer.__main__ import main
from composer.cascade.cascade import Cascade
from composer.cascade.options import SampleOptions
from composer.cascade.recipe import FORMAT
from composer.commands import drawing
from composer.commands.redrawing import compare
from composer.evaluation import reading
from composer.evaluation.adherence import quantise
from composer.evaluation.best_of import best_of
from composer.evaluation.reading import Reading
from composer.evaluation.report import report
from composer.images.sheet import read_recipe, save_png
from composer.names import CLOSED
from composer.storage import files
from composer.storage.files import list_written, printable, reserved
from composer.tasks.composition import Composition
from composer.tasks.recipe import draw_recipe, parse_recipe, recipe

OLD = Path(__file__).parents[1] / "data" / "before_formats"
"""A tiny model, and two pictures that it drew when recipes had no format number."""


def run(*args):
    return main([str(arg) for arg in args])


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# Files


def test_names_are_taken_as_they_are_or_all_with_one_number(tmp_path):
    for expected in (["a.png", "b.gif"], ["a-2.png", "b-2.gif"], ["a-3.png", "b-3.gif"]):
        with reserved(tmp_path, ["a.png", "b.gif"]) as paths:
            assert [path.name for path in paths] == expected
            for path in paths:
                path.write_text("whole")
    (tmp_path / "a-3.png").unlink()
    with reserved(tmp_path, ["a.png", "b.gif"]) as paths:
        assert [path.name for path in paths] == ["a-4.png", "b-4.gif"]  # one number, though a-3 is free
    with reserved(tmp_path, ["c.png"]) as paths:
        assert [path.name for path in paths] == ["c.png"]
    assert "a-4.png" not in names(tmp_path) and "c.png" not in names(tmp_path)  # nothing was written to them


def test_the_same_name_twice_is_two_files(tmp_path):
    with reserved(tmp_path, ["a.png", "a.png", "a_2.png", "a.png"]) as paths:
        assert [path.name for path in paths] == ["a.png", "a_2.png", "a_2_2.png", "a_3.png"]


def test_what_fails_leaves_what_is_whole_and_nothing_else(tmp_path):
    (tmp_path / "empty.png").touch()  # another process' reservation
    with pytest.raises(RuntimeError), reserved(tmp_path / "new/folder", ["a.png", "b.png"]) as paths:
        paths[0].write_text("whole")
        raise RuntimeError
    assert names(tmp_path / "new/folder") == ["a.png"]
    with pytest.raises(RuntimeError), reserved(tmp_path / "other/folder", ["a.png"]):
        raise RuntimeError
    with pytest.raises(OSError), reserved(tmp_path, ["b.png", "empty.png", "x" * 300]):
        pytest.fail("a name is too long")
    assert names(tmp_path) == ["empty.png", "new"]


def test_processes_at_once_share_no_file(tmp_path):
    """Each reserves the same names, in its own order, again and again; `storage/files.py` needs no other module."""
    script = """
import random, runpy, sys
reserved = runpy.run_path(sys.argv[1])["reserved"]
from pathlib import Path
for turn in range(20):
    names = [f"{letter}.png" for letter in "abcde"]
    random.Random(sys.argv[3] + str(turn)).shuffle(names)
    with reserved(Path(sys.argv[2]), names) as paths:
        for path in paths:
            assert path.stat().st_size == 0
            path.write_text(f"{sys.argv[3]} {turn}")
"""
    words = [sys.executable, "-c", script, files.__file__, tmp_path]
    running = [subprocess.Popen([*words, str(i)]) for i in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    runs = {}
    for path in tmp_path.iterdir():
        runs.setdefault(path.stem[1:], set()).add((path.stem[0], path.read_text()))
    assert len(runs) == 60 and len({text for run in runs.values() for _, text in run}) == 60
    for run_ in runs.values():
        assert {letter for letter, _ in run_} == set("abcde") and len({text for _, text in run_}) == 1


def test_many_files_are_said_in_short(tmp_path):
    paths = [tmp_path / f"{i:02d}.png" for i in range(13)]
    assert list_written(paths[:12]).splitlines() == [f"written: {path}" for path in paths[:12]]
    assert list_written(paths) == f"13 files written to {tmp_path}, from 00.png to 12.png"


def test_a_second_run_overwrites_nothing(saved, photos, out, capsys):
    a = photos[0]
    vary = ("vary", a, "--model", saved, "--keep", "palette", "--steps", "1", "--out", out)
    assert run(*vary) == 0
    first = contents(out)
    assert list(first) == ["vary_a_seed0.png"] and f"written: {out / 'vary_a_seed0.png'}" in capsys.readouterr().out
    assert run(*vary, "--seeds", "0,1") == 0
    after = contents(out)
    shown = capsys.readouterr().out
    assert after.keys() - first.keys() == {"vary_a_seed0-2.png", "vary_a_seed1-2.png", "vary_a_sheet-2.png"}
    assert {name: after[name] for name in first} == first
    assert all(f"written: {out / name}" in shown for name in after.keys() - first.keys())
    assert "vary_a_seed1-2: closed " in shown
    assert run("edit", a, "--model", saved, *vary[4:], "--keep", "palette", "--region", "0,0,0.5,1") == 0
    assert contents(out).keys() - after.keys() == {"edit_a_seed0.png"}  # another task, another name


def test_films_and_frames_overwrite_nothing(saved, photos, out):
    words = ("interpolate", *photos, "--model", saved, "--between", "palette", "--frames", "2", "--steps", "1")
    for expected in ("", "-2"):
        assert run(*words, "--out", out) == 0
        frames = [f"interpolate_a_00{i}_seed0{expected}.png" for i in (0, 1)]
        assert {*frames, f"interpolate_a_seed0{expected}.gif", f"interpolate_a_sheet{expected}.png"} <= set(names(out))
    assert len(names(out)) == 8
    with Image.open(out / "interpolate_a_seed0-2.gif") as film:
        assert getattr(film, "n_frames", 1) == 2


def test_settings_that_name_files_alike_are_several_files(saved, photos, out, tmp_path):
    other = tmp_path / "elsewhere" / "a.png"
    other.parent.mkdir()
    other.write_bytes(Path(photos[1]).read_bytes())
    sheet = ("--sheet", f"palette={photos[0]},{other}")
    assert run("compose", "--model", saved, *sheet, "--steps", "1", "--out", out) == 0
    first, second = (out / f"compose_seed0_palette=a.png{more}.png" for more in ("", "_2"))
    assert first.read_bytes() != second.read_bytes() and (out / "compose_sheet.png").exists()


def test_an_interrupted_run_keeps_what_it_has_drawn(saved, photos, out, monkeypatch):
    def broken(path, *rest):
        if "_001_" in path.name:
            raise KeyboardInterrupt
        save_png(path, *rest)

    monkeypatch.setattr(drawing, "save_png", broken)
    assert run("compose", "--model", saved, "--palette", *photos, "--steps", "1", "--out", out) == 130
    assert names(out) == ["compose_000_seed0.png"]


def test_decompose_report_and_from_png_overwrite_nothing(saved, photos, out):
    assert run("compose", "--model", saved, "--palette", photos[0], "--steps", "1", "--out", out) == 0
    for _ in range(2):
        assert run("decompose", photos[0], "--model", saved, "--preview", "--out", out) == 0
        assert run("report", out / "compose_seed0.png", "--model", saved, "--out", out) == 0
        assert run("compose", "--model", saved, "--from-png", out / "compose_seed0.png", "--out", out) == 0
    once = ["compose_seed0.png", "decompose_a.safetensors", "decompose_sheet.png", "report_compose_seed0.png"]
    twice = [f"{Path(name).stem}-2{Path(name).suffix}" for name in once]
    assert names(out) == sorted([*once, *twice, "compose_seed0-3.png"])


# How near


def told(text):
    """Stem of a file -> condition -> what a command says that it closes."""
    lines = re.findall(r"^(\S+): closed (.*)$", text, re.MULTILINE)
    return {stem: {name: share for share, name in re.findall(r"(-?[\d.]+) \((\w+)\)", says)} for stem, says in lines}


def as_reported(measured):
    return {row.name: f"{row.closed:.2f}" for row in measured.rows if row.closed is not None}


def test_commands_say_what_report_says(saved, photos, out, capsys):
    a, b = photos
    model, given = Cascade.load(saved), ("--model", saved, "--palette", b, "--seeds", "0,5", "--out", out)
    assert run("compose", *given, "--intensity", a) == 0
    assert run("compose", *given, "--intensity", a, "--best-of", "3") == 0
    assert run("edit", a, *given, "--keep", "intensity", "--region", "0.2,0.2,0.7,0.8", "--soften", "4") == 0
    figures = told(capsys.readouterr().out)
    assert len(figures) == 6
    for stem, says in figures.items():
        found = as_reported(report(out / f"{stem}.png", model, a if stem.startswith("edit") else None))
        assert set(says) == {"palette", "intensity"} and says == found, stem


def test_measuring_is_what_closed_and_distances_say(cascade):
    image = torch.rand(3, 3, 16, 16) * 2 - 1
    wanted = cascade.read({"image": image.flip(-1)}).pick("palette", "intensity")
    found = Reading(cascade, image).measure(wanted)
    strangers = reading._strangers(16)
    for name, reader in cascade.readers.named():
        if name in wanted:
            far = reader.distance(wanted[name], reader({"image": image}))
            chance = torch.stack(
                [
                    reader.distance(row.expand(32, *row.shape), reader({"image": strangers})).mean()
                    for row in wanted[name]
                ]
            )
            torch.testing.assert_close(found[name].distance, far)
            torch.testing.assert_close(found[name].closed, 1 - far / chance)
            torch.testing.assert_close(found[name].closed, Reading(cascade, image).closed(wanted)[name])
    assert set(found) == {"palette", "intensity"}


def test_strangers_and_results_are_read_once_and_only_for_what_was_asked(saved, photos, out, monkeypatch):
    reads = []
    whole = Cascade.read

    def counted(self, batch, names=None):
        reads.append((len(batch["image"]), None if names is None else sorted(names)))
        return whole(self, batch, names)

    monkeypatch.setattr(Cascade, "read", counted)
    given = ("compose", "--model", saved, "--palette", "#aa3311 1", "--seeds", "0,1", "--steps", "1", "--out", out)
    assert run(*given, "--sheet", "guidance=1,2") == 0
    assert reads == [(2, ["palette"]), (32, ["palette"]), (2, ["palette"])]
    reads.clear()
    assert run(*given, "--best-of", "3") == 0
    assert reads == [(6, ["palette"]), (32, ["palette"])]  # the choice has measured the pictures that it keeps


def test_what_the_choice_measured_is_that_of_the_pictures(cascade):
    asked = Composition(parts=cascade.read({"image": torch.zeros(1, 3, 16, 16)}).pick("intensity"))
    asked = replace(asked, wanted=asked.parts)
    one = best_of(cascade, asked, [0, 1], 3, options=SampleOptions(steps=2))
    again_ = Reading(cascade, quantise(one.images)).closed(asked.wanted)
    torch.testing.assert_close(one.closed["intensity"], again_["intensity"], atol=1e-3, rtol=0)
    assert best_of(cascade, asked, [0], 1, options=SampleOptions(steps=2)).closed is None


@pytest.mark.parametrize("command", ["compose", "report"])
def test_the_help_says_what_closed_means(command, saved, capsys):
    with pytest.raises(SystemExit):
        run(command, "--model", saved, "--help")
    assert CLOSED in " ".join(capsys.readouterr().out.split())


# Made again


@pytest.fixture
def drawn(saved, photos, out, capsys):
    given = ("--intensity", photos[0], "--palette", "#aa3311 0.6, #eeddcc 0.4")
    assert run("compose", "--model", saved, *given, "--seeds", "3", "--out", out) == 0
    capsys.readouterr()
    return out / "compose_seed3.png"


def test_off_by_rounding_is_the_same(drawn, saved, tmp_path, capsys):
    pixels = np.asarray(Image.open(drawn)).copy()
    pixels[2, 3] ^= 1
    pixels[4, 5, 0] ^= 1
    save_png(drawn, Image.fromarray(pixels), read_recipe(drawn))
    assert run("compose", "--model", saved, "--from-png", drawn, "--out", tmp_path / "again") == 0
    shown = capsys.readouterr()
    assert "the same, up to rounding (4 values by 1/255)" in shown.out and shown.err == ""


def test_other_machines_and_versions_are_named_where_it_matters(drawn, saved, tmp_path, capsys):
    found = read_recipe(drawn)
    assert found["device"] == "cpu" and found["versions"]["torch"]
    found |= {"device": "abacus\x1b[2J", "versions": {"torch": "0.1"}}
    save_png(drawn, Image.open(drawn), found)
    words = ("compose", "--model", saved, "--from-png", drawn, "--out", tmp_path / "again")
    assert run(*words) == 0
    shown = capsys.readouterr()
    assert "bit for bit" in shown.out and shown.err == ""  # it made no difference
    pixels = np.asarray(Image.open(drawn)).copy()
    pixels[0, 0, 0] ^= 64
    save_png(drawn, Image.fromarray(pixels), found)
    assert run(*words) == 0
    says = capsys.readouterr().err
    assert (
        "1 of 768 values differ, by up to 64/255; torch 0.1 then, " in says
        and "device abacus [2J then, cpu now" in says
    )


def test_comparing_knows_the_depth_of_pixels():
    deep = np.array([[0, 1000]], np.uint16)
    assert compare(deep, deep) == (True, "bit for bit")
    assert compare(deep, deep + np.uint16(200)) == (True, "up to rounding (2 values by up to 200/65535)")
    assert compare(deep, deep + np.uint16(300)) == (False, "2 of 2 values differ, by up to 300/65535")
    one = np.zeros((2, 2), np.uint8)
    assert compare(one, np.array([[1, 0], [0, 0]], np.uint8)) == (True, "up to rounding (1 value by 1/255)")
    assert compare(one, np.zeros((2, 2, 3), np.uint8))[0] is False


def test_a_picture_comes_back_in_its_own_precision(saved, photos, out, tmp_path, capsys):
    given = ("compose", "--model", saved, "--intensity", photos[0], "--out", out)
    assert run(*given, "--precision", "bf16") == 0 and run(*given) == 0
    half, full = out / "compose_seed0.png", out / "compose_seed0-2.png"
    assert [read_recipe(path)["precision"] for path in (half, full)] == ["bf16", "fp32"]
    assert (np.asarray(Image.open(half)) != np.asarray(Image.open(full))).any()
    assert report(half, Cascade.load(saved)).settings["precision"] == "bf16"
    capsys.readouterr()
    back = ("compose", "--model", saved, "--from-png", half)
    assert run(*back, "--out", tmp_path / "again") == 0 and "the same, bit for bit" in capsys.readouterr().out
    assert run(*back, "--precision", "fp32", "--out", tmp_path / "other") == 0
    assert "the same, bit for bit" not in capsys.readouterr().out
    other = tmp_path / "other" / half.name
    assert (np.asarray(Image.open(other)) == np.asarray(Image.open(full))).all()
    assert read_recipe(other)["precision"] == "fp32"  # what it says is how it was drawn
    model = Cascade.load(saved).to("cpu", torch.float16)
    draw_recipe(model, read_recipe(half))
    assert model.precision == torch.float16  # as before


def test_every_precision_can_be_written_down(saved):
    model = Cascade.load(saved)
    for dtype, name in ((None, "fp32"), (torch.float32, "fp32"), (torch.bfloat16, "bf16"), (torch.float16, "fp16")):
        assert recipe(model.to("cpu", dtype), Composition(), 0)["precision"] == name


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": FORMAT + 1}, f"expected a recipe of format {FORMAT} or lower, found {FORMAT + 1}"),
        ({"format": "\x1b]1"}, "or lower, found  ]1: a newer version"),
        ({"precision": "int3\n"}, "expected a precision of fp32, bf16, fp16 in the recipe, found int3 "),
    ],
)
def test_recipes_of_the_future_are_refused(drawn, saved, tmp_path, capsys, change, says):
    save_png(drawn, Image.open(drawn), read_recipe(drawn) | change)
    for words in (("compose", "--from-png", drawn), ("report", drawn)):
        assert run(*words, "--model", saved, "--out", tmp_path / "again") == 1
        assert says in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(("name", "original"), [("compose", None), ("edit", OLD / "photo.png")])
def test_recipes_without_a_format_number_are_read(name, original, tmp_path, capsys):
    path, model = OLD / f"{name}.png", ("--model", OLD / "model")
    assert "format" not in read_recipe(path) and "precision" not in read_recipe(path)
    task = [name, *([original] if original else [])]
    assert run(*task, *model, "--from-png", path, "--out", tmp_path / "again") == 0
    shown = capsys.readouterr()
    assert "the same, " in shown.out and shown.err == ""
    assert run("report", path, *model, *(["--image", original] if original else []), "--out", tmp_path) == 0
    rows = {row.name: row for row in report(path, Cascade.load(OLD / "model"), original).rows}
    far = {"compose": {"palette": 0.9539, "intensity": 0.4222}, "edit": {"palette": 0.8962, "intensity": 0.0826}}[name]
    # what `report` said when they were drawn
    assert {key: rows[key].distance for key in far} == pytest.approx(far, abs=1e-4)
    capsys.readouterr()
    if original is None:
        pixels = np.asarray(Image.open(path)) ^ 64
        save_png(tmp_path / "x.png", Image.fromarray(pixels), read_recipe(path))
        assert run("compose", *model, "--from-png", tmp_path / "x.png", "--out", tmp_path) == 0
        assert "the recipe does not say with which --precision" in capsys.readouterr().err


# Names of files


def test_recipes_keep_names_and_no_folders(saved, photos, out, tmp_path, capsys):
    a, b = photos
    given = ("--model", saved, "--palette", b, "--keep", "intensity", "--region", "0.2,0.2,0.6,0.7", "--out", out)
    assert run("edit", a, *given) == 0
    found = read_recipe(out / "edit_a_seed0.png")
    sources = found["sources"]
    assert re.fullmatch(r"sha256:[0-9a-f]{64} a\.png", sources["intensity"])
    assert re.fullmatch(r"sha256:[0-9a-f]{64} b\.png", sources["palette"])
    assert found["edit"]["name"] == "a.png" and found["edit"]["original"] == sources["intensity"].split()[0]
    assert str(tmp_path) not in json.dumps(found) and tmp_path.name not in json.dumps(found)
    measured = report(out / "edit_a_seed0.png", Cascade.load(saved), a)
    assert measured.settings["edit of"] == f"{found['edit']['original'][:19]} a.png"
    assert {row.name: row.source for row in measured.rows}["palette"] == f"{sources['palette'][:19]} b.png"
    assert run("edit", "--model", saved, "--from-png", out / "edit_a_seed0.png") == 1
    assert "is an edit of a.png: give the picture that was edited, too" in capsys.readouterr().err


def test_strange_names_do_no_harm(saved, photos, out, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    strange = tmp_path / "a\x1b[31m\n[bold]\udcff\u202e.png"
    strange.write_bytes(Path(photos[0]).read_bytes())
    assert run("compose", "--model", saved, "--palette", strange, "--out", out) == 0
    path = out / "compose_seed0.png"
    assert read_recipe(path)["sources"]["palette"].endswith(" a [31m [bold]\ufffd .png")
    found = read_recipe(path)
    found["sources"]["palette"] = "\x1b[2J../../etc/x [link=http://a.b]here[/link]\u202e" + "x" * 10_000
    save_png(path, Image.open(path), found)
    assert parse_recipe(Cascade.load(saved), found).composition.sources["palette"].startswith(" [2J../../etc/x ")
    capsys.readouterr()
    assert run("report", path, "--model", saved, "--out", out) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "\u202e" not in shown and "[link=http://a.b]here" in shown and len(shown) < 5_000
    assert printable("a red cube, größer\ton 草") == "a red cube, größer on 草"
