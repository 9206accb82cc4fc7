"""Models, recipes and checkpoints of strangers: refused in one clear error, or used without harm.

COMPOSER_MUTANTS says how many mutants are drawn in all, 2,000 unless told.
"""

import contextlib
import copy
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import open_clip  # noqa: F401, what libraries write when they are imported is no deed of a command's
import pytest
import torch
import torch._dynamo
import transformers  # noqa: F401
from PIL import Image

import composer
from composer.__main__ import main
from composer.cascade.cascade import Cascade
from composer.images.sheet import read_recipe, save_png
from composer.storage.folder import write_model
from composer.storage.pretrained import network_allowed, offline
from decomposers import RFDETR, T5, Depth, Semantics
from tests.conftest import TINY
from tests.hostile_files import (
    changed,
    configurations,
    edit_recipes,
    hostile_folders,
    model_like,
    mutants,
    recipes,
    run_configurations,
)
from tests.hostility import Outcome, run

MUTANTS = int(os.environ.get("COMPOSER_MUTANTS", "2000"))


def check(
    attacks: Iterable[tuple[str, Any]], attempt: Callable[[Any], Outcome], harmless: int | None = None
) -> list[Outcome]:
    """Tries all attacks; tells of those that broke a promise together.

    Args:
        attacks: Name and what it is.
        attempt: Runs a command on it.
        harmless: At most so many may succeed; None lets all.
    """
    broken, outcomes = [], []
    for name, attack in attacks:
        outcome = attempt(attack)
        outcomes.append(outcome)
        if outcome.broken:
            broken.append(f"{name}: {outcome.broken} {outcome.err[-300:]}")
    assert not broken, f"{len(broken)} of {len(outcomes)}:\n" + "\n".join(broken)
    done = [outcome for outcome in outcomes if outcome.status == 0]
    assert harmless is None or len(done) <= harmless, [outcome.words for outcome in done]
    return outcomes


@pytest.fixture
def work(tmp_path, saved, photos):
    """Where commands run, ``out``; a secret lies beside it."""
    (tmp_path / "secret.txt").write_text("a secret word\n")
    (tmp_path / "out").mkdir()
    return tmp_path


@pytest.fixture
def config(saved):
    return json.loads((saved / "config.json").read_text())


def draw(work: Path, model: Path) -> Outcome:
    words = ["compose", "--palette", str(work / "b.png"), "--steps", "1", "--model", str(model), "--out", "o"]
    return run(words, work / "out", seconds=20, megabytes=400)


def test_hostile_configurations_of_models(work, saved, config):
    def attempt(made: Any) -> Outcome:
        return draw(work, model_like(saved, work / "evil", made))

    assert len(check(configurations(config), attempt)) > 180


def test_hostile_files_of_models(work, saved):
    assert len(check(hostile_folders(saved, work / "evil"), lambda folder: draw(work, folder), harmless=0)) > 20


