"""T5 from folders as the hub has them, and encodings kept as columns beside the images."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
from torch.nn.functional import cosine_similarity
from transformers import T5Config, T5EncoderModel, T5ForConditionalGeneration, T5TokenizerFast

from composer.__main__ import main
from composer.cascade import stage
from composer.data.columns import write_columns
from composer.data.datasets import collate
from composer.data.loading import ImageData, ImageFolder
from composer.decomposition import Decomposition
from composer.diffusion.guidance import threshold
from composer.scenes import write_scenes
from decomposers import T5, Palette, Sketch

ROOT = Path(__file__).parents[2]
CORPUS = ["a photo of a cat", "an astronaut riding a horse", "a cup of coffee on a wooden table", "a rocket at night"]
CAPTIONS = ["a cat", "an astronaut riding a wooden horse at night on a table, a rocket", ""]
SIZES = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
LENGTH = 12


def write_pieces(path):
    """A SentencePiece model of T5's kind: words, then single letters; 0 pads, 1 ends, 2 is unknown."""
    words = sorted({word for caption in CORPUS for word in caption.split()})
    letters = sorted({letter for word in words for letter in word})
    model = vars(sentencepiece_model_pb2)["ModelProto"]()
    special = [("<pad>", 0.0, 3), ("</s>", 0.0, 3), ("<unk>", 0.0, 2)]
    pieces = [(f"▁{word}", -2.0, 1) for word in words] + [(x, -9.0, 1) for x in ("▁", *letters)]
    for piece, score, kind in special + pieces:
        model.pieces.add(piece=piece, score=score, type=kind)
    model.trainer_spec.model_type = 1  # unigram
    for name, i in (("pad", 0), ("eos", 1), ("unk", 2), ("bos", -1)):
        setattr(model.trainer_spec, f"{name}_id", i)
    path.write_bytes(model.SerializeToString())


def write_folder(folder):
    """The files that google/t5-v1_1-* consist of: the whole T5 as a pickle of tensors, its words in spiece.model."""
    folder.mkdir()
    write_pieces(folder / "spiece.model")
    special = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    extra = {"extra_ids": 100, "additional_special_tokens": [f"<extra_id_{i}>" for i in range(100)]}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "tokenizer_config.json").write_text(json.dumps(special | extra))
    config = T5Config(vocab_size=192, feed_forward_proj="gated-gelu", tie_word_embeddings=False, **SIZES)
    torch.manual_seed(1)
    network = T5ForConditionalGeneration(config)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    config.architectures = ["T5ForConditionalGeneration"]
    config.save_pretrained(folder)
    torch.save(network.state_dict(), folder / "pytorch_model.bin")
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("t5") / "tiny")


@torch.no_grad()
def direct(folder, caption):
    """One caption by transformers and sentencepiece alone, without padding."""
    ids = SentencePieceProcessor(model_file=f"{folder}/spiece.model").encode(caption)[: LENGTH - 1]
    network = T5EncoderModel.from_pretrained(folder, dtype=torch.float32).eval()
    return network(torch.tensor([[*ids, 1]])).last_hidden_state[0]


def test_encodings_are_those_of_transformers_whatever_else_is_in_the_batch(folder):
    t5 = T5(folder, LENGTH, "fp32")
    value = t5({"caption": CAPTIONS})
    assert value.shape == (3, LENGTH, 33) and value.dtype == torch.float32
    for row, caption in zip(value, CAPTIONS[:2], strict=False):
        expected = direct(folder, caption)
        torch.testing.assert_close(row[: len(expected), :32], expected, atol=1e-4, rtol=1e-4)
        assert row[: len(expected), 32].eq(1).all() and row[len(expected) :].eq(0).all()
        torch.testing.assert_close(t5.from_text(caption)[0], row, atol=1e-4, rtol=1e-4)
    assert value[..., -1].sum(1).tolist() == [3, LENGTH, 0]
    assert value[2].eq(0).all() and t5.from_text(" ").eq(0).all()
    pieces = len(SentencePieceProcessor(model_file=f"{folder}/spiece.model").encode(CAPTIONS[1]))
    assert T5(folder, 40, "fp32").from_text(CAPTIONS[1])[0, :, -1].sum() == pieces + 1 > LENGTH  # nothing is cut there


def test_bf16_comes_near_and_is_what_one_gets(folder):
    near, exact = T5(folder, LENGTH), T5(folder, LENGTH, "fp32")
    a, b = near({"caption": CAPTIONS}), exact({"caption": CAPTIONS})
    assert near.precision == "bf16" and a.dtype == torch.float32
    assert not torch.equal(a, b) and torch.equal(a[..., -1], b[..., -1])
    assert cosine_similarity(a[:2, :3, :-1], b[:2, :3, :-1], dim=2).min() > 0.999


