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
