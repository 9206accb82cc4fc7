"""Decomposers in bfloat16: who takes part, and that what they extract stays within tolerance."""

import pytest
import torch

from composer.data import ImageData, SceneImages
from composer.decomposition import Decomposition
from composer.scenes import render_batch
from decomposers import Palette, Semantics, Sketch

TOLERANCE = 1e-3  # of a distance that is about 1 between two pictures


@pytest.fixture(scope="module")
def scenes():
    return {"image": render_batch("val", list(range(8)), 64)["image"]}


def decomposers():
    return {"semantics": Semantics(weights="asset:scenes_clip"), "palette": Palette(), "sketch": Sketch()}


def test_what_is_reduced_stays_within_tolerance_and_the_rest_stays_exact(scenes):
    decomposition = Decomposition(decomposers())
    whole = decomposition(scenes)
    decomposition.reduce(torch.bfloat16)
    reduced = decomposition(scenes)
    for name, decomposer in decomposition.named():
        assert reduced[name].dtype == torch.float32
        assert torch.equal(reduced[name], whole[name]) is not decomposer.reducible
        if decomposer.reducible:
            assert decomposer.distance(whole[name], reduced[name]).max() < TOLERANCE
            assert decomposer.distance(whole[name], whole[name].roll(1, 0)).min() > 100 * TOLERANCE
    decomposition.reduce(None)
    again = decomposition(scenes)
    assert all(torch.equal(again[name], whole[name]) for name in whole)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_training_reduces_on_a_gpu_alone(scenes, monkeypatch, device):
    asked = []
    monkeypatch.setattr(Decomposition, "reduce", lambda self, precision: asked.append(precision))
    monkeypatch.setattr(Decomposition, "to", lambda self, device: self)
    monkeypatch.setattr(Decomposition, "forward", lambda self, batch: {})
    monkeypatch.setattr(torch.Tensor, "device", torch.device(device))
    for reduced in (False, True):
        data = ImageData(SceneImages("val", 16, 1), None, {"sketch": Sketch()}, batch_size=1, reduced=reduced)
        data.decompose(scenes)
    assert asked == [None, torch.bfloat16 if device == "cuda" else None]
