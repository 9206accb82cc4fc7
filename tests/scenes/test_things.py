"""The judge of things: what it is taught, how it is read, and what counts as right."""

import json

import lightning as L
import pytest
import torch
from torch.nn import functional as F

from composer.__main__ import main
from composer.cascade.cascade import Cascade
from composer.data.datasets import SceneImages
from composer.data.loading import ImageData
from composer.evaluation import counting
from composer.evaluation.adherence import quantise
from composer.evaluation.counting import NUMBERS, scenes_with
from composer.scenes import COLOURS, SHAPES, SIZES, describe, render_batch
from composer.scenes.things import Asked, Judge, Marks, Seen, is_at, list_asked, load_judge, mark, see, tabulate
from composer.training.things import JudgeTraining, ThingImages, compare, soften


def seen(shape="cube", colour="red", size="large", across=0.5, foot=0.75):
    return Seen(shape=shape, colour=colour, size=size, across=across, foot=foot)


def asked(shape="cube", colour="red", size="large", place="in the middle"):
    return Asked(shape=shape, colour=colour, size=size, place=place)


def drawn(things, side=32):
    """Marks that say just what a table of things holds."""
    parts = {"thing": 1, "shape": len(SHAPES), "colour": len(COLOURS), "size": len(SIZES), "where": 3}
    maps = {name: torch.zeros(len(things), n, side, side) for name, n in parts.items()}
    maps["thing"] -= 9
    for row, table in enumerate(things):
        for shape, colour, size, across, down, foot in [entry for entry in table.tolist() if entry[0] >= 0]:
            x, y = int(across * side), int(down * side)
            maps["thing"][row, 0, y, x] = 9
            for name, value in (("shape", shape), ("colour", colour), ("size", size)):
                maps[name][row, int(value), y, x] = 20
            maps["where"][row, :, y, x] = torch.tensor([across * side - x, down * side - y, foot * side - y])
    return Marks(**maps)


@pytest.fixture(scope="module")
def tables():
    return torch.stack([tabulate(describe("val", index)[0]) for index in range(48)])


def test_tables_agree_with_the_rendered_pictures(tables):
    batch = render_batch("val", range(48), 64)
    column = torch.arange(64.0).expand(64, 64) + 0.5
    for table, instances in zip(tables, batch["instances"], strict=True):
        for number, (shape, _, _, across, down, foot) in enumerate(table[table[:, 0] >= 0].tolist()):
            shown = instances[1] == number + 1
            assert (instances[0][shown] == shape + 1).all()
            ends = column[shown].min(), column[shown].max(), column.T[shown].min(), column.T[shown].max()
            assert abs(across - (ends[0] + ends[1]) / 128) < 0.08 and abs(down - (ends[2] + ends[3]) / 128) < 0.08
            assert ends[2] / 64 < down < foot < ends[3] / 64 + 0.06


def test_a_perfect_judge_sees_all_that_was_asked_for(tables):
    class Perfect(torch.nn.Module):
        def forward(self, image):
            return drawn(tables)

    found = see(Perfect(), torch.zeros(48, 3, 64, 64))
    assert all(all(mark(list_asked(table), things).values()) for table, things in zip(tables, found, strict=True))
    assert [len(things) for things in found] == (tables[..., 0] >= 0).sum(1).tolist()
    first, truth = found[0][0], tables[0][0]
    assert abs(first.across - truth[3]) < 1e-5 and abs(first.foot - truth[5]) < 1e-5


def test_the_losses_vanish_for_perfect_marks_alone(tables):
    losses = compare(drawn(tables), tables)
    assert max(losses.values()) < 0.01
    blind = compare(drawn(torch.full_like(tables, -1)), tables)
    chance = {"shape": len(SHAPES), "colour": len(COLOURS), "size": len(SIZES)}
    for name, n in chance.items():
        assert blind[name] == pytest.approx(torch.tensor(float(n)).log().item())
    assert blind["thing"] > 5 and blind["where"] > 0.3


def test_the_focal_loss_is_that_of_the_paper():
    things = torch.full((1, 4, 6), -1.0)
    things[0, 0] = torch.tensor([0, 0, 0, 0.5, 0.5, 0.6])
    marks = drawn(torch.full_like(things, -1), side=8)
    logits = torch.randn(1, 1, 8, 8)
    loss = compare(Marks(**{**vars(marks), "thing": logits}), things)["thing"]
    expected = torch.tensor(0.0)
    for y in range(8):
        for x in range(8):
            p = logits[0, 0, y, x].sigmoid()
            heat = torch.tensor(-((x - 4) ** 2 + (y - 4) ** 2) / 2.0).exp()
            expected -= (1 - p) ** 2 * p.log() if (x, y) == (4, 4) else (1 - heat) ** 4 * p**2 * (1 - p).log()
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(
    ("found", "right"),
    [
        ([seen(), seen("sphere", "blue", across=0.8)], "kinds colours bound sizes places"),
        ([seen(across=0.8), seen("sphere", "blue", across=0.8)], "kinds colours bound sizes"),
        ([seen(size="small"), seen("sphere", "blue", across=0.8)], "kinds colours bound places"),
        ([seen(colour="blue"), seen("sphere", "red", across=0.8)], "kinds colours"),
        ([seen(), seen("sphere", "red", across=0.8)], "kinds"),
        ([seen(), seen("cone", "blue", across=0.8)], "colours"),
        ([seen(), seen("sphere", "blue", across=0.8), seen("cone", "pink")], ""),
        ([seen()], ""),
        ([], ""),
    ],
)
def test_what_is_right(found, right):
    wanted = [asked(), asked("sphere", "blue", place="on the right")]
    assert " ".join(name for name, yes in mark(wanted, found).items() if yes) == right
    assert mark(wanted, found[::-1]) == mark(wanted, found)