def test_the_layouts_of_other_sizes_are_read_too(folder, tmp_path):
    expected = T5(folder, LENGTH, "fp32")({"caption": CAPTIONS})
    sharded, fast = tmp_path / "sharded", tmp_path / "fast"
    network = T5EncoderModel.from_pretrained(folder, dtype=torch.float32)  # the encoder alone, as people share XXL
    network.save_pretrained(sharded, max_shard_size="20KB")
    network.save_pretrained(fast)
    assert len(list(sharded.glob("model-*.safetensors"))) > 1
    for path in (sharded, fast):
        T5TokenizerFast.from_pretrained(folder).save_pretrained(path)  # tokenizer.json, no spiece.model
        assert not (path / "spiece.model").exists()
        torch.testing.assert_close(T5(str(path), LENGTH, "fp32")({"caption": CAPTIONS}), expected)


def test_weights_are_found_on_the_hub(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "composer.storage.pretrained._from_hub", lambda source, *_: asked.append(source) or Path(folder)
    )
    T5()
    assert asked == ["hub:google/t5-v1_1-large@a98b0fcd0b8137ded40cdf0c0cf0ee884e7c9726"]


def test_nothing_of_it_is_saved_or_loaded_before_it_is_needed(folder, monkeypatch):
    monkeypatch.setattr("decomposers.t5._load", lambda *_: pytest.fail("loaded"))
    t5 = T5(folder)
    assert t5.state_dict() == {} and not t5.can_read({"image": torch.zeros(1, 3, 4, 4)})


def test_distance_and_preview(folder):
    t5 = T5(folder, LENGTH, "fp32")
    value = t5({"caption": [*CAPTIONS, "a cat"]})
    assert t5.distance(value, value).abs().max() < 1e-6
    cat, ride = direct(folder, CAPTIONS[0]).mean(0), direct(folder, CAPTIONS[1]).mean(0)
    wanted = 1 - float(cosine_similarity(cat, ride, dim=0))
    assert t5.distance(value[:1], value[1:2]).item() == pytest.approx(wanted, abs=1e-4)
    assert t5.distance(value[:1], value[2:3]).item() == pytest.approx(1)
    shown = t5.preview(value)
    assert shown.shape == (4, 3, 128, 128) and shown.min() >= -1 and shown.max() <= 1
    assert torch.equal(shown[0], shown[3]) and not torch.equal(shown[0], shown[1])


class Harmful:
    def __reduce__(self):
        return print, ("this ran",)


