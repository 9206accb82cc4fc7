"""Every row of the gallery: the commands that it names draw its very pictures; the scripts, and the page."""

import importlib
import json
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from composer.__main__ import main
from composer.cascade.cascade import Cascade
from composer.cascade.options import SampleOptions
from composer.images.sheet import from_pil
from composer.storage.files import write_atomically
from composer.studio import Studio, make_table

EXAMPLES = Path(__file__).parents[2] / "examples"
FAMILIES = sorted(path.stem for path in EXAMPLES.glob("*.py") if "\nEXAMPLES = (" in path.read_text())


def module(name):
    """An example as `python examples/NAME.py` would find it."""
    if str(EXAMPLES) not in sys.path:
        sys.path.insert(0, str(EXAMPLES))
    return importlib.import_module(name)


ROWS = [make for name in FAMILIES for make in module(name).EXAMPLES]


@pytest.fixture
def here(eight, tmp_path, monkeypatch):
    """A folder where `scenes256` is a tiny model of all eight conditions."""
    eight.save(tmp_path / "scenes256")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("make", ROWS, ids=lambda make: make.__name__)
def test_the_commands_of_a_row_draw_its_pictures(make, here, capsys):
    row = make(Studio(Cascade.load("scenes256"), Path(), options=SampleOptions(steps=2)))
    assert len(row.commands) == len(row.results)
    for i, (command, results) in enumerate(zip(row.commands, row.results, strict=True)):
        words = shlex.split(command)
        assert words[0] == "composer"
        assert main([*words[1:], "--steps", "2", "--out", f"again{i}"]) == 0, command
        drawn = [path for path in sorted(Path(f"again{i}").glob("*.png")) if not path.stem.endswith("_sheet")]
        assert len(drawn) == len(results), command
        for path, (label, image) in zip(drawn, results, strict=True):
            with Image.open(path) as picture:
                off = (from_pil(picture) - image).abs().max() * 127.5
            assert off <= 0.501, f"{command}: {label} differs by {off} of 255"  # by nothing but rounding to 8 bits
    labels = [label for results in row.results for label, _ in results]
    assert len(set(labels)) == len(labels)
    measured = [value for told in row.closed.values() for value in told.values()]
    assert set(row.closed) == set(labels) and all(value <= 1 for value in measured)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_script_that_is_copied_alone_draws_all_of_its_rows(name, here, photos, monkeypatch, capsys):
    script = shutil.copy(EXAMPLES / f"{name}.py", here)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(EXAMPLES)])
    for sibling in EXAMPLES.glob("*.py"):
        monkeypatch.delitem(sys.modules, sibling.stem, raising=False)
    files = photos * 2 if "pictures(" in Path(script).read_text() else []
    monkeypatch.setattr(sys, "argv", [script, *files[:3], "--steps", "1", "--out", "shown"])
    rows = runpy.run_path(script, run_name="__main__")["EXAMPLES"]
    shown = capsys.readouterr().out
    assert sorted(path.name for path in (here / "shown").glob("*.jpg")) == sorted(f"{r.__name__}.jpg" for r in rows)
    assert "composer " in shown and "nan" not in shown
    assert not files or photos[0] in shown  # the commands name the user's own files


def test_the_page_keeps_what_was_drawn_and_says_what_is_to_be_said(here, monkeypatch, capsys):
    gallery = module("gallery")
    told = ["--out", "docs/gallery", "--steps", "2", "--precision", "fp32", "--only"]
    monkeypatch.setattr(gallery, "REMARKS", {"recombined": "The ring."})
    gallery.main([*told, "recombined"])
    page = (here / "docs/gallery/README.md").read_text()
    assert "### Recombined" in page and "**Seen:** The ring." in page and "### Inpainting" not in page
    assert "look at these" in capsys.readouterr().out
    before = (here / "docs/gallery/recombined.jpg").stat().st_mtime_ns
    gallery.main([*told, "recombined", "from_one_to_another"])
    assert (here / "docs/gallery/recombined.jpg").stat().st_mtime_ns == before
    page = (here / "docs/gallery/README.md").read_text()
    for link in re.findall(r"\]\(([^)]+\.(?:jpg|gif))\)", page):
        assert (here / "docs/gallery" / link).exists()
    with Image.open(here / "docs/gallery/from_one_to_another.gif") as film:
        assert getattr(film, "n_frames", 1) == 18
    found = json.loads((here / "docs/gallery/figures.json").read_text())
    write_atomically(here / "docs/gallery/figures.json", json.dumps({**found, "model": "other"}).encode())
    gallery.main([*told, "inpainted"])
    assert "### Recombined" not in (here / "docs/gallery/README.md").read_text()  # another model drew it


def test_the_page_in_the_repository_is_whole():
    gallery, folder = module("gallery"), EXAMPLES.parent / "docs/gallery"
    page, found = (folder / "README.md").read_text(), json.loads((folder / "figures.json").read_text())
    assert page == gallery.page(found["rows"])
    assert list(found["rows"]) and set(found["rows"]) == {make.__name__ for make in ROWS}
    assert set(gallery.REMARKS) <= set(found["rows"]) and found["model"] == gallery.SEEN
    links = re.findall(r"\]\((?!http)([^)]+)\)", page)
    assert links and all((folder / link).exists() for link in links)
    named = set(re.findall(r"inputs/\w+\.jpg", page))
    assert named == {f"inputs/{path.name}" for path in (folder / "inputs").iterdir()}
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 4_000_000


def test_a_table_leaves_empty_what_was_not_asked():
    made = make_table({"a": {"palette": 0.5}, "b": {"palette": 0.25, "depth": torch.tensor(-1.0).item()}})
    assert made.splitlines()[2:] == ["| palette | 0.50 | 0.25 |", "| depth |  | -1.00 |"]
    assert make_table({"a": {}}) == ""
