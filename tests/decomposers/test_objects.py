"""Objects: phrases as CLIP encodes them, boxes as they are given, and what is refused."""

import open_clip
import pytest
import torch

from decomposers import Objects
from tests.decomposers.test_clip_decomposers import folder, reference  # noqa: F401

TEXT = "a red cube: 0.1,0.3,0.4,0.7; a blue ball: 0.6,0.5,0.8,0.8"


@pytest.fixture
def objects():
    return Objects(weights="asset:scenes_clip", slots=4)


@torch.no_grad()
def test_a_phrase_is_the_text_towers_last_state(reference, folder):  # noqa: F811
    value = Objects(weights=folder).from_text(TEXT)
    assert value.shape == (1, 30, 69) and value[0, :, -1].tolist() == [1.0] * 2 + [0.0] * 28
    assert not value[0, 2:].any()
    torch.testing.assert_close(value[0, :2, :4], torch.tensor([[0.1, 0.3, 0.4, 0.7], [0.6, 0.5, 0.8, 0.8]]))
    ids = open_clip.tokenize(["a red cube", "a blue ball"])
    projected = value[0, :2, 4:-1] @ reference.text_projection  # open_clip's own embedding follows from it
    torch.testing.assert_close(projected, reference.encode_text(ids), atol=1e-4, rtol=1e-4)


def test_from_data(objects):
    cube, ball = ("a red cube", (0.1, 0.3, 0.4, 0.7)), ("a blue ball", (0.6, 0.5, 0.8, 0.8))
    assert not objects.can_read({"caption": ["a red cube"]}) and objects.can_read({"boxes": [[]]})
    value = objects({"boxes": [[cube, ball], [], None, [("", (0, 0, 1, 1))]]})
    torch.testing.assert_close(value[:1], objects.from_text(TEXT))
    assert not value[1:3].any()
    assert value[3, 0].tolist() == [0, 0, 1, 1, *[0] * 128, 1]  # an unknown phrase
    torch.testing.assert_close(objects.from_text("a red cube: 0,0,1,1")[0, 0, 4:], value[0, 0, 4:])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a red cube", "a phrase and its box, with a space after the colon; found 'a red cube'"),
        ("", "found ''"),
        ("a cube: 0,0,1,1;; a ball: 0,0,1,1", "found ''"),
        ("a cube: 0,0,1", "found 'a cube: 0,0,1'"),
        (" : 0,0,1,1", "expected a phrase before the box 0,0,1,1"),
        ("a cube: 0,0,one,1", "expected a box of four numbers from 0 to 1, found '0,0,one,1'"),
        ("a cube: 0,0,1.1,1", "the box of 'a cube' .* found 0,0,1.1,1"),
        ("a cube: -0.1,0,1,1", "found -0.1,0,1,1"),
        ("a cube: 0,0.7,1,0.3", "top below bottom; found 0,0.7,1,0.3"),
        ("a cube: 0.5,0,0.5,1", "left below right"),
        ("a cube: 0,0,nan,1", "found 0,0,nan,1"),
        ("; ".join(["a cube: 0,0,1,1"] * 5), "at most 4 objects, as many as there are slots, found 5"),
    ],
)
def test_what_is_refused(objects, text, says):
    with pytest.raises(ValueError, match=says):
        objects.from_text(text)


def test_more_forms(objects):
    assert torch.equal(objects.from_text("a cube:0,0,1,1;"), objects.from_text(" a cube :  0, 0, 1, 1 "))
    time = objects.from_text("a clock at 10:30: 0,0,1,1")
    assert torch.equal(time[0, 0, :4], torch.tensor([0.0, 0, 1, 1]))
    with pytest.raises(ValueError, match="at least 1 slot"):
        Objects(weights="asset:scenes_clip", slots=0)
    assert objects.unread("a red cube: 0.1,0.3,0.4,0.7; a blorp: 0.6,0.5,0.8,0.8") == ("blorp",)


def test_distance_by_hand(objects):
    value = objects.from_text(TEXT)

    def to(text):
        return objects.distance(value, objects.from_text(text)).item()

    assert objects.distance(value, value).tolist() == [0]
    assert to("a blue ball: 0.6,0.5,0.8,0.8; a red cube: 0.1,0.3,0.4,0.5") == pytest.approx(0.25)  # half of the cube
    assert to("a red cube: 0.1,0.3,0.4,0.7") == pytest.approx(0.5)  # one is missing
    assert to("a blue ball: 0.1,0.3,0.4,0.7; a red cube: 0.6,0.5,0.8,0.8") == 1  # exchanged
    assert to(TEXT + "; a red cube: 0.2,0.3,0.4,0.7") == pytest.approx(1 / 3)  # one too many
    twins = objects.from_text("a cube: 0,0,0.5,1; a cube: 0.5,0,1,1")
    assert objects.distance(twins, twins[:, [1, 0, 2, 3]]).item() == pytest.approx(0)
    none = torch.zeros_like(value)
    assert objects.distance(none, none).tolist() == [0] and objects.distance(value, none).tolist() == [1]


def test_the_preview_draws_boxes_and_phrases(objects):
    value = objects.from_text("a red cube: 0.25,0.5,0.75,0.875")
    told = objects.preview(value)
    assert told.shape == (1, 3, 256, 256) and told.abs().max() <= 1
    dark = (told[0].amin(0) < 0).nonzero()
    (top, left), (bottom, right) = dark.amin(0).tolist(), dark.amax(0).tolist()
    assert max(abs(left - 64), abs(top - 128), abs(right - 191), abs(bottom - 223)) <= 1
    stranger = Objects(weights="asset:scenes_clip", slots=4).preview(value)
    numbered = value.clone()
    numbered[0, 0, 4:-1] = 1
    assert torch.equal(stranger, objects.preview(numbered)) and not torch.equal(stranger, told)
    assert torch.equal(objects.preview(torch.zeros_like(value)), objects.preview(torch.zeros_like(value) + 0.4))
