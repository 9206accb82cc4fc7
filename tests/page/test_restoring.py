"""A PNG with its recipe, given to the page, sets the board as it was, which draws the same picture, bit for bit."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from composer.cascade.options import SampleOptions
from composer.diffusion.strength import Strength
from composer.images.sheet import RECIPE_KEY, read_recipe
from composer.tasks.composition import from_words
from composer.tasks.words import read_value
from tests.page.conftest import noise, pixels_of, png

RED = {"condition": "palette", "text": "#aa3311 0.6, #224488 0.4"}
CAPTION = {"condition": "caption", "text": "a red cube on sand"}


def again(page, new, picture, name="out.png", before=()):
    """What a new page, which has none of the pictures but those that are given, makes of a picture's file."""
    fresh = new()
    for pixels, called in before:
        fresh.give(pixels, called)
    return fresh, fresh.give(picture.data, name)


@pytest.fixture
def new(make_page, eight, eight_folder):
    return lambda: make_page(eight, eight_folder)


BOARDS = {
    "words": {"parts": [RED, CAPTION]},
    "a picture": {"parts": [{"condition": "depth", "picture": "A"}, {"condition": "instances", "picture": "A"}]},
    "strengths": {
        "parts": [
            {"condition": "sketch", "picture": "A", "weight": 0.37, "interval": [0.123456789, 0.9]},
            {**RED, "place": {"box": [0.1, 0, 0.55, 1]}},
            {**CAPTION, "place": {"mask": "M"}, "weight": 1.5},
        ]
    },
    "and, not": {
        "parts": [CAPTION, RED],
        "also": [{"words": "a blue ball", "weight": 2}, {"words": "snow", "weight": 2}],
        "never": [{"words": "a cone", "weight": 1}],
    },
    "away": {"parts": [CAPTION, RED], "away": [{"condition": "caption", "text": "a blue ball"}, RED]},
    "options": {
        "parts": [RED],
        "guidance": 3.25,
        "size": [32, 16],
        "stages": ["base:sampler=ancestral,eta=0.3,guidance_interval=0.2-0.8"],
        "seeds": [-7],
    },
    "best of": {"parts": [RED], "best_of": 3, "seeds": [5]},
    "vary": {"task": "vary", "picture": "A", "keep": ["semantics", "sketch"]},
    "edit": {"task": "edit", "picture": "A", "region": {"box": [0.2, 0.2, 0.8, 0.7]}, "keep": ["sketch"], "soften": 3},
    "edit with a mask": {"task": "edit", "picture": "A", "region": {"mask": "M"}, "parts": [CAPTION]},
    "outpaint": {"task": "outpaint", "picture": "A", "by": [0, 0.25, 0.5, 0], "parts": [RED]},
}


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS.keys())
def test_a_restored_board_draws_the_same_picture(page, new, board):
    mask = np.zeros((40, 50), np.uint8)
    mask[10:30, 15:40] = 255
    ids = {'"A"': json.dumps(page.give(noise(0))["id"]), '"M"': json.dumps(page.mask(mask))}
    text = json.dumps({"task": "compose", **board})
    for name, found in ids.items():
        text = text.replace(name, found)
    (drawn,) = page.draw(**json.loads(text))
    fresh, given = again(page, new, drawn, before=[(noise(0), "a.png")] if board.get("picture") else [])
    restored = given["board"]
    assert given["notes"] == [] and "away" in restored
    (redrawn,) = fresh.draw(**restored)
    assert (pixels_of(redrawn.data) == pixels_of(drawn.data)).all()
    assert redrawn.closed == pytest.approx(drawn.closed)


def test_words_stay_words_and_pictures_that_are_gone_come_from_the_recipe(page, new):
    parts = [RED, {"condition": "sketch", "picture": page.give(noise(0), "holiday.png")["id"]}]
    (drawn,) = page.draw(task="compose", parts=parts)
    fresh, given = again(page, new, drawn)
    by = {part["condition"]: part for part in given["board"]["parts"]}
    assert by["palette"] == RED
    assert by["sketch"]["recipe"] == given["id"] and by["sketch"]["source"].endswith(" holiday.png")
    before = next(tile["url"] for tile in page.get("pictures").json()[0]["tiles"] if tile["condition"] == "sketch")
    assert (pixels_of(fresh.get(by["sketch"]["url"]).content) == pixels_of(page.get(before).content)).all()
    written = fresh.post("command", json=given["board"])["command"]
    assert "--sketch=recipe:" in written


