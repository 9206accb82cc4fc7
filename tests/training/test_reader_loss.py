"""The loss that reads the estimate again: each reader's gradient, which rows it counts for, and that it trains."""

import json
import sys
from typing import Any

import pytest
import torch

import conditions  # noqa: F401 (short names in the YAML)
from composer.conditioning import ConditionSet
from composer.scenes.batch import render_batch
from composer.training.cli import ModelAlone, TrainingCLI
from composer.training.reader_loss import ReaderLoss
from conditions import Instances, Spatial, Vector
from decomposers import Intensity, Palette, SceneDepth, SceneInstances, Semantics, Sketch, palette
from tests.training.test_training import data, stage, trainer

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec:FutureWarning", "ignore:The '.*_dataloader' does not have", "ignore::DeprecationWarning"
)
READERS: dict[str, Any] = {
    "palette": Palette,
    "depth": SceneDepth,
    "instances": SceneInstances,
    "semantics": lambda: Semantics(weights="asset:scenes_clip"),
    "intensity": Intensity,
    "sketch": Sketch,
}


@pytest.mark.parametrize("name", READERS)
def test_going_down_the_gradient_is_going_nearer(name):
    """By the decomposer's own distance, which the gradient never sees where its loss is another one."""
    reader = READERS[name]().eval()
    truth = render_batch("val", [0, 1], 64)["image"]
    seed = torch.tensor([3, 4])
    wanted = reader({"image": truth, "seed": seed})

    def distance(image):
        with torch.no_grad():
            return reader.distance(wanted, reader({"image": image.clamp(-1, 1), "seed": seed}))

    image = truth.flip(0).clone().requires_grad_(True)  # each wants to become the other
    before = distance(image)
    optimizer = torch.optim.Adam([image], 0.03)
    for _ in range(20):
        optimizer.zero_grad()
        loss = reader.loss(wanted, {"image": image.clamp(-1, 1), "seed": seed})
        assert loss.shape == (2,)
        loss.sum().backward()
        assert image.grad.isfinite().all()
        optimizer.step()
    assert (before > 0.02).all() and (distance(image) < 0.8 * before).all()


def test_the_soft_palette_becomes_the_hard_one(monkeypatch):
    reader, image = Palette(), render_batch("val", [2, 3], 64)["image"]
    wanted = reader({"image": image.flip(0)})
    hard = reader.distance(wanted, reader({"image": image}))
    monkeypatch.setattr(palette, "SOFTNESS", 0.1)
    torch.testing.assert_close(reader.loss(wanted, {"image": image}), hard, atol=0.01, rtol=0)
    black = torch.full((1, 3, 8, 8), -1.0, requires_grad=True)
    reader.loss(wanted[:1], {"image": black}).sum().backward()
    assert black.grad.isfinite().all()


def test_rows_that_kept_it_and_have_little_noise_are_read():
    grey, colours = Intensity(), Palette()
    loss = ReaderLoss({"intensity": grey, "palette": colours}, {"palette": 3.0}, below=0.5)
    image, estimate = torch.rand(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    seed = torch.arange(4)
    given = {"intensity": grey({"image": image, "seed": seed}), "palette": colours({"image": image})}
    keep = {"intensity": torch.tensor([True, True, False, False]), "palette": torch.tensor([True, False, True, True])}
    found = loss(given, keep, torch.tensor([0.1, 0.4, 0.2, 0.6]), seed, estimate)
    shades = grey.distance(given["intensity"], grey({"image": estimate, "seed": seed}))
    tones = 3 * colours.loss(given["palette"], {"image": estimate})
    torch.testing.assert_close(found, torch.stack([shades[0] + tones[0], shades[1], tones[2], torch.tensor(0.0)]))
    assert not loss({}, keep, torch.zeros(4), seed, estimate).any()


def test_it_is_added_to_the_loss_and_is_no_part_of_the_model(tmp_path):
    plain, model = stage(), stage(reader_loss=ReaderLoss({"palette": Palette()}, below=1e9))
    losses = [[], []]
    for one, into in ((plain, losses[0]), (model, losses[1])):
        step = one.training_step
        one.training_step = lambda *args, step=step, into=into: into.append(step(*args)) or into[-1]
        trainer(tmp_path, max_steps=2).fit(one, data())
    assert losses[1][0] > losses[0][0] + 0.01  # the first steps differ in nothing else
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


class BlackAndWhite(Sketch):
    def forward(self, batch):
        return (batch["image"].mean(1, keepdim=True) > 0).float()


def test_what_cannot_be_trained_for_is_refused():
    known = ConditionSet({"sketch": Spatial(1, 4), "palette": Vector(156, 8, 4), "instances": Instances(5, 4)})
    ReaderLoss({"palette": Palette(), "instances": SceneInstances()}).check(known, 64)
    with pytest.raises(ValueError, match="BlackAndWhite gives no gradient, leave sketch out"):
        ReaderLoss({"sketch": BlackAndWhite()}).check(known, 64)
    with pytest.raises(ValueError, match="reads depth; this model has sketch, palette"):
        ReaderLoss({"depth": SceneDepth()}).check(known, 64)
    with pytest.raises(ValueError, match="weights of palette; found sketch"):
        ReaderLoss({"palette": Palette()}, {"sketch": 1})
    with pytest.raises(ValueError, match="above 0"):
        ReaderLoss({"palette": Palette()}, below=0)


def test_a_configuration_names_it(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["composer"])
    given = {"readers": {"palette": {"class_path": "Palette"}}, "below": 0.7}
    readers = json.dumps({"class_path": "ReaderLoss", "init_args": given})
    words = ["-c", "configs/tiny.yaml", "--model.init_args.reader_loss", readers]
    loss = TrainingCLI(words, run=False).model.reader_loss
    assert loss.below == 0.7 and loss.weights == {"palette": 1.0}
    assert ModelAlone(words).model.reader_loss is None  # it may need weights
