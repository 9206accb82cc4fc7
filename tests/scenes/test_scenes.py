import itertools
import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from composer.__main__ import main
from composer.data.datasets import SceneImages
from composer.scenes import (
    NOVEL_PAIRS,
    PHRASES,
    SHAPES,
    WORDS,
    describe,
    find_true_phrases,
    render_batch,
    render_retold,
    swap,
    swaps,
    write_scenes,
    writing,
)
from composer.scenes.batch import to_world
from composer.scenes.captions import RELATIONS, SYNONYMS, place, relations, stand
from composer.scenes.layout import COLOURS, MATERIALS, SIZES, Dice, draw_scene
from composer.scenes.render import World, render
from composer.scenes.retelling import retell
from composer.scenes.solids import SOLIDS
from composer.scenes.swaps import KINDS
from decomposers import Tokens

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def scenes():
    """48 rendered scenes, a few of each split, with their descriptions."""
    batches = [(split, render_batch(split, range(16), 64)) for split in ("train", "val", "novel")]
    truth = [describe(split, index)[0] for split, _ in batches for index in range(16)]
    merged = {key: [row for _, batch in batches for row in batch[key]] for key in batches[0][1]}
    return truth, merged


def test_an_item_depends_on_seed_split_and_index_alone():
    batch = render_batch("train", [7, 3, 11], 32, seed=5)
    for row, index in enumerate([7, 3, 11]):
        alone = render_batch("train", [index], 32, seed=5)
        for key in ("image", "depth", "instances"):
            torch.testing.assert_close(alone[key][0], batch[key][row], atol=1e-5, rtol=0)
        assert (alone["caption"], alone["boxes"]) == ([batch["caption"][row]], [batch["boxes"][row]])
    others = [describe("train", 7, seed=6), describe("val", 7, seed=5), describe("train", 8, seed=5)]
    assert describe("train", 7, seed=5) not in others
    with pytest.raises(ValueError, match="unknown split 'test'; there are train, val, novel"):
        describe("test", 0)


@pytest.fixture(scope="module")
def described():
    """Many descriptions, not rendered: split -> [(scene, caption)]."""
    counts = {"train": 500, "val": 100, "novel": 200}
    return {split: [describe(split, index) for index in range(count)] for split, count in counts.items()}


def test_novel_pairs_are_always_in_novel_and_never_elsewhere(described):
    pairs = {
        split: [{(thing.shape, thing.colour) for thing in scene.things} for scene, _ in scenes]
        for split, scenes in described.items()
    }
    assert not any(row & set(NOVEL_PAIRS) for row in pairs["train"] + pairs["val"])
    assert all(row & set(NOVEL_PAIRS) for row in pairs["novel"])
    assert set(NOVEL_PAIRS) < set.union(*pairs["novel"]) and len(NOVEL_PAIRS) == 6
    assert len(set.union(*pairs["train"])) == len(SHAPES) * len(COLOURS) - 6


def test_captions_hold_all_words_of_the_vocabulary_and_no_others(described):
    captions = [caption for scenes in described.values() for _, caption in scenes]
    used = set(re.sub("[,:]", "", " ".join(captions)).split())
    assert used == set(WORDS) and len(WORDS) < 120
    assert max(len(re.findall(r"\w+|[,:]", caption)) for caption in captions) <= 70
    assert len(set(captions)) > 0.95 * len(captions)


CANONICAL = {synonym: word for word, synonym in SYNONYMS.items()}
NOUN = "|".join([*SHAPES, *(word for word in CANONICAL if CANONICAL[word] in SHAPES)])
MENTION = rf"\b(?:an?|the) ((?:\w+ )??(?:\w+ )??(?:{'|'.join(COLOURS)}) (?:{NOUN}))"
SIZE = r"\b(large|big|small|little)\b"
RELATION = "|".join(sorted((p for phrases in RELATIONS.values() for p in phrases), key=len, reverse=True))


