"""Measuring in rows, against the same formulas on all images at once, and that nothing is held meanwhile."""

import gc
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from composer.cascade.cascade import Cascade
from composer.cascade.composition import Composition
from composer.cascade.options import SampleOptions
from composer.cascade.parts import Parts
from composer.cascade.start import Kept
from composer.commands.measure import evaluate
from composer.commands.signature import Parser
from composer.evaluation.adherence import Adherence, Evaluation, MaskedScore, Score, quantise
from composer.evaluation.distribution import measure
from composer.evaluation.metrics import Comparison, clip_score, fid, kid
from composer.evaluation.samples import Sample, open_sample, sample_of
from composer.evaluation.tally import Part
from tests.conftest import SIZE
from tests.evaluation.test_metrics import Toy

COUNT, ROWS = 5, 3
CROSS = [(a, b) for a in ("sketch", "depth") for b in ("palette", "semantics", "caption")]


def at_once(cascade, batch, shift):
    """The adherence table from all images together; pictures alone are drawn as many at a time as `ROWS`."""
    parts, wanted = cascade.decompose(batch), cascade.read(batch)
    true = cascade.read({"image": quantise(batch["image"])})
    other, readers = torch.arange(COUNT).roll(shift), dict(cascade.readers.named())
    names = [name for name in readers if name in wanted and name in true]

    def draw(asked, away=None, locked=None):
        done = []
        for start in range(0, COUNT, ROWS):
            span = slice(start, start + ROWS)
            what = Composition(parts=asked.rows(span))
            if away is not None:
                what = replace(what, away=away.rows(span), kept=Kept(*(x[span] for x in locked)))
            seeds = range(5 * 1_000_003 + start, 5 * 1_000_003 + min(start + ROWS, COUNT))
            done.append(cascade.sample(what, seeds, SampleOptions(steps=1)))
        return quantise(torch.cat(done))

    def score(images, names, index):
        got, rows = cascade.read({"image": images}), {}
        for name in names:
            asked, far = wanted[name][index], readers[name].distance
            distance, chance, best = (
                float(far(asked, x).mean()) for x in (got[name], true[name][index.roll(1)], true[name][index])
            )
            rows[name] = {"distance": distance, "chance": chance}
            rows[name] |= {"closed": 1 - distance / chance, "ceiling": 1 - best / chance}
        return rows

    own = torch.arange(COUNT)
    table = {"alone": {n: score(draw(parts.pick(n)), [n], own)[n] for n in names}}
    table["all"] = score(draw(parts.pick(*names)), names, own)
    table["cross"] = {}
    for a, b in CROSS:
        images = draw(parts.pick(a) | parts.pick(b).rows(other.tolist()))
        table["cross"][f"{a}+{b}"] = score(images, [a], own) | score(images, [b], other)
    region = torch.zeros(COUNT, 1, SIZE, SIZE)
    region[..., 4:12, 4:12] = 1
    goal = torch.where(region > 0, batch["image"][other], batch["image"])
    mask = cascade.decompose({"image": batch["image"], "region": region}).pick("mask")
    images = draw(
        mask | cascade.decompose({"image": goal}).pick("intensity"), away=mask, locked=(batch["image"], 1 - region)
    )
    asked, before, got = (cascade.read({"image": x})["intensity"] for x in (goal, batch["image"], images))
    far = readers["intensity"].distance
    table["mask"] = {"outside": 0.0, "inside": 1 - float(far(asked, got).mean() / far(asked, before).mean())}
    return table


def flat(table, path=""):
    return {
        key: value
        for name, below in table.items()
        for key, value in (
            flat(below, f"{path}/{name}") if isinstance(below, dict) else {f"{path}/{name}": below}
        ).items()
    }


def test_in_rows_is_all_at_once(eight):
    evaluation = Evaluation(eight, open_sample("scenes:val", COUNT, SIZE), 5, ROWS, options=SampleOptions(steps=1))
    found = flat(evaluation.measure().json())
    want = flat(at_once(eight, sample_of("scenes:val", COUNT, SIZE), evaluation.shift))
    assert found == pytest.approx(want, abs=2e-4)  # the readers round otherwise in another batch
    assert {"/cross/sketch+caption/caption/closed", "/mask/inside", "/all/semantics/ceiling"} <= set(found)


