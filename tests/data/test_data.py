import json
import logging
import os
from itertools import islice

import lightning as L
import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from PIL import Image
from torch import nn

from composer.data.captions import caption_folder
from composer.data.datasets import collate
from composer.data.folder import _column
from composer.data.loading import (
    ImageData,
    ImageDataset,
    ImageFolder,
    Mixture,
    Photographs,
    ResumableSampler,
    SceneImages,
)
from composer.data.refusals import Ledger, summarise, summarise_listed
from composer.decomposition import Decomposer
from composer.images.reading import Reason, Refused
from composer.scenes.writing import write_scenes

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*logging interval")


class Numbers(ImageDataset):
    """Images that show their index and seed; odd rows know their depth."""

    columns = frozenset({"depth"})

    def __init__(self, length=10):
        self.length = length

    def __len__(self):
        return self.length

    def row(self, index, seed):
        row = {"image": torch.full((3, 4, 4), index / self.length), "caption": f"{index} {seed}"}
        return row | ({"depth": torch.full((1, 4, 4), 7.0)} if index % 2 else {})


class Brightness(Decomposer):
    def forward(self, batch):
        return batch["image"].mean(1, keepdim=True)

    def preview(self, value):
        return value.expand(-1, 3, -1, -1)

    def distance(self, wanted, got):
        return (wanted - got).abs().flatten(1).mean(1)


class Blind(Brightness):
    def can_read(self, batch):
        return False


def first(sampler, n):
    return list(islice(sampler, n))


# The sampler