def find(scene, mention):
    """The slots of the things that a mention fits."""
    words = {CANONICAL.get(word, word) for word in mention.split()}
    return [slot for slot, thing in enumerate(scene.things) if words <= set(thing.phrase.split())]


def test_captions_name_every_thing_once_and_say_the_truth_of_the_picture(scenes):
    truth, batch = scenes
    told = 0
    for scene, caption, instances, depth in zip(
        truth, batch["caption"], batch["instances"], batch["depth"], strict=True
    ):
        fresh = re.findall(MENTION.replace("|the", ""), caption)
        assert sorted(slot for mention in fresh for slot in find(scene, mention)) == [*range(len(scene.things))]
        assert f"on {scene.ground}" in caption and re.search(rf"under an? {scene.sky} sky", caption)
        column = torch.arange(64.0).expand(64, 64)
        for first, relation, second in re.findall(rf"{MENTION} ({RELATION}) (?={MENTION})", caption):
            (a,), (b,) = find(scene, first), find(scene, second)
            at, other = instances[1] == a + 1, instances[1] == b + 1
            across = (column[at].mean() - column[other].mean()).item()
            nearer = (depth[0][at].median() - depth[0][other].median()).item()
            kind = next(kind for kind, phrases in RELATIONS.items() if relation in phrases)
            assert {"left": -across, "right": across, "front": nearer, "behind": -nearer}[kind] > 0
            told += 1
        where = re.search(r" (?:on|in) the (left|middle|right)", caption)
        if where and len(scene.things) == 1:
            middle = column[instances[1] == 1].mean().item() / 64
            low, high = {"left": (0, 0.45), "middle": (0.35, 0.65), "right": (0.55, 1)}[where[1]]
            assert low < middle < high
    assert told > 20


PLACE = r"(?:(in front|behind) )?(on the left|in the middle|on the right)"


def test_complete_captions_say_every_thing_with_its_place_and_the_others_stay(scenes):
    truth, batch = scenes
    keys = [(split, index) for split in ("train", "val", "novel") for index in range(16)]
    column, row = torch.arange(64.0).expand(64, 64), torch.arange(64.0)[:, None].expand(64, 64)
    feet: dict[str, list[float]] = {"in front": [], "": [], "behind": []}
    for key, scene, instances in zip(keys, truth, batch["instances"], strict=True):
        same, caption = describe(*key, complete=1.0)
        assert same == scene
        mentions = re.findall(rf"\ban? (\w+ \w+ (?:{'|'.join(COLOURS)}) (?:{NOUN})) {PLACE}", caption)
        assert len(mentions) == len(scene.things)
        for words, depth, across in mentions:
            (slot,) = find(scene, words)
            shown = instances[1] == slot + 1
            middle = (column[shown].min() + column[shown].max() + 1).item() / 128
            low, high = {"left": (0, 0.43), "middle": (0.37, 0.63), "right": (0.57, 1)}[across.split()[-1]]
            assert low < middle < high
            feet[depth].append(row[shown].max().item())
        assert f"on {scene.ground}" in caption and re.search(rf"under an? {scene.sky} sky", caption)
    near, between, far = (np.mean(feet[name]) for name in ("in front", "", "behind"))
    assert near > between + 4 and between > far + 4 and min(map(len, feet.values())) > 15
    halves = [describe("train", index, complete=0.5)[1] for index in range(150)]
    whole, short = ([describe("train", index, complete=c)[1] for index in range(150)] for c in (1.0, 0.0))
    assert all(half in (a, b) for half, a, b in zip(halves, whole, short, strict=True))
    assert 50 < sum(half == a for half, a in zip(halves, whole, strict=True)) < 100
    with pytest.raises(ValueError, match=r"complete is the share of complete captions.*found 50"):
        describe("train", 0, complete=50)


def test_complete_captions_fit_the_shipped_vocabulary_and_length():
    tokens = Tokens(words="asset:scenes_clip/words.txt")
    captions = [describe("train", index, complete=1.0)[1] for index in range(500)]
    assert set(re.sub("[,:]", "", " ".join(captions)).split()) == set(WORDS) - {"an", "of", "to"}
    value = tokens({"caption": captions})
    assert not (value[..., 0] == 1).any() and 50 < value[..., 1].sum(1).max() < 60