SCORED = Adherence(
    alone={"palette": Score(0.714, 0.1234, 0.4321, 0.996), "sketch": Score(-0.25, 0.5, 0.4, 1.0)},
    together={"palette": Score(0.5, 0, 1, 1), "sketch": Score(0.6, 0, 1, 1)},
    cross={"sketch+palette": {"sketch": Score(0.1, 0, 1, 1), "palette": Score(0.2, 0, 1, 1)}},
    mask=MaskedScore(0.0, 0.456),
)
SAID = """\
| condition | alone | all together | ceiling | distance alone | chance |
|---|---|---|---|---|---|
| palette | 0.71 | 0.50 | 1.00 | 0.123 | 0.432 |
| sketch | -0.25 | 0.60 | 1.00 | 0.500 | 0.400 |

| pair (one image's + another's) | first | second |
|---|---|---|
| sketch+palette | 0.10 | 0.20 |

Edits within a region: largest change outside 0; intensity closed inside 0.46.
"""


def test_adherence_as_markdown_and_json():
    assert SCORED.markdown() == SAID
    assert Adherence({"palette": SCORED.alone["palette"]}).markdown().splitlines() == [
        *SAID.splitlines()[:2],
        "| palette | 0.71 | - | 1.00 | 0.123 | 0.432 |",
    ]
    found = SCORED.json()
    assert list(found) == ["alone", "all", "cross", "mask"] and found["mask"] == {"outside": 0.0, "inside": 0.456}
    assert found["alone"]["sketch"] == {"closed": -0.25, "distance": 0.5, "chance": 0.4, "ceiling": 1.0}
    assert found["cross"]["sketch+palette"]["palette"]["closed"] == 0.2


def test_a_sample_is_the_same_in_any_rows():
    whole, sample = sample_of("scenes:val", 40, SIZE), open_sample("scenes:val", 40, SIZE)
    some = sample.read([39, 2])
    assert some["caption"] == [whole["caption"][39], whole["caption"][2]]
    for name in ("image", "depth"):
        assert torch.allclose(some[name], whole[name][[39, 2]], atol=1e-4)
    with pytest.raises(ValueError, match="unknown split 'vla'"):
        open_sample("scenes:vla", 4, SIZE).read([0])


def test_captions_of_a_folder_that_has_none(photos, tmp_path):
    assert "caption" not in open_sample(str(tmp_path), 2, SIZE).read([1])
    (tmp_path / "b.txt").write_text("noise")
    assert open_sample(str(tmp_path), 2, SIZE).read([0, 1])["caption"] == ["", "noise"]
    with pytest.raises(ValueError, match="holds 2 images, fewer than the 3 asked for"):
        open_sample(str(tmp_path), 3, SIZE)


SIDE = 20  # of no other image in these tests


def held():
    """How many images are alive, wherever they are held."""
    gc.collect()  # those of an interrupted evaluation hang in its traceback
    return sum(len(x) for x in gc.get_objects() if type(x) is Tensor and x.ndim == 4 and x.shape[1:] == (3, SIDE, SIDE))


def noisy(seeds):
    return torch.stack([torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(s)) for s in seeds]) * 2 - 1


class Draws(Cascade):
    """A stand-in for a model: a picture is noise of its seed, tinted by the colours that its caption names."""

    names, device = ("caption",), torch.device("cpu")

    def __init__(self):
        vars(self)["stages"], self.most = (SimpleNamespace(name="base"),), 0

    def decompose(self, batch):  # type: ignore[override]
        return Parts(caption=Toy()({"caption": batch["caption"]}))

    def sample(self, parts, seeds, options):  # type: ignore[override]
        self.most = max(self.most, held())
        return noisy(seeds) * 0.5 + 0.3 * parts["caption"][:, :, None, None]


WORDS = [f"{'red' if i % 3 else 'green'} {'blue' if i % 5 else ''}" for i in range(200)]


def drawn(cascade, count, rows, metrics):
    sample = Sample(count, lambda index: {"image": noisy(index), "caption": [WORDS[i] for i in index]})
    evaluation = Evaluation(cascade, sample, seed=1, rows=rows)
    return evaluation, measure(metrics, evaluation, lambda images: images[:, :, ::7, 3].flatten(1), Toy())


