"""The blocks of the README and of pages that it names, run as they are printed: on a tiny model of all conditions."""

import copy
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

from composer.__main__ import main
from composer.cascade.cascade import Cascade
from composer.commands.registry import COMMANDS
from tests.conftest import TINY, spatial

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/install.md", "docs/tasks.md", "docs/own_images.md")
WRITTEN = "".join((ROOT / page).read_text() for page in PAGES)
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"]
DOCUMENTS += [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", WRITTEN, re.DOTALL | re.MULTILINE)
STAND_INS = {"semantics": "Palette", "sketch": "Sketch", "instances": "Intensity", "depth": "Intensity"}
TEXT = {"vocabulary_size": 49408, "width": 8, "layers": 1, "heads": 1, "vector_dim": 32, "token_dim": 16}
SMALLER = {"scenes": ["--workers", "0"], "compose": ["--steps", "2"], "edit": ["--steps", "2"], "report": []}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with the model `scenes256`, which goes before the one that ships, and some Scenes."""
    spec = copy.deepcopy(TINY)
    conditions = spec["stages"][0]["conditions"]
    conditions |= {name: spatial(1) for name in ("sketch", "instances", "depth")}
    conditions["semantics"] = conditions["palette"]
    conditions["caption"] = {"class_path": "conditions.TextTransformer", "init_args": TEXT}
    spec["decomposers"] |= {name: {"class_path": f"decomposers.{own}"} for name, own in STAND_INS.items()}
    spec["decomposers"]["caption"] = {"class_path": "decomposers.Tokens"}
    Cascade.from_spec(spec).save(tmp_path / "scenes256")
    monkeypatch.chdir(tmp_path)
    written = ["scenes", "--split", "val", "--count", "8", "--size", "256", "--out", "out/scenes"]  # as the README does
    assert main([*written, "--workers", "0"]) == 0
    return tmp_path


def commands(language="bash"):
    """Every command of the blocks, without comments."""
    lines = [line for kind, block in BLOCKS if kind == language for line in block.replace("\\\n", " ").splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def test_every_block_says_what_it_is():
    assert {kind for kind, _ in BLOCKS} == {"bash", "python"}


@pytest.mark.parametrize("block", [block for kind, block in BLOCKS if kind == "python"])
def test_python_runs_as_printed(block, here):
    exec(compile(block, "<page>", "exec"), {})
    assert {path.name for path in (here / "out").glob("*.png")} & {"recombined_seed0.png", "edited.png", "restyled.png"}


def test_commands_run_as_printed(here):
    ran = []
    for words in commands():
        if {"models/glide", "models/scenes64_objects"} & set(words):  # other tests draw with such models
            continue
        if words[0] == "composer" and words[1] in SMALLER:
            if "--prior" in words:  # the tiny model's semantics are not those that the prior draws
                at = words.index("--prior")
                assert (ROOT / "composer" / "assets" / words[at + 1]).is_dir()
                del words[at : at + 2]
            assert main([*words[1:], *SMALLER[words[1]]]) == 0, words
            ran.append(words[1])
    assert ran == ["scenes", "compose", "compose", "compose", "report", "edit"]
    assert (here / "out/again/compose_seed1.png").exists() and (here / "out/edit_000005_seed0.png").exists()


def test_other_commands_name_what_is_there():
    """Those that train, download or install; tests/test_examples.py runs the scripts and the ninth condition."""
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for words in commands():
        if words[0] == "make":
            assert words[1] in targets
        elif words[0] == "composer":
            rest = words[3:] if words[1] == "--plugins" else words[1:]
            assert rest[0] in COMMANDS, words
        elif words[0] == "cp":
            assert all((ROOT / word).exists() for word in words[1:-1])
        else:
            assert words[0] in ("mkdir", "cd", "pip"), f"nothing here checks {words}"


def test_files_that_the_texts_name_are_there():
    for document in DOCUMENTS:
        text = (ROOT / document).read_text()
        links = [(ROOT / document).parent / link for link in re.findall(r"\]\((?!http)([^)#]+)\)", text)]
        named = [
            ROOT / name
            for name in re.findall(r"`((?:configs|examples|docs|tests|composer|decomposers)/[\w./]+)`", text)
        ]
        for path in (*links, *named):
            if "saturation" not in path.name:  # the walk-through's own
                assert path.exists(), f"{document} names {path}"


def test_modules_that_the_architecture_lists_are_all_of_them():
    text = (ROOT / "docs/architecture.md").read_text()
    listed = set(re.findall(r"`(\w+)(?:\.py|/)`", text))
    assert {path.stem for path in (ROOT / "composer").glob("[a-z]*")} - {"assets", "configs", "py"} <= listed


def test_the_changelog_knows_the_version_and_every_command(capsys):
    text = (ROOT / "CHANGELOG.md").read_text()
    assert main(["--version"]) == 0 and f"[{capsys.readouterr().out.strip()}]" in text
    assert all(f"`{name}`" in text for name in COMMANDS)


def test_one_version_in_the_package_the_changelog_and_the_citation():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    newest = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert newest is not None and newest[1] == version == citation["version"]
    assert {"cff-version", "message", "title", "authors", "license"} <= citation.keys()


def test_templates_are_forms_as_github_reads_them():
    forms = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
    assert [path.stem for path in forms] == ["bug", "config", "feature"]
    for form in (yaml.safe_load(path.read_text()) for path in forms if path.stem != "config"):
        assert form["name"] and form["description"]
        fields = [part for part in form["body"] if part["type"] != "markdown"]
        assert len({part["id"] for part in fields}) == len(fields) >= 2
        assert all(part["attributes"]["label"] for part in fields)
