"""Each benchmark runs, at tiny size, and writes what the committed results have: the same fields, filled."""

import json
import math
import runpy
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TINY = {
    "best_of": ["--model", "{eight}", "--count", "2", "--steps", "1", "--plot", "plot.png"],
    "clip": ["--count", "4"],
    "data": ["--count", "4"],
    "decompose": ["--rounds", "1", "--sizes", "64"],
    "memory": ["--small", "--case", "{case}"],
    "round_trip": ["--model", "{eight}", "--count", "2", "--steps", "2", "3"],
    "scenes": ["--count", "2", "--sizes", "32", "64", "--processes", "0"],
    "seams": ["--count", "1", "--steps", "1"],
    "strengths": ["--model", "{eight}", "--count", "2", "--steps", "1", "--plot", "plot.png"],
    "systems": ["--rows", "{rows}", "--count", "2", "--steps", "1", "--prompts", "2", "--sheet", "sheet.png"],
    "thresholding": ["--model", "{eight}", "--count", "2", "--steps", "1", "--rounds", "1", "--sizes", "64"],
    "unet": ["--quick", "--rounds", "1", "--sizes", "64"],
    "upsampling": ["--count", "4", "--steps", "1", "--picture", "picture.png"],
}
ROWS = """
- {{name: alone, model: {eight}, samples: {{base: 5}}}}
- {{name: prior, model: {eight}, prior: scenes_prior_ar, best_of: 2, options: {{guidance: 1}}, samples: {{prior: 5}}}}
"""
TINY["thresholding"] += ["--plot", "plot.png", "--samples", "samples.png"]


def run(name, words, monkeypatch):
    """Runs a benchmark in this process as `python benchmarks/NAME.py WORDS` does."""
    path = BENCHMARKS / f"{name}.py"
    monkeypatch.setattr(sys, "argv", [str(path), *words])
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.delitem(sys.modules, "common", raising=False)
    found = runpy.run_path(str(path), run_name="__main__")
    monkeypatch.delitem(sys.modules, "common", raising=False)
    return found


def columns(value):
    """The names of all figures in a result, whatever they are figures of."""
    if isinstance(value, dict):
        plain = {key for key, inner in value.items() if not isinstance(inner, dict | list)}
        return plain.union(*(columns(inner) for inner in value.values()))
    return set().union(*(columns(inner) for inner in value)) if isinstance(value, list) else set()


def numbers(value):
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from numbers(inner)
    elif isinstance(value, int | float):
        yield value


def networks_are_of_equal_size(names):
    """All that the U-Nets' benchmark compares, as its head says."""
    for comparison, least, most in ((names["bases"](), 80.0e6, 80.5e6), (names["upsamplers"](), 47.0e6, 48.5e6)):
        for name, build in comparison.networks.items():
            with torch.device("meta"):
                count = sum(parameter.numel() for parameter in build().parameters())
            assert least <= count <= most, name


def test_every_benchmark_is_run_here():
    assert TINY.keys() == {path.stem for path in BENCHMARKS.glob("*.py")} - {"common", "libraries"}


@pytest.mark.parametrize("name", sorted(TINY.keys() - {"memory"}))
def test_it_runs_and_writes_what_is_committed(name, eight_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.yaml").write_text(ROWS.format(eight=eight_folder))
    words = [word.format(eight=eight_folder, rows="rows.yaml") for word in TINY[name]]
    names = run(name, [*words, "--json", "found.json"], monkeypatch)
    found = json.loads(Path("found.json").read_text())
    committed = json.loads((BENCHMARKS / "results" / f"{name}.json").read_text())
    assert columns(found) == columns(committed)
    assert all(math.isfinite(number) for number in numbers(found))
    assert all(Path(word).stat().st_size > 1000 for word in words if word.endswith(".png"))
    if name == "unet":
        networks_are_of_equal_size(names)


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
@pytest.mark.parametrize("case", [1, 4], ids=["sampling", "training"])
def test_memory_is_measured(case, monkeypatch, capsys):
    run("memory", [word.format(case=case) for word in TINY["memory"]], monkeypatch)
    row = json.loads(capsys.readouterr().out.splitlines()[-1])
    committed = json.loads((BENCHMARKS / "results" / "memory.json").read_text())
    assert columns(row) >= columns(committed["rows"])
    assert row["weights_gib"] > 0 and row["beyond_weights_gib"] > 0 and row["parameters"] > 1e6