def told(scene, caption):
    """What a caption says: the fresh mentions' words, places of things, relations; in any order."""
    plain = " ".join(CANONICAL.get(word, word) for word in re.sub("([,:])", r" \1", caption).split())
    fresh = re.findall(MENTION.replace("|the", ""), plain)
    places = re.findall(rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)}) {PLACE}", plain)
    return sorted(fresh), sorted(places), sorted(re.findall(rf"{MENTION} ({RELATION}) (?={MENTION})", plain))


def holds(scene, caption):
    """Whether a caption is true, by an independent reading of its words."""
    fresh, places, related = told(scene, caption)
    slots = [slot for mention in fresh for slot in find(scene, mention)]
    if sorted(slots) != [*range(len(scene.things))]:
        return False
    by_pair = {(thing.colour, thing.shape): thing for thing in scene.things}
    for colour, shape, row, column in places:
        truth = place(*stand(scene.camera, by_pair[colour, shape]))
        if column not in truth or (row and row not in truth):
            return False
    for first, relation, second in related:
        (a,), (b,) = find(scene, first), find(scene, second)
        kind = next(kind for kind, phrases in RELATIONS.items() if relation in phrases)
        if kind not in relations(scene.camera, scene.things[a], scene.things[b]):
            return False
    return True


def test_swaps_change_what_they_say_alone_and_are_false_though_they_could_be_true():
    made = dict.fromkeys(KINDS, 0)
    for index in range(100):
        scene, caption = describe("val", index, complete=0.5)
        assert holds(scene, caption)
        for kind in KINDS:
            other = swap(Dice(5, index), scene, caption, kind)
            assert other == swap(Dice(5, index), scene, caption, kind)
            if other is None:
                assert kind not in ("colour", "shape")
                continue
            made[kind] += 1
            assert not holds(scene, other)
            (fresh, _, _), (after, _, _) = told(scene, caption), told(scene, other)
            pairs = [tuple(mention.split()[-2:]) for mention in after]
            assert len({*pairs}) == len(pairs) == len(fresh)
            assert not {(shape, colour) for colour, shape in pairs} & set(NOVEL_PAIRS)
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", other)
            words = [re.sub("[,:]", "", text).split() for text in (caption, other)]
            changed = [pair for pair in zip(*words, strict=True) if pair[0] != pair[1]] if kind != "place" else []
            allowed = {"colours": {*COLOURS, "a", "an"}, "colour": {*COLOURS, "a", "an"}}
            assert {word for pair in changed for word in pair} <= allowed.get(kind, {*SHAPES, *SYNONYMS.values()})
            if kind in ("colours", "shapes"):
                column = 0 if kind == "colours" else 1
                before = [mention.split()[-2:] for mention in fresh]
                assert sorted(pair[column] for pair in before) == sorted(pair[column] for pair in pairs)
    assert min(made.values()) > 30


def test_phrases_say_the_truth_of_the_picture(scenes):
    truth, batch = scenes
    middle = torch.arange(64.0).expand(64, 64) + 0.5
    for scene, instances in zip(truth, batch["instances"], strict=True):
        found = [PHRASES[number] for number in find_true_phrases(scene).nonzero().flatten().tolist()]
        things = [thing for thing in scene.things if (thing.shape, thing.colour) not in NOVEL_PAIRS]
        assert len(found) == 3 * len(things)
        for phrase in found:
            words = re.match(rf"an? (?:(large|small) )?(\w+) (\w+)(?: {PLACE})?$", phrase).groups()
            ((slot, thing),) = [(i, t) for i, t in enumerate(scene.things) if (t.colour, t.shape) == words[1:3]]
            assert words[0] in (None, thing.size)
            across = middle[instances[1] == slot + 1].aminmax()
            at = (across.min + across.max).item() / 128
            low, high = {
                None: (0, 1),
                "on the left": (0, 0.43),
                "in the middle": (0.37, 0.63),
                "on the right": (0.57, 1),
            }[words[4]]
            assert low < at < high
    assert not any(f"{colour} {shape}" in phrase for shape, colour in NOVEL_PAIRS for phrase in PHRASES)
    assert len(set(PHRASES)) == 34 * 6 and not re.search(r"\ba [aeiou]|\ban [^aeiou]", " ".join(PHRASES))


