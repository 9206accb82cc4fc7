"""What newcomers type: pictures in any form, words, one seed."""

import numpy as np
import pytest
import torch
from PIL import Image

from composer import Strength
from composer.cascade.options import SampleOptions
from tests.conftest import SIZE


def test_a_picture_may_come_in_any_form(cascade, photos):
    by_file = cascade.decompose(photos[0])
    pillow = Image.open(photos[0])
    for form in (pillow, np.asarray(pillow), [photos[0]], cascade.open(photos[0])[0], cascade.open(photos[0])):
        made = cascade.decompose(form)
        assert made.keys() == by_file.keys()
        for name, value in made.items():
            torch.testing.assert_close(value, by_file[name], atol=1e-5, rtol=0)
    assert len(cascade.decompose(photos)["palette"]) == 2
    assert len(cascade.decompose([pillow, photos[1]])["palette"]) == 2


def test_a_picture_of_pillow_stays_as_it_is(cascade, photos):
    with Image.open(photos[0]) as picture:
        turned = picture.convert("L")
    before = turned.tobytes()
    cascade.decompose(turned)
    assert turned.tobytes() == before


def test_captions_are_taken_along(eight, photos):
    assert torch.equal(
        eight.decompose(photos[0], "a red cube")["caption"], eight.decomposition["caption"].from_text("a red cube")
    )
    assert "caption" not in eight.decompose(photos[0])


@pytest.mark.parametrize(
    ("what", "says"),
    [
        (np.zeros((8, 8, 3)), r"found ndarray of shape \(8, 8, 3\) and float64"),
        (np.zeros((8, 8), np.uint8), "an array"),
        (torch.zeros(3, 8, 8) + 2, r"in \[-1, 1\], found values from 2 to 2"),
        (torch.zeros(1, 8, 8), r"Tensor of shape \(1, 8, 8\)"),
    ],
)
def test_what_is_no_picture_is_refused(cascade, what, says):
    with pytest.raises(ValueError, match=says):
        cascade.decompose(what)


def test_words_are_read_where_they_stand_for_a_condition(eight):
    palette = {"palette": eight.decomposition["palette"].from_text("#aa3311")}
    drawn = eight.sample({"palette": "#aa3311"}, seeds=3, options=SampleOptions(steps=2))
    assert drawn.shape == (1, 3, SIZE, SIZE) and torch.equal(
        drawn, eight.sample(palette, seeds=[3], options=SampleOptions(steps=2))
    )
    with pytest.raises(ValueError, match="reads images"):
        eight.sample({"sketch": "a cube"})


def test_a_model_says_what_it_is(cascade):
    assert repr(cascade) == "Cascade(tiny: base 16 px: palette, intensity, mask)"


def test_a_strength_takes_its_weight_first():
    assert Strength(0.5) == Strength(weight=0.5)
