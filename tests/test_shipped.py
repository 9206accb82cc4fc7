"""The models that ship: whole, within its size, and following what it is asked."""

import json
from pathlib import Path

import pytest
import torch

from composer.__main__ import main
from composer.cascade.cascade import Cascade
from composer.cascade.composition import Composition
from composer.cascade.low_res import shrink
from composer.cascade.options import SampleOptions
from composer.cascade.start import SmallImage
from composer.data.datasets import SceneImages
from composer.evaluation.adherence import Evaluation
from composer.evaluation.prior import measure_embeddings
from composer.evaluation.samples import open_sample, sample_of
from composer.prior import Prior
from composer.scenes import render_retold
from composer.scenes.things import list_asked, load_judge, mark, see
from composer.training.things import ThingImages

ASSETS = Path(__file__).parent.parent / "composer" / "assets"


@pytest.fixture(scope="module")
def shipped():
    return Cascade.load("scenes256").to("cpu", torch.bfloat16)


def test_the_shipped_files_are_small():
    assert sum(path.stat().st_size for path in (ASSETS / "scenes256").iterdir()) <= 25e6
    assert (ASSETS / "scenes256" / "up256.safetensors").stat().st_size <= 12e6
    assert sum(path.stat().st_size for path in ASSETS.rglob("*")) <= 40e6


def test_all_eight_conditions_are_there(shipped):
    wanted = {"caption", "semantics", "palette", "sketch", "instances", "depth", "intensity", "mask"}
    assert set(shipped.names) == wanted


def test_the_card_states_figures():
    card = (ASSETS / "scenes256" / "README.md").read_text()
    assert "| intensity |" in card and "images a second" in card


@pytest.fixture(scope="module")
def evaluation(shipped):
    return Evaluation(shipped, open_sample("scenes:val", 6, 64), options=SampleOptions(steps=10))


@pytest.mark.parametrize(("name", "least"), [("intensity", 0.7), ("sketch", 0.4), ("palette", 0.3)])
def test_it_follows_a_condition_alone(evaluation, name, least):
    every = range(6)
    whole = evaluation.block(every)
    images = evaluation.draw(whole.parts.pick(name), every)
    assert evaluation.score(images, [name], whole)[name].closed > least


def test_an_edit_changes_nothing_outside(evaluation):
    assert evaluation.measure_mask().outside == 0


def test_the_upsampler_keeps_the_image_and_sharpens_it(shipped):
    scenes = SceneImages("val", 256, 6)
    true = torch.stack([scenes.row(i, 0)["image"] for i in range(2, 4)])
    small = shrink(true, 4)
    large = shipped.sample(Composition(start=SmallImage(small)), seeds=[0, 1])
    error = (shrink(large, 4) - small).square().mean((1, 2, 3))
    assert (10 * (4 / error).log10() >= 32).all()

    def edges(image):
        return float(image.diff(dim=2).square().mean() + image.diff(dim=3).square().mean())

    bicubic = torch.nn.functional.interpolate(small, (256, 256), mode="bicubic")
    assert edges(bicubic) < 0.3 * edges(true) and 0.6 * edges(true) < edges(large) < 1.3 * edges(true)


def test_the_shipped_judge_sees_what_true_pictures_show():
    judge = load_judge(ASSETS / "scenes_judge")
    scenes = ThingImages(SceneImages("val", 64, 64))
    rows = [scenes.row(i, 0) for i in range(64)]
    seen = see(judge, torch.stack([row["image"] for row in rows]))
    right = [mark(list_asked(row["things"]), found)["bound"] for row, found in zip(rows, seen, strict=True)]
    assert sum(right) >= 60


PRIORS = ("scenes_prior_diffusion", "scenes_prior_ar")


def test_the_shipped_priors_are_small_and_have_cards():
    files = [path for name in PRIORS for path in (ASSETS / name).iterdir()]
    assert sum(path.stat().st_size for path in files) <= 8e6
    for name in PRIORS:
        card = (ASSETS / name / "README.md").read_text()
        assert "| other images of the caption |" in card and f"composer evaluate-prior {name}" in card


@pytest.mark.parametrize("name", PRIORS)
def test_a_shipped_prior_draws_what_the_caption_says_in_more_than_one_way(name):
    """Nearer to the caption's pictures than any stranger's is, and about as unlike each other as those pictures."""
    prior, count = Prior.load(name), 24
    true = sample_of("scenes:val", count, 64)
    retold = render_retold("val", range(count), 2, 64)
    table = measure_embeddings(prior, prior.image_reader(), true, draws=3, retold=retold)
    drawn, others = table["prior, guidance 1"], table["other images of the caption"]
    assert drawn.to_image > 0.85 and drawn.found > 0.7
    assert table["image of another caption"].to_image < 0.3
    assert (1 - others.among_draws) / 3 < 1 - drawn.among_draws < 5 * (1 - others.among_draws)
    assert torch.equal(prior.sample(["a red cube on sand"], seeds=[4]), prior.sample(["a red cube on sand"], seeds=[4]))


def test_the_shipped_diffusion_prior_is_the_one_to_evaluate(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["composer"])
    words = ["--count", "2", "--draws", "2", "--pictures", "0", "--json", str(tmp_path / "prior.json")]
    assert main(["evaluate-prior", *words]) == 0
    assert "| other images of the caption |" in capsys.readouterr().out
    measured = json.loads((tmp_path / "prior.json").read_text())
    assert measured["about"]["prior"] == Prior.load(PRIORS[0]).sha256 != Prior.load(PRIORS[1]).sha256