def test_as_many_different_swaps_as_asked_for_in_every_split():
    for split, index in itertools.product(("train", "novel"), range(30)):
        scene, caption = describe(split, index)
        found = swaps(Dice(7), scene, caption, 5)
        assert len({*found, caption}) == 6
        assert found == swaps(Dice(7), scene, caption, 5) and found[:2] == swaps(Dice(7), scene, caption, 2)
    scene, caption = describe("train", 0)
    assert swaps(Dice(7), scene, caption, 5) != swaps(Dice(8), scene, caption, 5)


def test_things_are_whole_apart_and_hardly_hidden():
    for split, index in itertools.product(("train", "novel"), range(6)):
        scene = describe(split, index)[0]
        ids = render(to_world([scene], CPU), 64).ids[0]
        for slot, thing in enumerate(scene.things):
            alone = render(to_world([replace(scene, things=(thing,))], CPU), 64).ids[0] > 0
            assert not (alone[[0, -1]].any() or alone[:, [0, -1]].any())
            assert (ids == slot + 1).sum() > 0.5 * alone.sum() and alone.sum() / 4 > 25
        for a, b in itertools.combinations(scene.things, 2):
            reach = SOLIDS[a.shape].width * SIZES[a.size] + SOLIDS[b.shape].width * SIZES[b.size]
            assert (a.x - b.x) ** 2 + (a.z - b.z) ** 2 > reach**2


@pytest.mark.parametrize("shape", SHAPES)
def test_solids_lie_within_their_bounds_and_their_fields_never_overshoot(shape):
    solid = SOLIDS[shape]
    p = torch.rand(3, 200_000) * 3 - 1.5
    inside = p[:, solid.distance(p) <= 0]
    assert (inside.norm(dim=0) <= solid.bound).all() and (inside[[0, 2]].norm(dim=0) <= solid.width).all()
    for measured, stated in ((inside[1].min(), -solid.lift), (inside[1].max(), solid.top - solid.lift)):
        assert stated == pytest.approx(measured.item(), abs=0.12)  # the tip of a cone is met by few points
    assert inside[1].min() >= -solid.lift - 1e-5 and inside[1].max() <= solid.top - solid.lift + 1e-5
    q = torch.rand(3, 200_000) * 3 - 1.5
    assert ((solid.distance(p) - solid.distance(q)).abs() <= (p - q).norm(dim=0) + 1e-5).all()


