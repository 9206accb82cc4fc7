"""Prepared shards: their order, their format, and that nothing of the images is lost or mixed up."""

import io
import json
import os
import pickle
import tarfile
from importlib import import_module
from itertools import islice, pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from composer.__main__ import main
from composer.data import ImageFolder, ResumableSampler, ShardFolder
from composer.data.datasets import Crops, ImageDataset, Mixture, permutation
from composer.data.order import Bijection, WindowedOrder
from composer.data.preparing import Preparation, prepare
from composer.data.shards import read_index, read_item, scan_shard, write_shard
from composer.data.sources import open_source
from composer.decomposition import Decomposer, Decomposition
from composer.images.reading import Refused
from decomposers import Intensity, Palette


class Red(Decomposer):
    """The red channel: a map that shows which pixels it was made of."""

    def forward(self, batch):
        return batch["image"][:, :1]

    def preview(self, value):
        return value.expand(-1, 3, -1, -1)

    def distance(self, wanted, got):
        return (wanted - got).abs().flatten(1).mean(1)


def picture(seed, w, h):
    pixels = np.random.default_rng(seed).integers(0, 256, (h // 8, w // 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((w, h), Image.Resampling.BICUBIC)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for i, (w, h) in enumerate([(64, 96), (96, 64), (64, 64), (128, 64), (64, 96), (160, 120), (64, 64)]):
        picture(i, w, h).save(folder / ("more" if i % 2 else "") / f"{i}.png")
        (folder / ("more" if i % 2 else "") / f"{i}.txt").write_text(f"number {i}")
    return folder


def prepared(photos, out, decomposition=None, images=3, **how):
    return prepare(open_source(photos, images), out, Preparation(64, **how), Decomposition(decomposition or {}))


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if not path.name.startswith("manifest")}


@pytest.mark.parametrize("n", [1, 2, 3, 16, 17, 1000])
def test_a_bijection_takes_each_number_to_another(n):
    for key in (0, 1, 1 << 62):
        assert sorted(map(Bijection(n, key), range(n))) == list(range(n))
    if n == 1000:
        moved = [Bijection(n, key)(7) for key in range(500)]
        assert len(set(moved)) > 300  # keys choose different permutations


def test_an_order_of_shards_has_each_item_once_and_few_shards_at_a_time():
    counts = [3, 50, 0, 7, 1, 90, 40, 8]
    shard_of = np.repeat(np.arange(len(counts)), counts)
    order = WindowedOrder(counts, 2, key=5)
    assert sorted(order) == list(range(sum(counts))) and list(order) != sorted(order)
    assert list(order) == list(WindowedOrder(counts, 2, 5)) != list(WindowedOrder(counts, 2, 6))
    for begin, end in pairwise([*order.begin[::2].tolist(), len(order)]):
        assert len(set(shard_of[order[begin:end]].tolist())) <= 2
    with pytest.raises(IndexError, match="expected a place in 0"):
        order[len(order)]


def test_ranks_share_an_order_of_shards_and_it_resumes(photos, tmp_path):
    prepared(photos, tmp_path / "shards")
    data = ShardFolder(str(tmp_path / "shards"), 64, window=2)
    whole = list(islice(ResumableSampler(len(data), 4, order=data.order), 12))
    ranks = [list(islice(ResumableSampler(len(data), 2, 0, r, 2, data.order), 12)) for r in (0, 1)]
    assert whole == [a + b for a, b in zip(*ranks, strict=True)]
    late = ResumableSampler(len(data), 4, order=data.order)
    late.start = 5
    assert list(islice(late, 7)) == whole[5:]
    assert sorted(index for batch in whole[:7] for index, _ in batch) == sorted([*range(7)] * 4)


class Numbered(ImageDataset):
    """Rows in an order of its own."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def row(self, index, seed):
        return {"index": index}

    def order(self, key):
        return WindowedOrder([self.length], 1, key)


def test_a_mixture_of_shards_has_each_row_in_its_share_and_needs_no_memory():
    parts = [Numbered(30), Crops(Numbered(7), 8), Numbered(11)]
    mixture = Mixture(parts, [3.0, 2.0, 1.1])
    begins = [0, *np.cumsum(mixture.counts).tolist()]
    order = mixture.order(5)
    drawn = list(order)
    assert mixture.counts[0] == 30 and len(drawn) == len(mixture) and drawn == list(mixture.order(5))
    assert drawn != list(mixture.order(6))
    for i, (part, count) in enumerate(zip(parts, mixture.counts, strict=True)):
        own = [index - begins[i] for index in drawn if begins[i] <= index < begins[i + 1]]
        assert len(own) == count  # exactly its share of an epoch
        for start in range(0, count, len(part)):  # each round has each row once
            turn = own[start : start + len(part)]
            assert len(set(turn)) == len(turn) and (len(turn) < len(part) or set(turn) == set(range(len(part))))
        places = [place for place, index in enumerate(drawn) if begins[i] <= index < begins[i + 1]]
        steps = np.diff(places)
        assert steps.max() <= len(drawn) / count + len(parts)  # spread over the epoch
    huge = Mixture([Numbered(10**12), Numbered(10**9)], [1.0, 1.0])
    assert len({huge.order(1)[place] for place in range(10**12, 10**12 + 500)}) == 500
    with pytest.raises(IndexError, match="expected a place in 0"):
        order[len(order)]

    class Plain(Numbered):
        order = ImageDataset.order

    assert Mixture([Plain(5), Plain(3)], [1.0, 1.0]).order(2) == permutation(10, 2)  # as ever


def test_images_and_captions_are_those_of_the_folder(photos, tmp_path):
    prepared(photos, tmp_path / "shards")
    folder, shards = ImageFolder(str(photos), 64), ShardFolder(str(tmp_path / "shards"), 64)
    assert len(shards) == len(folder) == 7 and not shards.columns
    for i in range(7):
        wanted, got = folder.row(i, 0), shards.row(i, 0)
        assert got["caption"] == wanted["caption"] == shards.caption(i) == folder.caption(i)
        apart = (got["image"] - wanted["image"]).abs().mean()
        if folder.items[i][0].endswith("/5.png"):  # of 160 x 120: reduced before it is cropped, half a pixel beside
            assert 0 < apart < 0.1
        else:
            assert apart == 0


@pytest.mark.parametrize("crop", ["centre", "random"])
def test_maps_are_cropped_and_mirrored_with_their_image(photos, tmp_path, crop):
    prepared(photos, tmp_path / "shards", {"red": Red(), "palette": Palette()})
    data = ShardFolder(str(tmp_path / "shards"), 64, crop=crop, flip=True)
    assert data.columns == {"red", "palette"}
    seen = set()
    for seed in range(12):
        row = data.row(4, seed)  # of 96 x 64 pixels
        assert row["image"].shape == (3, 64, 64) and row["palette"].shape == (156,)
        torch.testing.assert_close(row["red"], row["image"][:1], atol=1e-2, rtol=0)
        seen.add(row["image"].numpy().tobytes())
    assert len(seen) == 2 if crop == "centre" else len(seen) > 6


@pytest.mark.parametrize("crop", ["centre", "random"])
def test_maps_may_be_kept_larger_than_their_images(photos, tmp_path, crop):
    prepared(photos, tmp_path / "shards", {"red": Red()}, maps=192)
    data = ShardFolder(str(tmp_path / "shards"), 64, crop=crop, flip=True)
    for seed in range(8):
        row = data.row(4, seed)  # of 96 x 64 pixels, so that its map is enlarged
        assert row["red"].shape == (1, 192, 192)
        small = torch.nn.functional.avg_pool2d(row["red"][None], 3)[0]
        assert (small - row["image"][:1]).abs().mean() < 0.1 < (small.flip(-1) - row["image"][:1]).abs().mean()
    with pytest.raises(ValueError, match="prepared with other maps: maps 192 before, 64 now"):
        prepared(photos, tmp_path / "shards", {"red": Red()})
    with pytest.raises(ValueError, match="maps at a multiple of the 64 pixels that are kept, found 100"):
        Preparation(64, maps=100)


def test_representations_are_of_the_source_not_of_the_small_image(photos, tmp_path):
    class Fine(Red):
        def forward(self, batch):
            return batch["image"][:, :1].diff(dim=3, append=batch["image"][:, :1, :, -1:]).abs()

    prepared(photos, tmp_path / "shards", {"fine": Fine()}, source=120)
    sizes = {i: json.loads(m["json"]) for i, m in enumerate(members(tmp_path / "shards"))}
    large = next(i for i, about in sizes.items() if about["width"] == 160)
    fine = ShardFolder(str(tmp_path / "shards"), 64).row(large, 0)
    assert fine["fine"].shape == (1, 64, 64)
    of_small = fine["image"][:1].diff(dim=2).abs().mean()
    assert fine["fine"].mean() < 0.75 * of_small  # neighbours of the source are nearer to each other


def members(folder):
    for path in sorted(folder.glob("*.tar")):
        with path.open("rb") as file:
            for item in read_index(path).items:
                yield read_item(file, item.offset, item.size)


def test_an_interrupted_preparation_goes_on_and_writes_the_same(photos, tmp_path):
    prepared(photos, tmp_path / "whole", {"red": Red()})

    def stop(done):
        raise KeyboardInterrupt

    source, how = open_source(photos, 3), Preparation(64)
    with pytest.raises(KeyboardInterrupt):
        prepare(source, tmp_path / "shards", how, Decomposition({"red": Red()}), progress=stop)
    assert not list((tmp_path / "shards").glob("*.tar"))
    calls = []

    def stop_late(done):
        calls.append(done)
        if sum(calls) > 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(source, tmp_path / "shards", how, Decomposition({"red": Red()}), progress=stop_late)
    with pytest.raises(FileNotFoundError, match="composer prepare FOLDER --out SHARDS writes them"):
        ShardFolder(str(tmp_path / "shards"), 64)
    done = prepared(photos, tmp_path / "shards", {"red": Red()})
    assert done.kept == 1 and done.images == 7
    assert contents(tmp_path / "shards") == contents(tmp_path / "whole")


def test_parts_write_what_one_process_writes(photos, tmp_path):
    prepared(photos, tmp_path / "whole")
    prepared(photos, tmp_path / "shards", part=2, parts=2)
    with pytest.raises(ValueError, match=r"expected 2 finished parts .*composer prepare --part 1/2"):
        ShardFolder(str(tmp_path / "shards"), 64)
    prepared(photos, tmp_path / "shards", part=1, parts=2)
    assert contents(tmp_path / "shards") == contents(tmp_path / "whole")
    assert len(ShardFolder(str(tmp_path / "shards"), 64)) == 7


def test_another_preparation_of_a_folder_is_refused(photos, tmp_path):
    prepared(photos, tmp_path / "shards")
    with pytest.raises(ValueError, match=r"prepared with other jpeg: jpeg None before, 90 now"):
        prepared(photos, tmp_path / "shards", jpeg=90)
    with pytest.raises(ValueError, match="expected images prepared for 32 pixels"):
        ShardFolder(str(tmp_path / "shards"), 32)


def test_what_is_random_is_no_column(photos, tmp_path):
    with pytest.raises(ValueError, match="intensity is random"):
        prepared(photos, tmp_path / "shards", {"intensity": Intensity()})


def test_bad_images_are_listed_and_left_out(photos, tmp_path):
    (photos / "broken.png").write_bytes((photos / "0.png").read_bytes()[:300])
    picture(9, 40, 80).save(photos / "small.png")
    done = prepared(photos, tmp_path / "shards")
    assert sorted((one.file.rpartition("/")[2], one.reason) for one in done.refused) == [
        ("broken.png", "damaged"),
        ("small.png", "too_small"),
    ]
    assert done.images == 7 and len(ShardFolder(str(tmp_path / "shards"), 64)) == 7


def test_shards_of_others_are_read_and_nothing_in_them_runs(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os._exit, (1,)

    (tmp_path / "theirs").mkdir()
    with tarfile.open(tmp_path / "theirs" / "a.tar", "w") as tar:

        def add(name, data):
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))

        for i in range(3):
            file = io.BytesIO()
            picture(i, 96, 64).save(file, "JPEG")
            add(f"x/{i}.jpg", file.getvalue())
            add(f"x/{i}.txt", f"caption {i}".encode())
            add(f"x/{i}.pyd", pickle.dumps(Bomb()))
        link = tarfile.TarInfo("x/9.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        add("../../out.jpg", b"not an image")
    done = prepared(tmp_path / "theirs", tmp_path / "shards")
    assert done.images == 3 and [one.reason for one in done.refused] == ["not_an_image"]
    data = ShardFolder(str(tmp_path / "shards"), 64)
    assert [data.row(i, 0)["caption"] for i in range(3)] == ["caption 0", "caption 1", "caption 2"]


def test_an_index_finds_what_a_scan_finds(tmp_path):
    items = [("a", {"png": b"1" * 700, "txt": b"one"}), ("b/c", {"npy": b"", "depth.npy": b"2" * 512})]
    index = write_shard(tmp_path / "0.tar", items, [])
    with (tmp_path / "0.tar").open("rb") as file:
        assert list(scan_shard(file)) == index.items == read_index(tmp_path / "0.tar").items
        assert [read_item(file, item.offset, item.size) for item in index.items] == [dict(m) for _, m in items]
        with pytest.raises(ValueError, match="expected an item of a tar file at byte 13"):
            read_item(file, 13, 700)


def test_damaged_shards_are_refused_and_replaced(photos, tmp_path):
    prepared(photos, tmp_path / "shards")
    data = ShardFolder(str(tmp_path / "shards"), 64)
    path = tmp_path / "shards" / "000000.tar"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(Refused, match=r"000000\.tar"):
        data.read(0, 0)
    assert data.row(0, 0)["caption"] in {data.caption(i) for i in range(3, 7)}
    (tmp_path / "shards" / "000000.json").write_text("[]")
    with pytest.raises(Refused, match=r"expected \{"):
        ShardFolder(str(tmp_path / "shards"), 64).read(0, 0)


def test_remote_shards_are_copied_as_a_whole_once(photos, tmp_path):
    prepared(photos, tmp_path / "shards", {"red": Red()})
    remote = import_module("fsspec").filesystem("memory")
    remote.put(f"{tmp_path / 'shards'}/", "/shards/", recursive=True)
    with pytest.raises(ValueError, match="expected `cache`"):
        ShardFolder("memory://shards", 64)
    data = ShardFolder("memory://shards", 64, cache=str(tmp_path / "cache"))
    local = ShardFolder(str(tmp_path / "shards"), 64)
    assert data.caption(0) is None and not list((tmp_path / "cache").glob("*.tar"))
    for i in range(7):
        assert torch.equal(data.row(i, 0)["red"], local.row(i, 0)["red"])
    remote.rm("/shards", recursive=True)
    assert torch.equal(data.row(0, 0)["image"], local.row(0, 0)["image"])
    assert contents(tmp_path / "cache").keys() == contents(tmp_path / "shards").keys() - {"settings.json"}


def test_the_command_prepares_and_says_what_it_left_out(photos, tmp_path, capsys):
    picture(9, 40, 80).save(photos / "small.png")
    args = ["prepare", str(photos), "--size", "64", "--out", str(tmp_path / "shards"), "--shard", "3"]
    assert main([*args, "-c", "tiny", "--names", "palette"]) == 0
    found = capsys.readouterr()
    assert "7 images, 1 refused" in found.out
    assert "1 files were refused, and left out: 1 because a side is shorter" in found.err
    assert ShardFolder(str(tmp_path / "shards"), 64).columns == {"palette"}
    fit = ["fit", "-c", "tiny", "--trainer.max_steps", "0", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    fit += ["--data.train", "ShardFolder", f"--data.train.path={tmp_path / 'shards'}", "--data.train.size=64"]
    assert main([*fit, "--data.decomposers.palette.init_args.sigma", "3"]) == 1
    assert "prepared with another palette than this training has: Palette(" in capsys.readouterr().err
    assert main([*fit, "--data.source", "96"]) == 1
    assert "palette of" in (said := capsys.readouterr().err) and "read at 384 pixels, this training reads at 96" in said
    assert main([*args, "--names", "palette"]) == 1
    assert "--names and -c go together" in capsys.readouterr().err
    assert main([*args, "--part", "3/2"]) == 2
    assert "expected PART/PARTS" in capsys.readouterr().err
