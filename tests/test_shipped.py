"""The model that ships: whole, within its size, and following what it is asked."""

from pathlib import Path

import pytest
import torch

from composer.adherence import Evaluation
from composer.cascade import Cascade
from composer.evaluating import sample_of

ASSETS = Path(__file__).parent.parent / "composer" / "assets"


@pytest.fixture(scope="module")
def shipped():
    return Cascade.load("scenes256").to("cpu", torch.bfloat16)


def test_the_shipped_files_are_small():
    assert sum(path.stat().st_size for path in ASSETS.rglob("*")) <= 25e6


def test_all_eight_conditions_are_there(shipped):
    wanted = {"caption", "semantics", "palette", "sketch", "instances", "depth", "intensity", "mask"}
    assert set(shipped.names) == wanted


def test_the_card_states_figures():
    card = (ASSETS / "scenes256" / "README.md").read_text()
    assert "| intensity |" in card and "images a second" in card


@pytest.fixture(scope="module")
def evaluation(shipped):
    return Evaluation(shipped, sample_of("scenes:val", 6, 64), changes={"steps": 10})


@pytest.mark.parametrize(("name", "least"), [("intensity", 0.7), ("sketch", 0.4), ("palette", 0.3)])
def test_it_follows_a_condition_alone(evaluation, name, least):
    images = evaluation.draw(evaluation.parts.pick(name))
    assert evaluation.score(images, [name])[name]["closed"] > least


def test_an_edit_changes_nothing_outside(evaluation):
    assert evaluation.masked()["outside"] == 0
