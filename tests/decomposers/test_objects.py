"""Objects: phrases as CLIP encodes them, boxes as they are given, and what is refused."""

import open_clip
import pytest
import torch

from composer.scenes import COLOURS, SHAPES, describe, render_batch
from composer.scenes.captions import simplify
from decomposers import Objects, SceneInstances, SceneObjects
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
        ("a red cube", "its box or a point such as 0.3,0.5, with a space after the colon; found 'a red cube'"),
        ("a hand: 0.3,1.1", "the point of 'a hand' as its place from the left and from the top.* found 0.3,1.1"),
        ("a hand: 0,0", "not 0,0, which stands for an unknown place"),
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


def test_boxes_that_overlap_are_doubted(objects):
    half = "a cube: 0,0,0.4,1; a ball: {},0,0.6,1; a cone: 0.7,0,1,1"
    assert objects.doubts(half.format(0.21)) == ()  # not quite half of the cube and of the ball
    (said,) = objects.doubts(half.format(0.19))
    assert said == "the boxes of 'a cube' and 'a ball' overlap by more than half of the smaller one"
    assert objects.doubts("a cube: 0,0,1,1; a ball: 0.4,0.4,0.6,0.6") != ()  # within


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


def test_a_match_is_found_wherever_it_is(objects):
    wanted = objects.from_text(TEXT + "; a green cone: 0,0,0.1,0.1")
    got = objects.from_text("a blue ball: 0.6,0.5,0.8,0.65; a red cube: 0.5,0,1,0.2; a blue ball: 0,0,0.1,0.1")
    found, overlap = objects.match(wanted, got)
    assert found.tolist() == [[True, True, False, False]]
    torch.testing.assert_close(overlap, torch.tensor([[0.0, 0.5, 0.0, 0.0]]))


class Painted(SceneInstances):
    """Finds what a test painted."""

    def forward(self, batch):
        return batch["painted"]


def test_objects_are_detected_in_pictures():
    image, painted = torch.full((2, 3, 20, 40), -1.0), torch.zeros(2, 2, 20, 40)
    for number, (kind, colour, place) in enumerate(
        [("cube", "red", (slice(5, 15), slice(10, 20))), ("torus", "cyan", (slice(0, 4), slice(38, 40)))], 1
    ):
        painted[0, 0][place], painted[0, 1][place] = 1 + SHAPES.index(kind), number
        image[0][(slice(None), *place)] = torch.tensor(COLOURS[colour])[:, None, None] * 2 - 1
    detects = Objects(weights="asset:scenes_clip", slots=3, detector=Painted())
    batch = {"image": image, "painted": painted}
    want = detects.from_text("a red cube: 0.25,0.25,0.5,0.75; a cyan torus: 0.95,0,1,0.2")
    assert detects.can_read(batch)
    torch.testing.assert_close(detects(batch), torch.cat([want, torch.zeros_like(want)]))
    single = Objects(weights="asset:scenes_clip", slots=1, detector=Painted())  # the largest
    torch.testing.assert_close(single(batch)[:1], want[:, :1])
    given = detects({**batch, "boxes": [[], []]})
    assert not given.any()  # what is known of a picture counts


def test_true_pictures_match_their_objects_and_strangers_do_not():
    reader, batch = SceneObjects(), render_batch("val", range(16), 64)
    boxes = [[(phrase, box) for box, phrase in row] for row in batch["boxes"]]
    wanted, got = reader({"boxes": boxes}), reader({"image": batch["image"]})
    real = wanted[..., -1] > 0.5
    found, overlap = reader.match(wanted, got)
    assert found[real].float().mean() > 0.95 and overlap[real].mean() > 0.85
    assert reader.distance(wanted, got).mean() < 0.2
    found, overlap = reader.match(wanted, got.roll(1, 0))
    assert found[real].float().mean() < 0.15 and overlap[real].mean() < 0.03
    assert reader.distance(wanted, got.roll(1, 0)).mean() > 0.95


def test_phrases_are_compared_by_colour_and_shape():
    reader = SceneObjects()
    assert simplify("a big shiny red ball") == "a red sphere" and simplify("an Orange box") == "an orange cube"
    assert simplify("a red and blue ball") == "a red and blue ball" and simplify("a cat") == "a cat"
    for index in range(8):
        for thing in describe("val", index)[0].things:
            assert simplify(thing.phrase).split()[1:] == [thing.colour, thing.shape]
    big, plain = (reader.from_text(f"{words}: 0,0,1,1") for words in ("a big shiny red ball", "a red sphere"))
    assert torch.equal(big, plain)


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


def test_points_are_boxes_without_sides(objects):
    value = objects.from_text("a red cube: 0.1,0.3,0.4,0.7; a hand: 0.3,0.5")
    torch.testing.assert_close(value[0, 1, :4], torch.tensor([0.3, 0.5, 0.3, 0.5]))
    torch.testing.assert_close(
        objects({"boxes": [[("a red cube", (0.1, 0.3, 0.4, 0.7)), ("a hand", (0.3, 0.5))]]}), value
    )
    assert objects.doubts("a red cube: 0.1,0.3,0.4,0.7; a hand: 0.3,0.5; a hand: 0.3,0.5") == ()


def test_a_point_is_kept_where_it_lies_in_a_box(objects):
    wanted = objects.from_text("a cube: 0.3,0.5; a ball: 0.9,0.9; a cone: 0.2,0.2")
    got = objects.from_text("a cube: 0.1,0.3,0.4,0.7; a ball: 0,0,0.8,1; a cone: 0.2,0.2")
    found, overlap = objects.match(wanted, got)
    assert found.tolist() == [[True, True, True, False]] and overlap.tolist() == [[1, 0, 1, 0]]


def test_the_preview_draws_points_as_dots(objects):
    told = objects.preview(objects.from_text("a hand: 0.25,0.75"))
    dark = (told[0].amin(0) < 0)[184:200, 57:72].nonzero()
    assert 40 < len(dark) < 90  # a dot of 9 pixels
