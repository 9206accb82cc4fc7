import json
import warnings
from unittest.mock import Mock

import lightning as L
import open_clip
import pytest
import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg

from composer.data.datasets import PHOTOGRAPHS, SceneImages
from composer.data.loading import ImageData, ImageDataset
from composer.scenes import PHRASES, WORDS, render_batch
from composer.training.clip import HOTTEST, ClipTraining, contrastive_loss, disturb, phrase_loss, retrieval, tell_apart
from decomposers import Agreement, Semantics, Tokens
from tests.training.small_runs import run_on_two

COLOURS = {"red": (1.0, -1.0, -1.0), "green": (-1.0, 1.0, -1.0), "blue": (-1.0, -1.0, 1.0), "grey": (0.0, 0.0, 0.0)}


class Squares(ImageDataset):
    """Four captions, told apart by colour."""

    def __len__(self):
        return 4

    def row(self, index, seed):
        word, colour = list(COLOURS.items())[index]
        return {"image": torch.tensor(colour)[:, None, None].expand(3, 32, 32).clone(), "caption": f"a {word} square"}


@pytest.fixture
def words(tmp_path):
    (tmp_path / "words.txt").write_text("\n".join([*COLOURS, "a", "square"]))
    return str(tmp_path / "words.txt")


def training(words, **settings):
    vision = CLIPVisionCfg(image_size=32, layers=(1, 1, 1, 1), width=4, head_width=32)
    text = CLIPTextCfg(vocab_size=10, width=32, heads=2, layers=1, context_length=20)
    return ClipTraining(vision, text, words, embed_dim=16, **settings)


@torch.no_grad()
def test_encodings_are_open_clips(words):
    model = training(words).eval()
    captions = ["a red square", "a grey grey grey square", "red", "a a a a a a", "a blue", "grey"]
    batch = {"caption": captions, "image": torch.randn(2, 3, 32, 32)}
    tokens = Tokens(20, words)(batch)
    image, text = model.encode(batch["image"], tokens)
    torch.testing.assert_close(image, model.network.encode_image(batch["image"], normalize=True))
    torch.testing.assert_close(text, model.network.encode_text(tokens[..., 0], normalize=True))


def test_the_loss_is_open_clips():
    image, text = (torch.nn.functional.normalize(torch.randn(6, 8), dim=1) for _ in range(2))
    expected = open_clip.ClipLoss()(image, text, torch.tensor(7.0))
    torch.testing.assert_close(contrastive_loss(image, text, torch.tensor(7.0)), expected)


def test_false_captions_are_further_candidates_for_images_alone():
    image, text, false = (torch.nn.functional.normalize(torch.randn(n, 8), dim=1) for n in (6, 6, 12))
    logits = 7 * image @ torch.cat([text, false]).T
    expected = -logits.log_softmax(1).diagonal().mean() / 2 - logits[:, :6].log_softmax(0).diagonal().mean() / 2
    torch.testing.assert_close(contrastive_loss(image, text, torch.tensor(7.0), false), expected)
    torch.testing.assert_close(
        contrastive_loss(image, text, torch.tensor(7.0), false[:0]), contrastive_loss(image, text, torch.tensor(7.0))
    )


def test_true_phrases_are_found_among_the_false_ones():
    image, text = (torch.nn.functional.normalize(torch.randn(n, 8), dim=1) for n in (3, 5))
    true = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0]]).bool()
    losses = []
    for row, phrase in true.nonzero().tolist():
        candidates = [phrase, *(~true[row]).nonzero().flatten().tolist()]
        losses.append(torch.nn.functional.cross_entropy(7 * image[row] @ text[candidates].T, torch.tensor(0)))
    torch.testing.assert_close(phrase_loss(image, text, true, torch.tensor(7.0)), torch.stack(losses).mean())


def test_a_caption_is_told_apart_when_it_beats_all_its_false_ones():
    image = torch.eye(3)
    false = torch.tensor([[0.5, 0, 0], [0.8, 0, 0], [0.9, 0, 0], [0, 0.95, 0], [0, 0, 0.1], [1, 1, 0.2]])
    assert tell_apart(image, image * 0.9, false).tolist() == [True, False, True]


def test_retrieval_counts_the_nearest():
    image = torch.eye(3)
    text = torch.tensor([[1.0, 0.0, 0.0], [0.9, 0.1, 0.0], [0.0, 0.0, 1.0]])
    assert retrieval(image, text) == pytest.approx((1.0, 2 / 3))