def test_depth_agrees_with_an_analytic_sphere_on_a_plane():
    height, distance, pitch, zoom, size, place = 3.0, 6.0, 0.25, 0.4, 0.7, (0.8, 0.5)
    one = torch.ones(1)
    world = World(
        height=one * height,
        distance=one * distance,
        pitch=one * pitch,
        zoom=one * zoom,
        light=torch.tensor([[0.0, 1.0, 0.0]]),
        ground=torch.zeros(1, dtype=torch.long),
        sky=torch.zeros(1, dtype=torch.long),
        shift=torch.zeros(1, 3),
        shape=torch.zeros(1, 1, dtype=torch.long),
        size=torch.full((1, 1), size),
        place=torch.tensor([[place]]),
        yaw=torch.zeros(1, 1),
        albedo=torch.ones(1, 1, 3),
        shiny=torch.zeros(1, 1),
    )
    picture = render(world, 48)
    grid = (np.arange(96) + 0.5) / 48 - 1
    x, y = np.meshgrid(grid * zoom, -grid * zoom)
    ray = np.stack([x, y * np.cos(pitch) - np.sin(pitch), np.cos(pitch) + y * np.sin(pitch)])
    to = np.array([place[0], size - height, place[1] + distance])
    a, b, c = (ray**2).sum(0), np.einsum("i,ihw->hw", to, ray), (to**2).sum() - size**2
    root = b**2 - a * c
    sphere = np.where(root > 0, a / (b - np.sqrt(root.clip(0))), 0)
    inverse = np.where(root > 0, sphere, (-ray[1] / height).clip(0))
    assert ((picture.ids[0].numpy() > 0) == (root > 0)).mean() > 0.9995
    # Where a pixel holds one surface alone: its mean inverse depth. Tracing stops 0.002 radii before the surface.
    covered = (root > 0).reshape(48, 2, 48, 2).sum((1, 3))
    pure = ((covered == 0) | (covered == 4)) & (inverse.reshape(48, 2, 48, 2).min((1, 3)) > 0)
    got, expected = picture.inverse[0, 0].numpy(), inverse.reshape(48, 2, 48, 2).mean((1, 3))
    np.testing.assert_allclose(got[pure], expected[pure], atol=2e-4)
    assert (got[inverse.reshape(48, 2, 48, 2).max((1, 3)) == 0] == 0).all()


def test_boxes_hold_their_instances_tightly(scenes):
    truth, batch = scenes
    for scene, instances, boxes in zip(truth, batch["instances"], batch["boxes"], strict=True):
        assert len(boxes) == len(scene.things) == instances[1].max()
        for slot, ((left, upper, right, lower), phrase) in enumerate(boxes):
            thing = scene.things[slot]
            assert set(phrase.split()) == {thing.size, thing.material, thing.colour, thing.shape}
            y, x = (instances[1] == slot + 1).nonzero().T / 64
            assert (instances[0][instances[1] == slot + 1] == 1 + SHAPES.index(thing.shape)).all()
            # An end may differ from the map's by the samples that lost their pixel's vote: most at a cone's tip.
            measured = torch.stack([x.min(), y.min(), x.max() + 1 / 64, y.max() + 1 / 64])
            torch.testing.assert_close(measured, torch.tensor([left, upper, right, lower]), atol=2.01 / 64, rtol=0)
    assert set(MATERIALS) == {"matte", "shiny"}


def test_resolutions_show_the_same_picture():
    small, large = (render_batch("val", range(8), size) for size in (64, 128))
    assert small["image"].shape == (8, 3, 64, 64) and small["image"].abs().max() <= 1
    halved = torch.nn.functional.avg_pool2d(large["image"], 2)
    assert (halved - small["image"]).abs().mean() < 0.02
    assert (large["instances"][:, :, ::2, ::2] == small["instances"]).float().mean() > 0.98
    assert (torch.nn.functional.avg_pool2d(large["depth"], 2) - small["depth"]).abs().mean() < 0.01


def test_other_scenes_of_a_caption_are_such_as_it_tells():
    """What is said stays, relations among it; what is not said changes, and so do places, cameras and light."""
    told = 0
    for index in range(16):
        scene, caption = describe("val", index)
        others = retell("val", index, 6)
        assert len({other.camera for other in [scene, *others]} | {other.azimuth for other in [scene, *others]}) == 14
        said = [{CANONICAL.get(word, word) for word in mention.split()} for mention in re.findall(MENTION, caption)]
        for i, thing in enumerate(scene.things):
            mine = set.union(*(words for words in said if {thing.shape, thing.colour} <= words))
            for kinds, name in ((SIZES, "size"), (MATERIALS, "material")):
                drawn = {getattr(other.things[i], name) for other in others}
                assert drawn == {getattr(thing, name)} if mine & set(kinds) else drawn <= set(kinds)
        for other in others:
            assert [(t.shape, t.colour) for t in other.things] == [(t.shape, t.colour) for t in scene.things]
            assert (other.ground, other.sky) == (scene.ground, scene.sky)
            for first, relation, second in re.findall(rf"{MENTION} ({RELATION}) (?={MENTION})", caption):
                kind = next(kind for kind, phrases in RELATIONS.items() if relation in phrases)
                (a,), (b,) = find(other, first), find(other, second)
                assert kind in relations(other.camera, other.things[a], other.things[b])
                told += 1
    assert told > 20