def test_mutants_of_a_model(work, saved, config):
    def attempt(made: Any) -> Outcome:
        return draw(work, model_like(saved, work / "evil", made))

    check(mutants(config, seed=0, count=MUTANTS // 40), attempt)


@pytest.fixture
def drawn(work, saved):
    words = ["compose", "--palette", str(work / "b.png"), "--intensity", str(work / "a.png"), "--model", str(saved)]
    assert main([*words, "--out", str(work / "drawn")]) == 0
    return work / "drawn" / "compose_seed0.png"


@pytest.fixture
def loaded_once(saved, monkeypatch):
    """The model is honest here, and takes longer to load than a recipe to be refused."""
    model = Cascade.load(saved)
    monkeypatch.setattr(Cascade, "load", lambda *args: model)


@pytest.fixture
def edited(work, saved):
    words = ["edit", str(work / "a.png"), "--region", "0.2,0.2,0.8,0.8", "--palette", str(work / "b.png")]
    assert main([*words, "--model", str(saved), "--out", str(work / "drawn")]) == 0
    return work / "drawn" / "edit_a_seed0.png"


def again(work: Path, model: Path, picture: Path, report: bool = True) -> Callable[[Any], Outcome]:
    """Draws a recipe again, and reports on it."""

    def attempt(recipe: Any) -> Outcome:
        save_png(work / "evil.png", Image.open(picture), recipe)
        words = ["--model", str(model), "--out", "o"]
        edit = isinstance(recipe, dict) and "edit" in recipe
        task = ["edit", str(work / "a.png")] if edit else ["compose"]
        first = run([*task, "--from-png", str(work / "evil.png"), *words], work / "out", seconds=20, megabytes=600)
        if not report or first.broken or (first.status and "--no-limits" not in first.err):
            return first  # a report would say the same
        image = ["--image", str(work / "a.png")] if edit else []
        second = run(["report", str(work / "evil.png"), *image, *words], work / "out", seconds=20, megabytes=600)
        return second if second.broken else first

    return attempt


def test_hostile_recipes(work, saved, drawn, loaded_once):
    def plain(attacks):
        for name, recipe in attacks:
            try:
                json.dumps(recipe, allow_nan=False)
            except ValueError:
                continue
            yield name, recipe

    assert len(check(plain(recipes(read_recipe(drawn))), again(work, saved, drawn))) > 150


def test_hostile_recipes_of_edits(work, saved, edited, loaded_once):
    assert len(check(edit_recipes(read_recipe(edited)), again(work, saved, edited))) > 20


def test_mutants_of_a_recipe(work, saved, drawn, loaded_once):
    found = read_recipe(drawn)

    def finite(attacks):
        return ((name, made) for name, made in attacks if "nan" not in repr(made) and "inf" not in repr(made))

    check(finite(mutants(found, seed=1, count=MUTANTS // 40)), again(work, saved, drawn, report=False))


@pytest.fixture
def run_config():
    """As a checkpoint holds it."""
    stage = TINY["stages"][0]
    own = {"size": stage["size"], "denoiser": stage["denoiser"], "conditions": stage["conditions"]}
    return copy.deepcopy({"model": {"init_args": own}, "data": {"decomposers": TINY["decomposers"], "readers": None}})


def export(work: Path, cascade: Any, *words: str, place: str = "") -> Callable[[Any], Outcome]:
    """Exports a checkpoint that lies in a folder, the current one unless told."""
    state, path = cascade.stages[0].weights().state_dict(), work / (place or "out") / "evil.ckpt"

    def attempt(config: Any) -> Outcome:
        torch.save({"state_dict": state, "config": config}, path)
        return run(["export", str(path), "model", *words], work / "out", seconds=20, megabytes=400)

    return attempt


def test_hostile_configurations_of_checkpoints(work, cascade, run_config):
    honest = export(work, cascade)(run_config)
    assert honest.status == 0, honest
    assert len(check(run_configurations(run_config), export(work, cascade))) > 40


def test_mutants_of_a_checkpoint(work, cascade, run_config):
    check(mutants(run_config, seed=2, count=MUTANTS // 40), export(work, cascade))


# What a model takes along, and what it may name

PRIVATE = "-----BEGIN OPENSSH PRIVATE KEY-----"


def tokens(words: object) -> dict:
    return {"class_path": "decomposers.Tokens", "init_args": {"words": str(words)}}


@pytest.mark.parametrize("place", ["home/.ssh/id_rsa", "home/key.txt", "out/.config/key.txt", "out/key"])
def test_export_publishes_no_private_file(work, cascade, run_config, place):
    private = work / place
    private.parent.mkdir(parents=True, exist_ok=True)
    private.write_text(PRIVATE)
    run_config["data"]["readers"] = {"palette": tokens(private)}
    outcome = export(work, cascade)(run_config)
    assert outcome.status == 1 and not outcome.broken, outcome
    assert not (work / "out" / "model").exists()


def test_export_carries_what_classes_declare_and_says_so(work, cascade, run_config):
    """Of the files in this folder that bear a string's name, one is a list of words."""
    for name in ("words.txt", "bf16", "ViT-L-14"):
        (work / "out" / name).write_text(f"red {name}")
    clip = {"class_path": "decomposers.Semantics", "init_args": {"model": "ViT-L-14", "weights": "asset:scenes_clip"}}
    run_config["data"]["readers"] = {"palette": tokens("words.txt"), "intensity": clip}
    outcome = export(work, cascade)(run_config)
    assert outcome.status == 0 and not outcome.broken, outcome
    assert "carried into the model: readers/palette/words.txt, from which its readers read palette" in outcome.out
    files = {path.name for path in (work / "out" / "model").rglob("*") if path.is_file()}
    assert files == {"README.md", "base.safetensors", "config.json", "manifest.json", "words.txt"}
    model = Cascade.load(work / "out" / "model")
    assert model.spec["readers"]["palette"] == tokens("model:readers/palette/words.txt")


def test_what_lies_elsewhere_is_carried_where_the_user_names_it(work, cascade, run_config):
    words = work / "elsewhere" / "words.txt"
    words.parent.mkdir()
    words.write_text("red cube")
    run_config["data"]["readers"] = {"palette": tokens(words)}
    (work / "ckpt").mkdir()
    refused = export(work, cascade, place="ckpt")(run_config)
    assert refused.status == 1 and f"add --carry {words}" in refused.err, refused
    assert export(work, cascade, "--carry", str(words), place="ckpt")(run_config).status == 0
    assert (work / "out/model/readers/palette/words.txt").read_text() == "red cube"


@pytest.mark.parametrize("name", ["..", "../..", "x/../../.."])
def test_assemble_writes_nowhere_else(work, saved, config, name):
    """A name as a folder, and a path as an argument: a .bashrc was replaced so, and a key copied."""
    (work / "words.txt").write_text(PRIVATE)
    for reader in (tokens("model:words.txt"), tokens(work / "words.txt")):
        made = changed(config, ("readers", name), reader)
        model = model_like(saved, work / "evil", made, {"words.txt": b"evil"})
        outcome = run(["assemble", "all", f"base={model}"], work / "out")
        assert outcome.status == 1 and not outcome.broken, outcome
    assert not (work / "out" / "all").exists()


def test_assemble_takes_along_what_is_the_models_own(work, saved, config):
    made = changed(config, ("readers", "palette"), tokens("model:words.txt"))
    model = model_like(saved, work / "honest", made, {"words.txt": b"red", "other.txt": b"blue"})
    outcome = run(["assemble", "all", f"base={model}"], work / "out")
    assert outcome.status == 0 and not outcome.broken, outcome
    assert "carried into the model: readers/palette/words.txt" in outcome.out
    assert (work / "out/all/readers/palette/words.txt").read_bytes() == b"red"
    assert not list((work / "out/all").rglob("other.txt"))
    made = changed(config, ("readers", "palette"), tokens(work / "secret.txt"))
    outcome = run(["assemble", "two", f"base={model_like(saved, work / 'evil', made)}"], work / "out")
    assert outcome.status == 1 and "a local file" in outcome.err


def test_save_writes_no_file_of_another_name(work):
    stage = {**TINY["stages"][0], "file": "../x.safetensors"}
    with pytest.raises(ValueError, match="a plain file name such as base"):
        Cascade.from_spec({**TINY, "stages": [stage]})
    with pytest.raises(ValueError, match="a plain file name such as base"):
        write_model(work / "out", {}, {"../x.safetensors": {}}, "")
    assert not (work / "x.safetensors").exists() and not list((work / "out").iterdir())


def test_no_folder_runs_its_python(work):
    """Transformers would ask on the terminal whether the folder's own code may run."""
    folder = work / "evil"
    folder.mkdir()
    (folder / "evil.py").write_text(f"open({str(work / 'ran')!r}, 'w').close()\n")
    auto = {name: f"evil.{name}" for name in ("AutoConfig", "AutoModel", "AutoModelForDepthEstimation")}
    config = {"model_type": "evil", "auto_map": auto, "image_mean": [0, 0, 0], "image_std": [1, 1, 1]}
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        (folder / name).write_text(json.dumps(config))
    for kind in (Depth, RFDETR, T5):
        with contextlib.redirect_stdout(io.StringIO()) as said, pytest.raises((ValueError, OSError)):
            kind(weights=str(folder))
        assert "[y/N]" not in said.getvalue()
    assert not (work / "ran").exists()


def test_a_clip_takes_no_tower_from_the_hub_without_leave(work):
    folder = work / "clip"
    shutil.copytree(Path(composer.__file__).parent / "assets" / "scenes_clip", folder)
    config = json.loads((folder / "open_clip_config.json").read_text())
    for tower, key, name in (("text", "hf_model_name", "a/b"), ("vision", "timm_model_name", "hf-hub:a/b")):
        made = changed(config, ("model_cfg", f"{tower}_cfg", key), name)
        (folder / "open_clip_config.json").write_text(json.dumps(made))
        with pytest.raises(ValueError, match=f"has a part on the hub, '{name}'"), offline():
            Semantics(weights=str(folder))


def test_the_network_is_for_those_who_allow_it(work, saved, config, monkeypatch):
    def hub_file(*args, **kwargs):
        raise FileNotFoundError(f"allowed: {network_allowed()}")

    monkeypatch.setattr("composer.storage.pretrained.hub_file", hub_file)
    depth = {"class_path": "decomposers.SceneDepth", "init_args": {"weights": "hub:a/b@main:x.safetensors"}}
    model = model_like(saved, work / "evil", changed(config, ("readers", "intensity"), depth))
    for words, allowed in (([], False), (["--allow-network"], True)):
        outcome = run(["compose", "--model", str(model), "--out", "o", *words], work / "out")
        assert outcome.status == 1 and f"allowed: {allowed}" in outcome.err, outcome


def test_a_recipe_draws_beyond_the_limits_where_the_user_says_so(work, saved, drawn):
    found = read_recipe(drawn)
    held = found["representations"]["palette"]
    save_png(work / "many.png", Image.open(drawn), found | {"also": [[{"palette": held}, 0.001]] * 33})
    words = ["compose", "--from-png", str(work / "many.png"), "--model", str(saved), "--out", "o"]
    refused = run(words, work / "out")
    assert refused.status == 1 and "terms of guidance: 35, more than 32" in refused.err, refused.err
    assert run([*words, "--no-limits"], work / "out").status == 0