def test_places_have_some_tolerance_and_no_more():
    assert is_at(seen(across=0.44, foot=0.74), "on the left") and not is_at(seen(across=0.46, foot=0.74), "on the left")
    assert is_at(seen(foot=0.74), "in front in the middle") and not is_at(seen(foot=0.72), "in front in the middle")
    assert is_at(seen(foot=0.74), "behind in the middle") and not is_at(seen(foot=0.76), "behind in the middle")
    assert not is_at(seen(foot=0.9), "in the middle") and not is_at(seen(foot=0.6), "in the middle")


def test_softened_pictures_keep_their_colours():
    image = torch.rand(2, 3, 1, 1).expand(2, 3, 16, 16) * 2 - 1
    torch.testing.assert_close(soften(image, 0.0, 0.8, torch.Generator().manual_seed(0)), image)
    noisy = soften(image, 0.3, 0.8, torch.Generator().manual_seed(0))
    assert torch.equal(noisy, soften(image, 0.3, 0.8, torch.Generator().manual_seed(0)))
    assert 0 < (noisy - image).std() < 0.31


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_it_learns_and_what_it_saves_sees_the_same(tmp_path):
    scenes = ThingImages(SceneImages("train", 64, 8, seed=1))
    model = JudgeTraining(
        Judge(width=16), learning_rate=5e-3, warmup=5, noise=0.02, blur=0.2, out=str(tmp_path / "judge")
    )
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    quiet |= {"enable_model_summary": False, "num_sanity_val_steps": 0, "inference_mode": False}
    quiet |= {"precision": "bf16-mixed"}
    trainer = L.Trainer(**quiet, check_val_every_n_epoch=None, max_steps=100, val_check_interval=100)
    trainer.fit(model, ImageData(scenes, scenes, {}, batch_size=8))
    assert trainer.callback_metrics["val/bound"] >= 0.75
    assert "100 steps, 800 pictures" in (tmp_path / "judge" / "README.md").read_text()
    image = torch.stack([scenes.row(index, 0)["image"] for index in range(8)])
    kept = see(load_judge(tmp_path / "judge"), image)
    now = see(model.network.eval(), image)
    assert [[(t.shape, t.colour, t.size) for t in row] for row in kept] == [
        [(t.shape, t.colour, t.size) for t in row] for row in now
    ]


def test_weights_of_another_network_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load_judge(tmp_path)


def test_marks_keep_half_the_resolution():
    marks = Judge(width=16).eval()(torch.zeros(2, 3, 64, 64))
    assert marks.thing.shape == (2, 1, 32, 32) and (marks.thing.sigmoid() < 0.1).all()
    assert F.softmax(marks.colour, 1).shape == (2, len(COLOURS), 32, 32)


def test_things_are_counted_beside_true_pictures(monkeypatch, capsys, tmp_path):
    """A judge that knows the true pictures and sees nothing in others: their shares are 1 and 0."""
    known = {}
    for number in NUMBERS:
        for index in scenes_with(number, 2):
            image = quantise(render_batch("val", [index], 64)["image"])
            known[image.numpy().tobytes()] = tabulate(describe("val", index)[0])

    def oracle(judge, images):
        empty = torch.full((4, 6), -1.0)
        return see(lambda _: drawn(torch.stack([known.get(i[None].numpy().tobytes(), empty) for i in images])), images)

    monkeypatch.setattr(counting, "see", oracle)
    monkeypatch.setattr("composer.commands.evaluating.load_judge", lambda folder: Judge(width=16))
    out = tmp_path / "things.json"
    options = ["--count", "2", "--steps", "1", "--until", "base", "--rows", "2", "--json", str(out)]
    assert main(["evaluate", "scenes256", "--things", str(tmp_path), *options]) == 0
    found = json.loads(out.read_text())
    assert found["about"]["captions"] == "complete"
    for number in NUMBERS:
        row = found["things"][str(number)]
        assert set(row["true"].values()) == {1.0} and set(row["drawn"].values()) == {0.0}
    assert "| 3 | 0.00 (1.00) |" in capsys.readouterr().out


def test_scenes_are_chosen_by_their_number_of_things():
    for number in NUMBERS:
        index = scenes_with(number, 5)
        assert len(set(index)) == 5 and {len(describe("val", i)[0].things) for i in index} == {number}


def test_a_model_without_captions_is_refused(saved):
    with pytest.raises(ValueError, match="counting things needs a model that reads captions; this one reads"):
        counting.count_things(Cascade.load(saved), Judge(width=16), 1)