def broken(folder, path, kind):
    for file in ("config.json", "spiece.model", "tokenizer_config.json"):
        (path / file).write_bytes((folder / file).read_bytes())
    state = {key: value.clone() for key, value in torch.load(folder / "pytorch_model.bin").items()}
    name = "encoder.block.0.layer.0.SelfAttention.o.weight"
    if kind == "pickle":
        torch.save(state | {name: Harmful()}, path / "pytorch_model.bin")
    elif kind == "missing":
        torch.save({k: v for k, v in state.items() if k != name}, path / "pytorch_model.bin")
    elif kind == "shape":
        torch.save(state | {name: state[name][:3]}, path / "pytorch_model.bin")
    elif kind == "model":
        (path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    elif kind == "config":
        (path / "config.json").unlink()


@pytest.mark.parametrize(
    ("kind", "error", "says"),
    [
        ("pickle", ValueError, "may run code; use safetensors"),
        ("missing", ValueError, r"1 weights .* are missing or of another shape \(first: encoder.block.0"),
        ("shape", ValueError, r"1 weights .* are missing or of another shape \(first: encoder.block.0"),
        ("weights", OSError, "no file named model.safetensors"),
        ("model", ValueError, "expected a t5 in .*, found bert"),
        ("config", FileNotFoundError, "T5 needs config.json"),
    ],
)
def test_what_is_no_t5_is_refused(folder, tmp_path, capsys, kind, error, says):
    broken(Path(folder), tmp_path, kind)
    with pytest.raises(error, match=says):
        T5(str(tmp_path)).from_text("a cat")
    assert "this ran" not in capsys.readouterr().out


def test_a_caption_has_room_for_a_piece_and_its_end(folder):
    with pytest.raises(ValueError, match="found length=1"):
        T5(folder, 1)
    assert T5(folder, 2).from_text("a cat").shape == (1, 2, 33)


def test_words_that_are_unknown_or_cut_off_are_named(folder):
    t5, text = T5(folder, 6), "a cat, a Ωmega at night"
    assert t5.unread(text) == ("Ωmega", "at", "night")  # five pieces beside the end: a, cat and its comma, a
    assert T5(folder, 40).unread(text) == ("Ωmega",) and T5(folder, 40).unread("a cat at night") == ()


# Columns


@pytest.fixture
def photos(tmp_path):
    """Pictures of odd sizes, one of them without a caption and one that is none."""
    rng = np.random.default_rng(0)
    for i, caption in enumerate(CAPTIONS):
        Image.fromarray(rng.integers(0, 256, (40 + i, 50, 3), dtype=np.uint8)).save(tmp_path / f"{i}.v2.png")
        (tmp_path / f"{i}.v2.txt").write_text(caption)
    (tmp_path / "broken.png").write_text("no image")
    return tmp_path


@pytest.fixture
def config(folder, photos):
    """A training on the pictures; what `cache` has no need of could not be built."""
    pictures = {"path": str(photos), "size": "${let.size}", "captions": "empty", "crop": "random", "flip": True}
    data = {
        "train": made(
            "Mixture",
            weights=[1, 1],
            datasets=[
                made("Crops", size=16, dataset=made("ImageFolder", **pictures)),
                made("SceneImages", split="train", size=32, count=4),
            ],
        ),
        "validation": None,
        "decomposers": {
            "t5": made("T5", weights=folder, length=LENGTH),
            "caption": made("Caption", weights="nowhere"),
            **{name: made(name.capitalize()) for name in ("palette", "sketch", "intensity")},
        },
        "batch_size": 2,
    }
    conditions = {"t5": made("Text", in_dim=32, vector_dim=8, token_dim=8)}
    denoiser = made("Denoiser", network=made("UNet", width=17), noise="Cosine")
    model = made("StageTraining", denoiser=denoiser, conditions=conditions, size=32)
    path = photos / "train.json"
    path.write_text(json.dumps({"let": {"size": 32}, "model": model, "data": data, "trainer": {"devices": 64}}))
    return str(path)


def made(name, **arguments):
    return {"class_path": name, "init_args": arguments}


def cache(config, *names, changes=()):
    return main(["cache", "-c", config, "--names", *names, *changes])


def test_columns_are_what_the_decomposer_gives_and_training_reads_them(config, photos, folder, capsys, monkeypatch):
    assert cache(config, "t5", "palette") == 0
    assert f"{photos}: 3 written, 0 kept, 1 refused" in capsys.readouterr().out
    expected = T5(folder, LENGTH)({"caption": CAPTIONS})
    files = [photos / f"{i}.v2.t5.npy" for i in range(3)]
    assert all(np.load(path).dtype == np.float16 for path in files)
    images = ImageFolder(str(photos), 32, captions="empty", crop="random", flip=True)
    rows = collate([images.row(i, 5) for i in range(3)])
    assert images.columns == {"t5", "palette"} and rows["t5"].dtype == torch.float32
    torch.testing.assert_close(rows["t5"], expected, atol=2**-11 * float(expected.abs().max()), rtol=0)
    whole = ImageFolder(str(photos), 32, captions="empty")
    pictures = torch.stack([whole.row(i, 0)["image"] for i in range(3)])
    torch.testing.assert_close(rows["palette"], Palette()({"image": pictures}), atol=1e-4, rtol=1e-3)
    monkeypatch.setattr("decomposers.t5._load", lambda *_: pytest.fail("loaded although every row has its column"))
    data = ImageData(whole, None, {"t5": T5(folder, LENGTH), "palette": Palette()}, 3)
    assert torch.equal(data.decompose(rows)["representations"]["t5"], rows["t5"])


def test_a_stopped_run_goes_on_and_keeps_what_is_there(config, photos, capsys):
    np.save(photos / "1.v2.t5.npy", np.full((2, 33), 7.0))
    assert cache(config, "t5", "palette", changes=["--rows", "1"]) == 0
    assert f"{photos}: 3 written, 0 kept, 1 refused" in capsys.readouterr().out
    assert np.load(photos / "1.v2.t5.npy").max() == 7 and np.load(photos / "0.v2.t5.npy").shape == (LENGTH, 33)
    before = (photos / "0.v2.t5.npy").stat().st_mtime_ns
    (photos / "2.v2.t5.npy").unlink()
    assert cache(config, "t5") == 0 and "1 written, 2 kept" in capsys.readouterr().out
    assert (photos / "0.v2.t5.npy").stat().st_mtime_ns == before
    assert not list(photos.glob(".*"))  # nothing half written


@pytest.mark.parametrize(
    ("names", "changes", "says"),
    [
        (["t6"], [], "no decomposer named t6; the configuration has caption, intensity, palette, sketch, t5"),
        (["caption"], [], "no column may be named caption"),
        (["intensity"], [], "intensity is random and differs each time"),
        (["t5", "sketch"], [], "sketch are maps, which need images of exactly 32 x 32 pixels; "),
        (["t5"], ["--data.train", "SceneImages", "--data.train.split", "val"], "expected an ImageFolder"),
    ],
)
def test_what_cannot_be_a_column_is_refused(config, photos, capsys, names, changes, says):
    changes = [*changes, "--data.train.size", "32", "--data.train.count", "2"] if changes else []
    assert cache(config, *names, changes=changes) == 1
    assert says in capsys.readouterr().err
    assert not list(photos.glob("*.npy"))


def test_maps_are_columns_of_images_of_their_size(photos, folder):
    for i in range(3):
        Image.fromarray(np.full((32, 32, 3), 80 * i, np.uint8)).save(photos / f"{i}.v2.png")
    images = ImageFolder(str(photos), 32, captions="empty")
    assert write_columns(images, Decomposition({"sketch": Sketch()})) == 3
    read = ImageFolder(str(photos), 32, captions="empty")
    assert read.columns == {"sketch"} and read.row(0, 0)["sketch"].shape == (1, 32, 32)


class Numbers(Palette):
    """Gives the numbers that a test wants on the disk."""

    def __init__(self, *numbers):
        super().__init__()
        self.numbers = torch.tensor(numbers)

    def forward(self, batch):
        return self.numbers.repeat(len(batch["image"]), 1)


@pytest.mark.parametrize(
    ("numbers", "kind"),
    [
        ((0.1, -1.7, 1e-5), np.float16),
        ((2048.0, 3.0), np.float16),
        ((49407.0, 3.0), np.float32),  # an id would become another
        ((7e4, 0.1), np.float32),  # beyond its range
        ((1e-7, 2e-8), np.float32),  # below it
    ],
)
def test_half_the_bytes_where_that_is_exact_enough(photos, numbers, kind):
    images = ImageFolder(str(photos), 32, captions="empty")
    write_columns(images, Decomposition({"numbers": Numbers(*numbers)}))
    stored = np.load(photos / "0.v2.numbers.npy")
    assert stored.dtype == kind
    np.testing.assert_allclose(stored, np.float32(numbers), rtol=0, atol=2**-11 * max(map(abs, numbers)))


def test_a_disk_that_is_too_small_is_noticed_first(photos, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(OSError, match=r"4 rows of palette take about 0 MiB, 0 MiB are free"):
        write_columns(ImageFolder(str(photos), 32, captions="empty"), Decomposition({"palette": Palette()}))
    assert not list(photos.glob("*.npy"))


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have")
def test_the_small_imagen_from_cached_text_to_a_picture(tmp_path, monkeypatch):
    write_scenes("train", 4, 64, tmp_path / "scenes", workers=0)
    own = ["-c", str(ROOT / "configs/scenes_imagen64.yaml"), "--data.train.init_args.path", str(tmp_path / "scenes")]
    assert main(["cache", *own, "--names", "text"]) == 0
    assert "text" in ImageFolder(str(tmp_path / "scenes"), 64).columns
    thresholds = []
    monkeypatch.setattr(stage, "threshold", lambda denoise, p: thresholds.append(p) or threshold(denoise, p))
    small = {"width": 16, "multipliers": "[1, 2]", "blocks": "[0, 1]", "attention": "[2]", "head_dim": 16}
    network = "--model.denoiser.init_args.network.init_args"
    few = {f"{network}.{name}": value for name, value in small.items()}
    few |= {"--trainer.max_steps": 2, "--trainer.val_check_interval": 2, "--trainer.accelerator": "cpu"}
    few |= {"--data.batch_size": 2, "--data.validation.init_args.count": 2, "--grid.count": 1, "--grid.steps": 2}
    few["--trainer.default_root_dir"] = tmp_path / "run"
    assert main(["fit", *own, *(str(word) for option in few.items() for word in option)]) == 0
    assert thresholds == [0.995, 0.995] and (tmp_path / "run/samples/0000002.png").exists()
    model = str(tmp_path / "model")
    assert main(["export", str(tmp_path / "run"), model, "--percentile", "0.995", "--guidance", "3"]) == 0
    sampling = json.loads((tmp_path / "model/config.json").read_text())["stages"][0]["sampling"]
    assert sampling["percentile"] == 0.995 and sampling["guidance"] == 3
    words = [
        "compose",
        "--model",
        model,
        "--text",
        "a red cube on sand",
        "--steps",
        "2",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(words) == 0 and (tmp_path / "out/compose_seed0.png").exists()