def test_distributions_in_rows_are_all_at_once():
    evaluation, found = drawn(Draws(), 61, 8, ("fid", "kid", "clip"))
    real, words = noisy(range(61)), WORDS[:61]
    fake = Draws().sample({"caption": Toy()({"caption": words})}, evaluation.seeds_of(range(61)), None)
    features = lambda images: images[:, :, ::7, 3].flatten(1)  # noqa: E731
    assert found["fid"] == pytest.approx(fid(real, fake, features), abs=1e-6) and found["features"] == 9
    assert found["kid"] == pytest.approx(kid(real, fake, features)._asdict(), abs=1e-6)
    other = [words[i] for i in evaluation.others(range(61))]
    pairs = {"score": (fake, words), "true": (real, words), "another": (fake, other)}
    want = {name: float(clip_score(*pair, Toy()).mean()) for name, pair in pairs.items()}
    assert found["clip"] == pytest.approx(want, abs=1e-4) and want["score"] > want["another"] + 1
    assert found["images"] == 61 and found["given"] == ["caption"]


def parted(folder, number=1, parts=1, rows=8, count=61, stop=None):
    sample = Sample(count, lambda index: {"image": noisy(index), "caption": [WORDS[i] for i in index]})
    evaluation, seen = Evaluation(Draws(), sample, seed=1, rows=rows), []

    def progress(drawn):
        seen.append(drawn)
        if len(seen) == stop:
            raise KeyboardInterrupt

    evaluation.progress = progress
    part = Part(number, parts, folder, {"rows": rows})
    features = lambda images: images[:, :, ::7, 3].flatten(1)  # noqa: E731
    return measure(("fid", "kid", "clip"), evaluation, features, Toy(), part)


def test_an_interrupted_evaluation_gives_the_same_figures(tmp_path, monkeypatch):
    monkeypatch.setattr("composer.evaluation.tally.PAUSE", 0)
    whole = parted(None)
    drawn, sample = [], Draws.sample
    monkeypatch.setattr(Draws, "sample", lambda self, *args: drawn.append(len(args[1])) or sample(self, *args))
    for stop in (3, 6):
        with pytest.raises(KeyboardInterrupt):
            parted(tmp_path, stop=stop)
    assert parted(tmp_path) == whole  # to the last bit
    assert sum(drawn) == 61 + 2 * 8  # each interruption lost the batch at hand
    assert parted(tmp_path) == whole and sum(drawn) == 61 + 2 * 8  # of a finished one, nothing is drawn
    with pytest.raises(ValueError, match="is of another evaluation: rows 8 before, 4 now"):
        parted(tmp_path, rows=4)
    (tmp_path / "part-1-of-1.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match="holds no sums of an evaluation, or is damaged"):
        parted(tmp_path)


def test_parts_of_an_evaluation_give_the_figures_of_the_whole(tmp_path):
    whole, found = parted(None), [parted(tmp_path, number, 3) for number in (3, 1, 2)]
    assert found[:2] == [None, None] and found[2] == parted(tmp_path, 3, 3)
    for name in ("fid", "kid", "clip"):
        assert found[2][name] == pytest.approx(whole[name], rel=1e-9, abs=1e-9)
    assert found[2]["images"] == 61 and found[2]["given"] == whole["given"]
    with pytest.raises(ValueError, match="need a folder that all of them see"):
        parted(None, 1, 2)


def test_no_picture_is_held():
    cascade, counts = Draws(), []
    for count in (40, 80):
        cascade.most = 0
        drawn(cascade, count, 8, ("fid", "kid", "clip"))
        counts.append(cascade.most)
    assert 0 < counts[0] == counts[1] <= 5 * 8


def test_adherence_holds_no_picture(cascade, monkeypatch):
    most, sample = [], cascade.sample
    images = Sample(24, lambda index: {"image": noisy(index)})
    monkeypatch.setattr(
        cascade, "sample", lambda what, seeds, _: most.append(held()) or sample(what, seeds, SampleOptions(steps=1))
    )
    Evaluation(cascade, images, rows=4).measure_alone()
    assert len(most) == 2 * 6 and max(most) <= 4 * 5


def test_only_kid_keeps_something_of_each_image():
    for metrics, shape in ((("fid",), (2, 0, 3)), (("fid", "kid"), (2, 50, 3))):
        comparison = Comparison(lambda images: images[:, :, 0, 0], metrics, 50)
        comparison.update(noisy(range(20)), noisy(range(30, 50)))
        assert comparison._kept.shape == shape and comparison._kept.dtype == torch.float32


def test_the_command_takes_a_folder_and_a_part():
    given = Parser.of(evaluate, "evaluate").read(["--metrics", "fid", "--sums", "sums", "--part", "2/3"])
    assert (given["distributions"].sums, given["distributions"].part) == (Path("sums"), (2, 3))