def test_what_a_caption_leaves_open_is_drawn_evenly():
    """A thing alone whose size is not said is as often large as small, near or far as the world has it."""
    index = next(
        i for i in range(200) if len(describe("val", i)[0].things) == 1 and not re.search(SIZE, describe("val", i)[1])
    )
    sizes = [scene.things[0].size for scene in retell("val", index, 150)]
    fresh = [s for s in (draw_scene(Dice(9, i), novel=False) for i in range(1500)) if len(s.things) == 1]
    expected = sum(scene.things[0].size == "large" for scene in fresh) / len(fresh)
    assert abs(sizes.count("large") / len(sizes) - expected) < 0.15 and 0.3 < expected < 0.7


def test_pictures_of_other_scenes():
    pictures = render_retold("val", [3, 7], 2, 16)
    assert pictures.shape == (2, 2, 3, 16, 16) and (pictures[:, 0] - pictures[:, 1]).abs().amax((1, 2, 3)).min() > 0.1


def test_writes_what_it_renders_and_resumes(tmp_path):
    out = tmp_path / "scenes"
    write_scenes("novel", 5, 32, out, seed=3, workers=0)
    batch = render_batch("novel", range(5), 32, seed=3)
    for row in range(5):
        image = torch.from_numpy(np.array(Image.open(out / f"{row:06d}.png"))).permute(2, 0, 1) / 127.5 - 1
        torch.testing.assert_close(image, batch["image"][row], atol=0.51 / 127.5, rtol=0)
        assert (out / f"{row:06d}.txt").read_text() == batch["caption"][row]
        depth, instances = (np.load(out / f"{row:06d}.{name}.npy") for name in ("depth", "instances"))
        assert (depth.dtype, instances.dtype) == (np.float16, np.uint8)
        np.testing.assert_allclose(depth, batch["depth"][row].numpy(), atol=1e-3)
        np.testing.assert_array_equal(instances, batch["instances"][row].numpy())
        assert json.loads((out / f"{row:06d}.boxes.json").read_text()) == [[[*b], p] for b, p in batch["boxes"][row]]
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.iterdir()}
    (out / "000002.png").unlink()
    write_scenes("novel", 5, 32, out, seed=3, workers=1)
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.iterdir()}
    assert {path for path in before if before[path][0] != after[path][0]} == {*out.glob("000002.*")}
    assert {path: content for path, (_, content) in before.items()} == {path: c for path, (_, c) in after.items()}


def test_complete_captions_are_written_on_request_alone(tmp_path):
    write_scenes("val", 4, 32, tmp_path / "short", workers=0)
    out = ("--out", str(tmp_path / "whole"))
    main(["scenes", "--split", "val", "--count", "4", "--size", "32", "--complete", "1", "--workers", "0", *out])
    shares = [json.loads((tmp_path / name / "scenes.json").read_text())["complete"] for name in ("short", "whole")]
    assert shares == [0, 1]
    scenes = SceneImages("val", 32, 4, complete=1.0)
    for index in range(4):
        name = f"{index:06d}"
        assert (tmp_path / "whole" / f"{name}.txt").read_text() == scenes.row(index, 0)["caption"]
        assert (tmp_path / "short" / f"{name}.txt").read_text() == describe("val", index)[1]
        pictures = [(tmp_path / folder / f"{name}.png").read_bytes() for folder in ("short", "whole")]
        assert pictures[0] == pictures[1]