def test_each_epoch_is_a_permutation_and_no_two_are_alike():
    keys = [key for batch in first(ResumableSampler(7, 3, seed=1), 14) for key in batch]
    epochs = [[index for index, _ in keys[i : i + 7]] for i in range(0, 42, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6
    assert len({seed for _, seed in keys}) == 42
    assert keys[0] != next(iter(ResumableSampler(7, 3, seed=2)))[0]


@pytest.mark.parametrize("start", [0, 1, 5, 23])
def test_a_sampler_starts_anywhere(start):
    whole, late = ResumableSampler(7, 3), ResumableSampler(7, 3)
    late.start = start
    assert first(late, 9) == first(whole, start + 9)[start:]


@pytest.mark.parametrize("length", [3, 11, 64])
def test_more_ranks_see_the_same_rows(length):
    one = first(ResumableSampler(length, 8), 9)
    two = [first(ResumableSampler(length, 4, rank=rank, world=2), 9) for rank in (0, 1)]
    assert [a + b for a, b in zip(*two, strict=True)] == one


# Datasets


def test_collate_says_which_rows_know_a_column():
    batch = collate([Numbers()[i, 5] for i in (0, 1, 3)])
    assert batch["known"]["depth"].tolist() == [False, True, True]
    assert batch["depth"].flatten(1).mean(1).tolist() == [0, 7, 7]
    assert batch["caption"] == ["0 5", "1 5", "3 5"] and batch["seed"].tolist() == [5, 5, 5]
    assert collate([Numbers()[i, 5] for i in (1, 3)])["known"] == {}
    assert "depth" not in collate([Numbers()[i, 5] for i in (0, 2)])


def test_a_mixture_keeps_its_weights_and_shows_every_row():
    small, large = Numbers(5), Numbers(60)
    mixture = Mixture([small, large], [1.0, 3.0])
    captions = [mixture.row(i, 0)["caption"] for i in range(len(mixture))]
    assert len(mixture) == 80 and captions[20:] == [f"{i} 0" for i in range(60)]
    assert captions[:20] == [f"{i % 5} 0" for i in range(20)]
    for datasets, weights in (([small], [0.0]), ([small], [1.0, 2.0]), ([], [])):
        with pytest.raises(ValueError, match="one positive weight per dataset"):
            Mixture(datasets, weights)


def test_scenes_are_the_same_in_chunks_and_one_by_one():
    cached, single = SceneImages("val", 32, 40), SceneImages("val", 32, 5000)
    for index in (0, 33):
        a, b = cached[index, 1], single[index, 2]
        assert a["caption"] == b["caption"] and torch.allclose(a["image"], b["image"], atol=1e-4)
        assert a["depth"].shape == (1, 32, 32) and torch.equal(a["instances"], b["instances"])


def test_photographs_depend_on_their_seed_alone():
    photographs = Photographs(32)
    a, b, c = (photographs[0, seed]["image"] for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert all(photographs[i, 0]["image"].std() > 0.02 for i in range(len(photographs)))
    assert Photographs(32, ["coffee.png"])[0, 3]["caption"].startswith("a photograph of a cup of coffee")
    with pytest.raises(ValueError, match=r"found camera\.png"):
        Photographs(32, ["camera.png"])


def image(path, value=0, size=(40, 48)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    for i in range(4):
        image(tmp_path / "deep" / f"image {i}.v2.png", value=i * 50)
        (tmp_path / "deep" / f"image {i}.v2.txt").write_text(f" number {i}\n")
    image(tmp_path / ".hidden.png")
    return tmp_path


def test_a_folder_is_read_with_its_captions(folder):
    images = ImageFolder(str(folder), 32)
    assert [images.row(i, 0)["caption"] for i in range(4)] == [f"number {i}" for i in range(4)]
    assert images.row(2, 0)["image"].shape == (3, 32, 32)
    assert float(images.row(2, 0)["image"].mean()) == pytest.approx(100 / 127.5 - 1)


def test_a_list_of_captions_is_the_list_of_images(folder):
    image(folder / "b.png")
    lines = [
        {"file_name": "b.png", "text": "a b"},
        {"file_name": "deep/image 1.v2.png", "caption": "unused"},
    ]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    images = ImageFolder(f"{folder}/", 32)
    assert [images.row(i, 0)["caption"] for i in range(len(images))] == ["a b", "number 1"]
    for bad in ('{"text": "no name"}', "[]", "{", '{"file_name": "../b.png"}', '{"file_name": 3}'):
        (folder / "metadata.jsonl").write_text(bad)
        with pytest.raises(ValueError, match=r"metadata\.jsonl, line 1: expected"):
            ImageFolder(str(folder), 32)


def test_what_a_folder_lacks_is_said(folder, tmp_path_factory):
    with pytest.raises(FileNotFoundError, match="found no folder"):
        ImageFolder(str(folder / "none"), 32)
    with pytest.raises(FileNotFoundError, match=r"expected images \(.*\.jpg.*\) in .*, found none"):
        ImageFolder(str(tmp_path_factory.mktemp("empty")), 32)
    (folder / "deep" / "image 3.v2.txt").unlink()
    with pytest.raises(ValueError, match=r"each of the 4 images in .*, found none for 1, such as image 3\.v2\.png"):
        ImageFolder(str(folder), 32)
    assert ImageFolder(str(folder), 32, captions="empty").row(3, 0)["caption"] == ""


def test_captions_are_written_where_they_are_missing(folder):
    class Counter:
        def captions(self, image):
            return [f"mean {float(x.mean() + 1) * 127.5:.0f}" for x in image]

    (folder / "deep" / "image 3.v2.txt").unlink()
    (folder / "deep" / "broken.png").write_text("no image")
    assert caption_folder(folder, Counter(), size=32) == 1
    images = ImageFolder(str(folder), 32, captions="empty")
    assert [images.row(i, 0)["caption"] for i in range(1, 5)] == ["number 0", "number 1", "number 2", "mean 150"]


def test_columns_lie_beside_their_images(folder):
    depth = np.arange(32 * 32, dtype=np.float64).reshape(1, 32, 32)
    for i in range(3):
        image(folder / "deep" / f"image {i}.v2.png", size=(32, 32))
    np.save(folder / "deep" / "image 1.v2.depth.npy", depth)
    images = ImageFolder(str(folder), 32)
    assert images.columns == {"depth"}
    assert torch.equal(images.row(1, 0)["depth"], torch.from_numpy(depth).float())
    assert "depth" not in images.row(0, 0)
    for options in ({"crop": "random"}, {"flip": True}):
        with pytest.raises(ValueError, match=r"found maps \(depth\).*crop='centre' and flip=False"):
            ImageFolder(str(folder), 32, **options)
    with pytest.raises(ValueError, match=r"expected .*image 1.* to be 24 x 24, as maps \(depth\).*found 32 x 32"):
        ImageFolder(str(folder), 24).row(1, 0)
    np.save(folder / "deep" / "image 1.v2.depth.npy", np.array([{}]), allow_pickle=True)
    assert images.row(1, 0)["caption"] != "number 1"  # never unpickled; replaced
    np.save(folder / "deep" / "image 1.v2.caption.npy", depth)
    with pytest.raises(ValueError, match="found caption"):
        ImageFolder(str(folder), 32)


def test_columns_that_are_no_maps_go_with_any_crop(folder):
    words, vector = np.random.default_rng(0).normal(size=(2, 5, 9)).astype(np.float16), np.arange(4.0)
    np.save(folder / "deep" / "image 1.v2.words.npy", words[0])
    np.save(folder / "deep" / "image 1.v2.semantics.npy", vector)
    images = ImageFolder(str(folder), 32, crop="random", flip=True)
    assert images.columns == {"words", "semantics"}
    for seed in range(3):
        row = images.row(1, seed)
        assert torch.equal(row["words"], torch.from_numpy(words[0]).float()) and row["image"].shape == (3, 32, 32)
        assert torch.equal(row["semantics"], torch.arange(4.0))
    np.save(folder / "deep" / "image 2.v2.depth.npy", np.zeros((1, 32, 32)))
    with pytest.raises(ValueError, match=r"found maps \(depth\) beside .*Columns that are not maps .* may stay"):
        ImageFolder(str(folder), 32, flip=True)
    (folder / "deep" / "image 2.v2.depth.npy").write_bytes(b"no array")
    assert ImageFolder(str(folder), 32, flip=True).row(2, 0)["caption"] != "number 2"  # refused and replaced


def test_written_scenes_are_read_with_their_truth(tmp_path):
    write_scenes("val", 3, 32, tmp_path / "scenes", workers=0)
    images, scenes = ImageFolder(str(tmp_path / "scenes"), 32), SceneImages("val", 32, 3)
    assert len(images) == 3 and images.columns == scenes.columns
    for i in range(3):
        read, truth = images.row(i, 0), scenes.row(i, 0)
        assert read["caption"] == truth["caption"] and torch.equal(read["instances"], truth["instances"])
        assert torch.allclose(read["image"], truth["image"], atol=1 / 254)
        assert torch.allclose(read["depth"], truth["depth"], atol=1e-3)
        assert [place for _, place in read["boxes"]] == [box for box, _ in scenes._rendered(i)["boxes"]]


def test_a_refused_file_is_replaced_the_same_way_and_listed_once(folder, caplog):
    (folder / "deep" / "image 1.v2.png").write_bytes(b"no image")
    images, others = (ImageFolder(str(folder), 32) for _ in range(2))
    images.list_skipped_in(folder / "skipped.jsonl")
    others.row(2, 9)
    with caplog.at_level(logging.WARNING):
        rows = [images.row(1, seed) for seed in range(99)]
    assert len(caplog.records) == 1 and "1 refused so far" in caplog.text
    assert rows[0]["caption"] == others.row(1, 0)["caption"] != "number 1"
    (line,) = (folder / "skipped.jsonl").read_text().splitlines()
    entry = json.loads(line)
    assert entry["reason"] == "not_an_image" and entry["file"].endswith("image 1.v2.png")


def test_too_many_refused_files_end_the_run(folder, caplog):
    ledger, error = Ledger(), Refused(folder / "x.png", Reason.DAMAGED)
    for i in range(30_000):  # exactly 5%
        ledger.refuse(error) if i % 20 == 0 else ledger.good()
    assert [record.args[1] for record in caplog.records] == [1, 1000]
    with pytest.raises(ValueError, match=r"at most 500 refused files among the last 10,000, found 501; .*x\.png"):
        [ledger.refuse(error) for _ in range(20)]
    for path in (folder / "deep").glob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="64 refused ones in a row"):
        ImageFolder(str(folder), 32).row(0, 0)


def test_small_images_are_refused_unless_they_are_asked_for(folder, caplog):
    image(folder / "deep" / "image 1.v2.png", value=50, size=(24, 31))
    image(folder / "deep" / "image 2.v2.png", value=100, size=(32, 99))
    images = ImageFolder(str(folder), 32)
    assert images.row(2, 0)["caption"] == "number 2" and images.row(1, 0)["caption"] != "number 1"
    assert images.ledger.listed == {folder / "deep" / "image 1.v2.png": Reason.TOO_SMALL}
    assert "31 x 24, expected at least 32" in caplog.text
    for taken in (ImageFolder(str(folder), 32, min_side=24), ImageFolder(str(folder), 48, min_side=0)):
        row = taken.row(1, 0)
        assert row["caption"] == "number 1" and row["image"].shape == (3, taken.size, taken.size)
        assert float(row["image"].mean()) == pytest.approx(50 / 127.5 - 1) and not taken.ledger.listed
    with pytest.raises(ValueError, match=r"64 refused ones in a row; .*least 99\); min_side 0 accepts small images"):
        ImageFolder(str(folder), 32, min_side=99).row(0, 0)


def test_small_images_never_end_the_run(folder):
    ledger = Ledger()
    for i in range(2000):
        ledger.refuse(Refused(folder / f"{i % 9}.png", Reason.TOO_SMALL))
    ledger.refuse(Refused(folder / "x.png", Reason.DAMAGED))
    assert ledger.refused == 2001 and ledger.bad == 1
    says = "10 files were refused, each replaced by another: 9 because a side is shorter than the minimum; "
    says += "1 because it is truncated or damaged; min_side 0 accepts small images and enlarges them"
    assert summarise(ledger.listed.values()) == says


# The data module


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_ends_with_what_was_refused_and_why(folder, tmp_path, workers, capsys):
    image(folder / "deep" / "image 1.v2.png", size=(24, 31))
    (folder / "deep" / "image 2.v2.png").write_bytes(b"no image")
    images = ImageFolder(str(folder), 32)
    trainer(tmp_path, 6).fit(Model(), ImageData(images, images, {"depth": Brightness()}, 4, workers=workers))
    path = tmp_path / "skipped.jsonl"
    said = [line for line in capsys.readouterr().err.splitlines() if str(path) in line]
    assert len(said) == 1 and said[0].startswith("note: 2 files were refused, each replaced by another: 1 because ")
    with path.open("a") as file:
        file.write('{"file": "cut o')  # by a kill
    assert summarise_listed(path).startswith("2 files were refused")


def test_columns_pass_through_and_other_rows_are_extracted():
    data = ImageData(Numbers(), None, {"depth": Brightness(), "grey": Brightness()}, 4)
    batch = data.decompose(collate([Numbers()[i, 0] for i in (1, 2, 3, 4)]))
    assert batch["representations"]["depth"][:, 0, 0, 0].tolist() == pytest.approx([7, 0.2, 7, 0.4])
    assert batch["representations"]["grey"][:, 0, 0, 0].tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert batch["known"] == {}


@pytest.mark.parametrize("decomposers", [{}, {"depth": Blind()}])
def test_rows_that_nothing_can_extract_are_unknown(decomposers):
    batch = ImageData(Numbers(), None, decomposers, 4).decompose(collate([Numbers()[i, 0] for i in (1, 2)]))
    assert batch["representations"]["depth"][:, 0, 0, 0].tolist() == [7, 0]
    assert batch["known"]["depth"].tolist() == [True, False]


class Model(L.LightningModule):
    def __init__(self, conditions=("depth",)):
        super().__init__()
        self.conditions = nn.ModuleDict({name: nn.Linear(1, 1) for name in conditions})
        self.weight = nn.Parameter(torch.zeros(()))
        self.trained, self.validated = [], []

    def training_step(self, batch, batch_idx):
        assert batch["representations"]["depth"].dtype == torch.float32
        self.trained.append(batch["caption"])
        return self.weight * batch["image"].mean()

    def validation_step(self, batch, batch_idx):
        self.validated.append(batch["caption"])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(folder, steps, **options):
    return L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        num_sanity_val_steps=0,
        **options,
    )


def data(workers=0, **options):
    return ImageData(Numbers(), Numbers(5), {"depth": Brightness()}, 4, workers=workers, **options)


@pytest.mark.parametrize(
    ("workers", "options"),
    [
        (0, {}),
        (2, {}),
        (0, {"accumulate_grad_batches": 2}),
        (2, {"accumulate_grad_batches": 2, "limit_train_batches": 4}),
        (0, {"limit_train_batches": 3}),
    ],
)
def test_a_resumed_run_sees_the_batches_of_the_uninterrupted_one(tmp_path, workers, options):
    accumulated = options.get("accumulate_grad_batches", 1)
    whole, before, after = Model(), Model(), Model()
    trainer(tmp_path, 9, **options).fit(whole, data(workers))
    interrupted = trainer(tmp_path, 5, **options)
    interrupted.fit(before, data(workers))
    interrupted.save_checkpoint(tmp_path / "at5.ckpt")
    resumed = data(workers)
    trainer(tmp_path, 9, **options).fit(after, resumed, ckpt_path=tmp_path / "at5.ckpt", weights_only=True)
    assert len(whole.trained) == 9 * accumulated
    assert before.trained + after.trained == whole.trained
    sampler = ResumableSampler(10, 4)
    assert whole.trained == [[f"{i} {seed}" for i, seed in keys] for keys in first(sampler, 9 * accumulated)]
    assert resumed.seconds_waiting > 0 and resumed.seconds_decomposing > 0


def test_validation_is_the_same_every_time_and_leaves_training_alone(tmp_path):
    options = {"val_check_interval": 2, "check_val_every_n_epoch": None}
    with_validation, without = Model(), Model()
    trainer(tmp_path, 4, **options).fit(with_validation, data())
    trainer(tmp_path, 4).fit(without, ImageData(Numbers(), None, {"depth": Brightness()}, 4))
    assert with_validation.trained == without.trained
    once = with_validation.validated[:2]
    assert with_validation.validated == once * 2 and [len(captions) for captions in once] == [4, 1]
    assert not {caption.split()[1] for captions in once for caption in captions} & {
        caption.split()[1] for captions in without.trained for caption in captions
    }


def test_a_condition_that_nothing_serves_is_an_error(tmp_path):
    expected = r"each of the model's conditions \(depth, palete\); the training data has depth, without palete"
    with pytest.raises(ValueError, match=expected):
        trainer(tmp_path, 1).fit(Model(["depth", "palete"]), data())


def test_yaml_names_the_constructors():
    parser = ArgumentParser()
    parser.add_class_arguments(ImageData, "data")
    mixture = {
        "class_path": "composer.data.Mixture",
        "init_args": {
            "datasets": [
                {"class_path": "composer.data.SceneImages", "init_args": {"split": "train", "size": 32, "count": 90}},
                {"class_path": "composer.data.Photographs", "init_args": {"size": 32}},
            ],
            "weights": [9, 1],
        },
    }
    config = parser.parse_object({"data": {"train": mixture, "validation": None, "decomposers": {}, "batch_size": 2}})
    built = parser.instantiate(config).data
    assert isinstance(built.train, Mixture) and built.train.counts == [90, 10]


def test_no_decomposer_gets_into_a_checkpoint(tmp_path):
    weighty = Brightness()
    weighty.layer = nn.Linear(3, 3)
    run = trainer(tmp_path, 1)
    run.fit(Model(), ImageData(Numbers(), None, {"depth": weighty}, 4))
    run.save_checkpoint(tmp_path / "x.ckpt")
    state = torch.load(tmp_path / "x.ckpt", weights_only=True)["state_dict"]
    assert sorted(state) == ["conditions.depth.bias", "conditions.depth.weight", "weight"]
    assert not weighty.layer.weight.requires_grad and not weighty.training


def test_a_column_that_claims_more_than_its_file_holds_is_refused(tmp_path):
    np.save(tmp_path / "a.depth.npy", np.zeros((1, 4, 4), np.float32))
    data = (tmp_path / "a.depth.npy").read_bytes()
    assert _column(str(tmp_path / "a.png"), "depth").shape == (1, 4, 4)
    for claim in (b"(99999, 99999, 99), }", b"(1, 4, 4, {         "):
        damaged = data.replace(b"(1, 4, 4), }" + b" " * (len(claim) - 12), claim)
        assert damaged != data
        (tmp_path / "a.depth.npy").write_bytes(damaged)
        with pytest.raises(Refused, match="damaged"):
            _column(str(tmp_path / "a.png"), "depth")
    (tmp_path / "a.depth.npy").unlink()
    os.mkfifo(tmp_path / "a.depth.npy")
    with pytest.raises(Refused, match="regular file"):
        _column(str(tmp_path / "a.png"), "depth")


def test_a_list_that_lists_nothing_is_said_to_do_so(tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    for text in ("", "\n \n"):
        (tmp_path / "metadata.jsonl").write_text(text)
        with pytest.raises(ValueError, match=r"expected a line for each image in .*metadata.jsonl, found none"):
            ImageFolder(str(tmp_path), 32, captions="empty")


def test_pipes_in_a_folder_are_refused_and_not_waited_for(tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "a.txt")
    folder = ImageFolder(str(tmp_path), 32)
    with pytest.raises(ValueError, match="which is a folder, a pipe or a device"):
        folder.row(0, 0)
    (tmp_path / "a.txt").unlink()
    (tmp_path / "a.txt").write_text("a cube")
    os.mkfifo(tmp_path / "a.depth.npy")
    with pytest.raises(ValueError, match="found 64 refused ones in a row"):
        ImageFolder(str(tmp_path), 32).row(0, 0)
    os.mkfifo(tmp_path / "metadata.jsonl")
    with pytest.raises(ValueError, match="which is a folder, a pipe or a device"):
        ImageFolder(str(tmp_path), 32)