def test_disturbed_images_are_moved_and_noisy_by_what_was_asked():
    image = torch.rand(64, 3, 16, 16)

    def disturbed(shift, noise, rows=slice(None)):
        return disturb(image[rows], shift, noise, [torch.Generator().manual_seed(i) for i in range(64)][rows])

    assert torch.equal(disturbed(0, 0.0), image)
    moved = disturbed(2, 0.0)
    padded = torch.nn.functional.pad(image, [2] * 4, mode="replicate")
    windows = [padded[:, :, y : y + 16, x : x + 16] for y in range(5) for x in range(5)]
    fits = torch.stack([(window == moved).flatten(1).all(1) for window in windows])
    assert fits.any(0).all()
    assert fits.any(1).sum() > 15
    noise = (disturbed(0, 0.3) - image).flatten(1).std(1)
    assert 0.25 < noise.max() < 0.33
    assert noise.min() < 0.03
    torch.testing.assert_close(disturbed(2, 0.3)[40:], disturbed(2, 0.3, slice(40, None)))  # whatever the batch


def test_two_devices_tell_the_images_of_both_apart(words, tmp_path):
    """Two batches of two learn what one of four does: all four captions are candidates of each image."""

    class Named(Bags):
        def row(self, index, seed):
            true = torch.arange(len(PHRASES)) % (index + 2) == 0  # not as many of each image
            return super().row(index, seed) | {"phrases": true}

    def train(batch_size, path, **devices):
        vision = CLIPVisionCfg(image_size=32, layers=1, width=32, head_width=16, patch_size=8)
        text = CLIPTextCfg(vocab_size=10, width=32, heads=2, layers=1, context_length=20)
        torch.manual_seed(0)
        model = ClipTraining(vision, text, words, embed_dim=16, learning_rate=1e-2, warmup=0)
        data = ImageData(Named(), Named(), {"tokens": Tokens(20, words)}, batch_size)
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
        quiet |= {"enable_model_summary": False, "num_sanity_val_steps": 0, "use_distributed_sampler": False}
        trainer = L.Trainer(**quiet, check_val_every_n_epoch=None, max_steps=3, val_check_interval=3, **devices)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers")
            trainer.fit(model, data)
        if trainer.is_global_zero:
            seen = {name: float(value) for name, value in trainer.callback_metrics.items()}
            torch.save([model.state_dict(), seen], path)

    train(4, tmp_path / "one.pt")
    run_on_two(tmp_path / "two", lambda: train(2, tmp_path / "two.pt", devices=2, strategy="ddp"))
    (one, seen), (two, seen2) = (torch.load(tmp_path / f"{name}.pt") for name in ("one", "two"))
    assert seen == pytest.approx(seen2, rel=1e-4) and {"train/phrases", "val/swaps", "val/image_to_text"} <= seen.keys()
    for name, value in one.items():
        if name.endswith("in_proj_bias"):  # attention does not depend on the keys' bias: AdamW steps along rounding
            value, two[name] = (torch.cat([x.chunk(3)[0], x.chunk(3)[2]]) for x in (value, two[name]))
        torch.testing.assert_close(two[name], value, atol=1e-4, rtol=1e-3)


class Bags(ImageDataset):
    """Two squares side by side, whose false caption holds the same words: only their order tells."""

    ORDERS = (("red", "green"), ("green", "red"), ("blue", "red"), ("red", "blue"))

    def __len__(self):
        return 4

    def row(self, index, seed):
        left, right = self.ORDERS[index]
        halves = [torch.tensor(COLOURS[word])[:, None, None].expand(3, 32, 16) for word in (left, right)]
        return {"image": torch.cat(halves, 2), "caption": f"{left} {right}", "swaps": [f"{right} {left}"]}


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_swaps_are_trained_on_and_measured(words):
    model = training(words, learning_rate=3e-3, warmup=5, scale=20.0)
    assert model.network.logit_scale.exp().item() == pytest.approx(20)
    trainer = fit(model, words, Bags(), max_steps=80, val_check_interval=80)
    assert trainer.callback_metrics["val/swaps"] == 1
    asked = {"caption": [caption for order in Bags.ORDERS for caption in (" ".join(order), " ".join(order[::-1]))]}
    images = torch.stack([Bags().row(index, 0)["image"] for index in range(4)])
    with torch.no_grad():
        image, text = model.eval().encode(images.repeat_interleave(2, 0), Tokens(20, words)(asked))
    margin = (image * text).sum(1).view(4, 2).diff(dim=1)
    assert (margin < 0).all() and margin.mean() < -0.2  # a bag of words sees no difference


