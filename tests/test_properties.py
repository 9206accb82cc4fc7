"""Grammars, formats and stateless draws, held for whatever hypothesis thinks of: the same cases in every run."""

import string

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as some
from PIL import Image

from composer.cascade.recipe import pack
from composer.data.loading import ResumableSampler
from composer.decomposition import draw
from composer.diffusion.samplers import latents
from composer.images.sheet import read_recipe, save_png
from composer.tasks.editing import open_region, to_region
from composer.tasks.recipe import unpack
from composer.tasks.words import ALONE, STRENGTH
from decomposers import Palette

repeatable = settings(derandomize=True, database=None, deadline=None, max_examples=30)

hexes = some.integers(0, 0xFFFFFF).map("#{:06x}".format)
weights = some.integers(1, 99).map(lambda hundredths: f"{hundredths / 100:g}")
times = some.lists(some.integers(0, 100), min_size=2, max_size=2, unique=True).map(
    lambda ends: tuple(f"{end / 100:g}" for end in sorted(ends))
)
places = some.sampled_from(["mask.png", "a b/left.JPG", "0.1,0.2,0.6,0.9", ".1,.2,.6,.9"])
names = some.text(string.ascii_letters + string.digits + " #,.'é", min_size=1, max_size=20)
seeds = some.integers(0, (1 << 62) - 1)


def written(weight: str | None, ends: tuple[str, str] | None, place: str | None, alone: bool) -> str:
    """How something counts, as people write it; what follows a value begins with a colon or an at."""
    parts = "" if weight is None else weight if alone else f":{weight}"
    parts += "" if ends is None else "@" + "-".join(ends)
    return parts + ("" if place is None else place if alone and not parts else f":{place}")


@given(some.none() | weights, some.none() | times, some.none() | places)
@repeatable
def test_a_strength_is_read_as_it_is_written(weight, ends, place):
    found = ALONE.fullmatch(written(weight, ends, place, alone=True))
    assert found.groups() == (weight, *(ends or (None, None)), place)


@given(names, some.none() | weights, some.none() | times, some.none() | places)
@repeatable
def test_a_strength_behind_a_value_is_parted_from_it(name, weight, ends, place):
    value = f"{name}.jpg"
    found = STRENGTH.fullmatch(value + written(weight, ends, place, alone=False))
    assert found.groups() == (value, weight, *(ends or (None, None)), place)


palette = Palette()


@given(some.dictionaries(hexes, some.integers(1, 99), min_size=1, max_size=6), some.data())
@repeatable
def test_a_palette_in_words_is_its_colours_in_any_order_and_unit(colours, data):
    parts = [f"{colour} {weight}" for colour, weight in colours.items()]
    made = palette.from_text(", ".join(data.draw(some.permutations(parts))).upper())
    torch.testing.assert_close(made, palette.from_colours(colours))
    torch.testing.assert_close(made, palette.from_colours({colour: weight / 7 for colour, weight in colours.items()}))


@given(some.text(string.printable, max_size=20))
@repeatable
def test_other_words_are_no_palette(text):
    assume("#" not in text)
    with pytest.raises(ValueError, match="expected colours and weights like"):
        palette.from_text(text)


@given(some.integers(1, 60), some.integers(1, 60), some.data())
@repeatable
def test_a_box_covers_its_pixels_and_no_other(h, w, data):
    left, top = data.draw(some.integers(0, w - 1)), data.draw(some.integers(0, h - 1))
    right, bottom = data.draw(some.integers(left + 1, w)), data.draw(some.integers(top + 1, h))
    assume(max(right, bottom) > 1)  # else the numbers are shares of the sides
    wanted = torch.zeros(1, 1, h, w)
    wanted[..., top:bottom, left:right] = 1
    assert torch.equal(open_region(f"{left},{top},{right},{bottom}", (h, w)), wanted)
    shares = [left / w, top / h, right / w, bottom / h]
    assert torch.equal(to_region(shares, (h, w)), wanted)


dtypes = some.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
shapes = some.lists(some.integers(0, 4), max_size=3).map(tuple)


@given(some.dictionaries(some.text(string.ascii_lowercase, min_size=1), some.tuples(dtypes, shapes), max_size=4), seeds)
@repeatable
def test_packed_tensors_come_back_bit_for_bit(kinds, seed):
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(shape, generator=generator).mul(50).abs().to(dtype) for name, (dtype, shape) in kinds.items()
    }
    back = unpack(pack(tensors))
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype and torch.equal(back[name], tensor)


unicode = some.text(some.characters(exclude_categories=["Cs"], exclude_characters="\0"))
plain = some.none() | some.booleans() | some.integers() | some.floats(allow_nan=False, allow_infinity=False) | unicode


@given(recipe=some.dictionaries(unicode, some.recursive(plain, some.lists, max_leaves=5)))
@repeatable
def test_a_recipe_comes_back_from_its_png(recipe, tmp_path_factory):
    path = tmp_path_factory.mktemp("recipes") / "a.png"
    save_png(path, Image.new("RGB", (2, 2)), recipe)
    assert read_recipe(path) == recipe


@given(some.lists(seeds, min_size=1, max_size=8), some.integers(0, 1 << 20), some.integers(1, 1 << 62))
@repeatable
def test_a_draw_depends_on_its_seed_and_not_on_its_batch(many, stream, high):
    drawn = draw(torch.tensor(many), stream, high)
    assert drawn.tolist() == [int(draw(torch.tensor([seed]), stream, high)) for seed in many]
    assert ((drawn >= 0) & (drawn < high)).all()
    noise = latents(many, (3, 2, 2))
    assert all(torch.equal(noise[i], latents([seed], (3, 2, 2))[0]) for i, seed in enumerate(many))


def first(sampler: ResumableSampler, batches: int, start: int = 0) -> list[list[tuple[int, int]]]:
    sampler.start = start
    return [keys for keys, _ in zip(sampler, range(batches), strict=False)]


@given(some.integers(1, 12), some.integers(1, 4), some.integers(1, 3), some.integers(0, 1000), some.integers(0, 9))
@repeatable
def test_training_goes_through_permutations_wherever_it_starts_and_however_it_is_cut(length, rows, world, seed, start):
    whole = first(ResumableSampler(length, rows * world, seed), start + 12)
    order = [index for keys in whole for index, _ in keys]
    for at in range(0, len(order) // length * length, length):
        assert sorted(order[at : at + length]) == list(range(length))
    ranks = [first(ResumableSampler(length, rows, seed, rank, world), 12, start) for rank in range(world)]
    assert [[key for keys in parts for key in keys] for parts in zip(*ranks, strict=True)] == whole[start:]