def test_scenes_that_were_written_are_read_as_they_would_be_rendered(tmp_path):
    write_scenes("train", 3, 32, tmp_path / "scenes", seed=3, workers=0, complete=0.5)
    settings: dict[str, Any] = {"split": "train", "size": 32, "seed": 3, "complete": 0.5, "swaps": 3, "phrases": True}
    read = SceneImages(count=3, **settings, folder=str(tmp_path / "scenes"))
    rendered = SceneImages(count=3, **settings)
    for index in range(3):
        one, other = read.row(index, 11), rendered.row(index, 11)
        assert one.keys() == other.keys()
        assert (one["caption"], one["swaps"]) == (other["caption"], other["swaps"]) and len(set(one["swaps"])) == 3
        for name, error in (("image", 0.51 / 127.5), ("depth", 1e-3), ("instances", 0)):
            torch.testing.assert_close(one[name], other[name], atol=error, rtol=0)
        assert read.row(index, 12)["swaps"] != one["swaps"]
    assert not {"swaps", "phrases"} & SceneImages("train", 32, 1).row(0, 0).keys()
    assert read.caption(0) == read.row(0, 0)["caption"]
    for change, found in (
        ({"seed": 4}, "'seed': 3"),
        ({"complete": 0.0}, "'complete': 0.5"),
        ({"count": 4}, "'count': 3"),
    ):
        with pytest.raises(ValueError, match=rf"expected \d scenes of .*{found}"):
            SceneImages(**{"count": 3, **settings, **change}, folder=str(tmp_path / "scenes"))
    with pytest.raises(FileNotFoundError, match=r"found no scenes\.json there"):
        SceneImages(count=3, **settings, folder=str(tmp_path))
    with pytest.raises(ValueError, match="expected 0 to 5 swaps per caption, found 6"):
        SceneImages("train", 32, 1, swaps=6)


def test_an_interrupted_write_leaves_nothing_half_written(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(writing, "_png", lambda image: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            write_scenes("train", 2, 32, tmp_path, workers=0)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("scenes.json", "000000.txt", "000000.depth.npy", "000000.instances.npy", "000000.boxes.json")
    }
    write_scenes("train", 2, 32, tmp_path, workers=0)
    assert len([*tmp_path.glob("*.png")]) == 2


def test_refuses_to_mix_and_to_be_misused(tmp_path):
    write_scenes("train", 1, 32, tmp_path / "a", workers=0)
    with pytest.raises(ValueError, match=r"'size': 32.*'size': 64.*choose another folder"):
        write_scenes("train", 1, 64, tmp_path / "a", workers=0)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "holiday.jpg").touch()
    with pytest.raises(ValueError, match="contains other files"):
        write_scenes("train", 1, 64, tmp_path / "b", workers=0)
    with pytest.raises(ValueError, match=r"expected a split of train, val, novel.*found 'test', 1, 64, 0 and 0.0"):
        write_scenes("test", 1, 64, tmp_path / "c", workers=0)


def test_objects_are_named_by_what_is_true_of_them(tmp_path):
    write_scenes("train", 8, 32, tmp_path / "scenes", workers=0)
    rendered = SceneImages("train", 32, 8, objects=True)
    written = SceneImages("train", 32, 8, folder=str(tmp_path / "scenes"), objects=True)
    phrases, truth = set(), render_batch("train", range(8), 32)
    for i in range(8):
        scene, _ = describe("train", i)
        assert "boxes" not in SceneImages("train", 32, 8).row(i, 0)
        for seed in range(20):
            row = rendered.row(i, seed)["boxes"]
            assert row == written.row(i, seed)["boxes"]
            assert [box for _, box in row] == [box for box, _ in truth["boxes"][i]]
            for (phrase, _), thing in zip(row, scene.things, strict=True):
                phrases.add(phrase)
                _, *size, colour, shape = [CANONICAL.get(word, word) for word in phrase.split()]
                assert (colour, shape) == (thing.colour, thing.shape) and size in ([], [thing.size])
                assert phrase.startswith("an ") == (phrase.split()[1][0] in "aeiou")
    assert {"large", "big", "box", "cube"} <= {word for phrase in phrases for word in phrase.split()}