def fit(model, words, dataset=None, **settings):
    dataset = dataset or Squares()
    data = ImageData(dataset, dataset, {"tokens": Tokens(20, words)}, batch_size=4)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    quiet |= {"enable_model_summary": False, "num_sanity_val_steps": 0, "inference_mode": False}
    trainer = L.Trainer(**quiet, check_val_every_n_epoch=None, **settings)
    trainer.fit(model, data)
    return trainer


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_it_learns_and_what_it_saves_reads_the_same(words, tmp_path):
    out = tmp_path / "clip"
    torch.manual_seed(2)  # after 60 steps, about one beginning in five still takes one image for another
    model = training(words, learning_rate=3e-3, warmup=5, out=str(out))
    trainer = fit(model, words, max_steps=60, val_check_interval=60)
    assert trainer.callback_metrics["val/image_to_text"] == trainer.callback_metrics["val/text_to_image"] == 1
    assert trainer.callback_metrics["train/loss"] < 0.7  # 1.39 is chance
    assert 0 <= model.network.logit_scale <= HOTTEST
    config = json.loads((out / "open_clip_config.json").read_text())
    assert config["preprocess_cfg"]["mean"] == [0.5] * 3
    assert (out / "words.txt").read_text() == (tmp_path / "words.txt").read_text()
    assert "60 steps of 4" in (out / "README.md").read_text()
    assert not list(out.glob("*.partial"))
    batch = {"image": torch.rand(3, 3, 32, 32) * 2 - 1}
    asked = {"caption": ["a red square", "blue", "a giraffe"]}
    with torch.no_grad():
        image, text = model.eval().encode(batch["image"], Tokens(20, words)(asked))
    torch.testing.assert_close(Semantics(weights=str(out))(batch) / 4, image, atol=1e-3, rtol=0)
    torch.testing.assert_close(Agreement(weights=str(out))(asked), text, atol=1e-3, rtol=0)


def test_tokens_of_other_words_are_refused(words, tmp_path):
    (tmp_path / "more.txt").write_text("a\nred\n")
    with pytest.raises(ValueError, match="the tokens have 6 ids, the text tower has vocab_size=10"):
        fit(training(words), str(tmp_path / "more.txt"), max_steps=1)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*does not have many workers")
def test_phrases_are_trained_on():
    """A few scenes are learnt by heart: their true phrases lie nearer than others of the same colours."""
    scenes = SceneImages("train", 32, 4, phrases=True)
    words = "asset:scenes_clip/words.txt"
    vision = CLIPVisionCfg(image_size=32, layers=(1, 1, 1, 1), width=4, head_width=32)
    text = CLIPTextCfg(vocab_size=84, width=32, heads=2, layers=1, context_length=77)
    model = ClipTraining(vision, text, words, embed_dim=16, learning_rate=3e-3, warmup=5, noise=0.0, shift=0)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    quiet |= {"enable_model_summary": False, "num_sanity_val_steps": 0}
    trainer = L.Trainer(**quiet, max_steps=60)
    trainer.fit(model, ImageData(scenes, None, {"tokens": Tokens(words=words)}, batch_size=4))
    assert trainer.callback_metrics["train/phrases"] < 1.5  # 5.3 is chance


def test_the_shipped_words_cover_scenes_and_photographs():
    tokens = Tokens(words="asset:scenes_clip/words.txt")
    value = tokens({"caption": [" ".join(WORDS) + ", : ", *PHOTOGRAPHS.values()]})
    assert not (value[..., 0] == 1).any()


def test_the_shipped_clip_tells_scenes_apart():
    batch = render_batch("val", range(64), 64)
    agreement = Agreement(weights="asset:scenes_clip")
    image, text = agreement({"image": batch["image"]}), agreement({"caption": batch["caption"]})
    assert min(retrieval(image, text)) > 0.9
    assert Semantics(weights="asset:scenes_clip")(batch).shape == (64, 128)


def test_muon_trains_the_image_towers_inner_convolutions(words):
    model = training(words, muon_rate=0.02, learning_rate=1e-3, warmup=1)
    model.trainer = Mock(estimated_stepping_batches=10)
    matrices, rest, muon = model.configure_optimizers()["optimizer"].param_groups
    names = {id(p): name for name, p in model.network.named_parameters()}
    inner = {names[id(p)] for p in muon["params"]}
    assert inner == {n for n, p in model.network.named_parameters() if p.ndim == 4} - {"visual.conv1.weight"}
    assert (matrices["weight_decay"], rest["weight_decay"], muon["initial_lr"]) == (0.1, 0.0, 0.02)
    assert sum(len(group["params"]) for group in (matrices, rest, muon)) == len(names)
    with pytest.raises(ValueError, match="muon_rate > 0"):
        training(words, muon_rate=0)
