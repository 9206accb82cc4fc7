"""Tokens of objects, against GLIGEN's formula coordinate by coordinate (`test_conditions` holds the contract)."""

import math

import pytest
import torch

from conditions import Grounding
from conditions.grounding import fourier_features

KEEP, SIZE = torch.ones(1, dtype=torch.bool), (16, 16)


def value_of(*boxes):
    value = torch.zeros(1, len(boxes), 8)
    value[0, :, :4], value[0, :, 4:7], value[..., 7] = torch.tensor(boxes), torch.randn(len(boxes), 3), 1
    return value


def test_fourier_features_by_hand():
    box = [0.1, 0.25, 0.5, 1.0]
    want = []
    for k in range(8):
        frequency = 100 ** (k / 8)
        want += [math.sin(frequency * x) for x in box] + [math.cos(frequency * x) for x in box]
    got = fourier_features(torch.tensor([[box]]))
    torch.testing.assert_close(got, torch.tensor([[want]]), atol=1e-5, rtol=0)


@torch.no_grad()
def test_tokens_and_null_features():
    condition = Grounding(3, 5)
    for null in (condition.no_phrase, condition.no_box):
        torch.nn.init.normal_(null)
    value = value_of((0.1, 0.2, 0.5, 0.9), (0.0, 0.0, 0.0, 0.0), (0.3, 0.3, 0.6, 0.6))
    value[0, 2, 4:7] = 0
    made = condition(value, KEEP, SIZE)
    phrase, place = value[0, :, 4:7].clone(), fourier_features(value[..., :4])[0]
    phrase[2], place[1] = condition.no_phrase, condition.no_box
    torch.testing.assert_close(made.objects[0], condition.to_objects(torch.cat([phrase, place], 1)))
    assert made.object_mask.all() and list(made.to_dict()) == ["objects", "object_mask"]


@torch.no_grad()
def test_empty_slots_may_contain_anything():
    condition, value = Grounding(3, 5), value_of((0.1, 0.2, 0.5, 0.9), (0.2, 0.2, 0.5, 0.9))
    value[0, 1, -1] = 0
    want = condition(value, KEEP, SIZE)
    value[0, 1, :-1] = torch.nan
    got = condition(value, KEEP, SIZE)
    assert torch.equal(got.objects, want.objects) and got.object_mask.tolist() == [[True, False]]
    assert torch.equal(
        condition(condition.example(2, SIZE), KEEP.expand(2), SIZE).object_mask.sum(1), torch.tensor([30, 30])
    )


def test_other_widths_are_refused():
    with pytest.raises(ValueError, match="an embedding of width 4 and a mask, found 8 channels"):
        Grounding(4, 5)(value_of((0.1, 0.2, 0.5, 0.9)), KEEP, SIZE)


@torch.no_grad()
def test_training_drops_single_phrases_and_boxes_to_their_null_features():
    torch.manual_seed(0)
    condition, value = Grounding(3, 5, drop_phrase=0.5, drop_box=0.25), torch.rand(1, 400, 8)
    value[..., 2:4] += value[..., :2] + 0.01
    value[..., -1] = 1
    for null in (condition.no_phrase, condition.no_box):
        torch.nn.init.normal_(null)
    made = condition.train()(value, KEEP, SIZE).objects[0]
    phrase, box = value[0, :, 4:7], fourier_features(value[..., :4])[0]

    def same(a, b):
        want = condition.to_objects(torch.cat([a.expand(400, -1), b.expand(400, -1)], 1))
        return (want - made).abs().amax(1) < 1e-5

    kinds = [(phrase, box), (condition.no_phrase, box), (phrase, condition.no_box)]
    kinds.append((condition.no_phrase, condition.no_box))
    shares = torch.stack([same(*kind) for kind in kinds]).float()
    assert (shares.sum(0) == 1).all()
    torch.testing.assert_close(shares.mean(1), torch.tensor([0.375, 0.375, 0.125, 0.125]), atol=0.06, rtol=0)
    spared = condition.eval()(value, KEEP, SIZE).objects[0]
    torch.testing.assert_close(spared, condition.to_objects(torch.cat([phrase, box], 1)))
    with pytest.raises(ValueError, match=r"drop_phrase, drop_box and points in .* found 2, 0.0 and 0.0"):
        Grounding(3, 5, drop_phrase=2)


@torch.no_grad()
def test_a_point_is_a_box_without_sides():
    condition = Grounding(3, 5)
    torch.nn.init.normal_(condition.no_box)
    value = value_of((0.3, 0.6, 0.3, 0.6), (0.0, 0.4, 0.0, 0.4), (0.2, 0.5, 0.2, 0.9), (0.0, 0.0, 0.0, 0.0))
    place = fourier_features(value[..., :4])[0]
    place[2:] = condition.no_box  # a line says nothing, zeros are an unknown place
    want = condition.to_objects(torch.cat([value[0, :, 4:7], place], 1))
    torch.testing.assert_close(condition(value, KEEP, SIZE).objects[0], want)


@torch.no_grad()
def test_training_replaces_a_share_of_the_boxes_by_their_centres():
    torch.manual_seed(0)
    condition, value = Grounding(3, 5, points=0.25), torch.rand(1, 400, 8)
    value[..., 2:4] = value[..., :2] + 0.3
    value[..., -1] = 1
    centre = (value[..., :2] + 0.15).repeat(1, 1, 2)
    phrase = value[0, :, 4:7]
    boxes, points = (
        condition.to_objects(torch.cat([phrase, fourier_features(place)[0]], 1)) for place in (value[..., :4], centre)
    )
    made = condition.train()(value, KEEP, SIZE).objects[0]
    kinds = torch.stack([(made - want).abs().amax(1) < 1e-4 for want in (boxes, points)]).float()
    assert (kinds.sum(0) == 1).all()
    assert kinds[1].mean().item() == pytest.approx(0.25, abs=0.06)
    torch.testing.assert_close(condition.eval()(value, KEEP, SIZE).objects[0], boxes)