def test_an_edit_asks_for_the_picture_that_was_edited(page, new):
    board = {"task": "edit", "region": {"box": [0, 0, 0.5, 1]}, "parts": [RED]}
    (drawn,) = page.draw(**board, picture=page.give(noise(0), "holiday.png")["id"])
    fresh, given = again(page, new, drawn)
    assert given["board"]["picture"] is None and "holiday.png" in given["notes"][0]
    before = fresh.give(noise(0), "another name.png")
    later = fresh.get(f"pictures/{given['id']}/board").json()
    assert later["board"]["picture"] == before["id"] and later["notes"] == []


def test_what_the_board_cannot_say_is_said(new, eight, tmp_path):
    page = new()
    asked = eight.ask(palette="#aa3311")
    soft = torch.full((1, 1, 8, 8), 0.25)
    strong = replace(asked, strengths={"palette": Strength(region=soft)})
    eight.sample(strong, 0, SampleOptions(steps=2)).save(tmp_path / "soft.png")
    noisy = replace(asked, start=eight.invert(torch.zeros(1, 3, 16, 16), {}, 2))
    eight.sample(noisy, 0, SampleOptions(steps=2)).save(tmp_path / "noisy.png")
    other = replace(asked, away=from_words(eight, "palette", "#ffffff").parts)
    eight.sample(other, 0, SampleOptions(steps=2)).save(tmp_path / "away.png")
    for name, word in (("soft", "partly"), ("noisy", "noise"), ("away", "palette")):
        given = page.give((tmp_path / f"{name}.png").read_bytes(), f"{name}.png")
        assert given["board"] is not None and len(given["notes"]) == 1 and word in given["notes"][0]


def damaged(data, tmp_path, change):
    """The same PNG with another recipe."""
    (tmp_path / "x.png").write_bytes(data)
    recipe = read_recipe(tmp_path / "x.png")
    change(recipe)
    info = PngInfo()
    info.add_itxt(RECIPE_KEY, json.dumps(recipe))
    Image.open(tmp_path / "x.png").save(tmp_path / "y.png", pnginfo=info)
    return (tmp_path / "y.png").read_bytes()


def test_a_hostile_recipe_is_a_picture_like_others(page, tmp_path):
    (drawn,) = page.draw(task="compose", parts=[RED])
    changes = {
        "another model": lambda r: r["model"].update(sha256="0" * 64),
        "no tensors": lambda r: r.update(tensors="AAAA"),
        "endless": lambda r: r["stages"]["base"].update(steps=10**9),
        "huge": lambda r: r.update(size=[10**6, 10**6]),
        "nothing": lambda r: r.clear(),
    }
    for name, change in changes.items():
        given = page.give(damaged(drawn.data, tmp_path, change), f"{name}.png")
        assert given["board"] is None and len(given["notes"]) == 1, name
    given = page.give(damaged(drawn.data, tmp_path, lambda r: r["sources"].update(palette="/etc/passwd")), "z.png")
    (part,) = given["board"]["parts"]
    assert part["recipe"] == given["id"] and "text" not in part
    assert page.give(png(noise(0)))["notes"] == []


def test_a_recipes_representation_is_a_value_on_the_command_line(page, eight, tmp_path):
    given = page.give(noise(0))
    (drawn,) = page.draw(task="compose", parts=[{"condition": "sketch", "picture": given["id"]}])
    (tmp_path / "out.png").write_bytes(drawn.data)
    value = read_value(eight, "sketch", f"recipe:{tmp_path / 'out.png'}")
    path = page.server.pictures.picture(given["id"])
    alone = read_value(eight, "sketch", path)
    assert torch.equal(value.parts["sketch"], alone.parts["sketch"]) and value.sources == alone.sources
    assert torch.equal(value.wanted["sketch"], alone.wanted["sketch"])
    strong = read_value(eight, "sketch", f"recipe:{tmp_path / 'out.png'}:0.7@0.2-0.8")
    assert strong.strengths["sketch"] == Strength(0.7, (0.2, 0.8))
    assert torch.equal(strong.parts["sketch"], alone.parts["sketch"])
    with pytest.raises(ValueError, match="has no depth; it has sketch"):
        read_value(eight, "depth", f"recipe:{tmp_path / 'out.png'}")
