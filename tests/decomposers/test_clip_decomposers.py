import json
import warnings

import open_clip
import pytest
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from PIL import Image
from safetensors.torch import save_file
from torchvision.transforms.functional import to_pil_image

from composer.data import captions
from composer.decomposition import Decomposition
from composer.storage.pretrained import noting_files
from decomposers import Agreement, Caption, Captioner, Semantics, Tokens

VISION = {"image_size": 32, "layers": 2, "width": 64, "head_width": 64, "patch_size": 8}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}
CAPTIONS = ["a red disc", "an astronaut, riding a horse!"]


def tiny(quick_gelu: bool, embed_dim: int = 48, **text) -> CLIP:
    torch.manual_seed(3)
    text_cfg = CLIPTextCfg(**(TEXT | text))
    model = CLIP(embed_dim=embed_dim, vision_cfg=CLIPVisionCfg(**VISION), text_cfg=text_cfg, quick_gelu=quick_gelu)
    for weight in model.parameters():  # away from the start, so that a GELU's kind shows
        torch.nn.init.normal_(weight, std=0.2)
    return model.eval()


def write_folder(model: CLIP, path, quick_gelu: bool, embed_dim: int = 48, **text):
    path.mkdir()
    config = {"embed_dim": embed_dim, "quick_gelu": quick_gelu, "vision_cfg": VISION, "text_cfg": TEXT | text}
    facts = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
    (path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": facts}))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path / "open_clip_model.safetensors")
    return str(path)


@pytest.fixture(scope="module")
def reference():
    return tiny(quick_gelu=True)


@pytest.fixture(scope="module")
def folder(reference, tmp_path_factory):
    return write_folder(reference, tmp_path_factory.mktemp("clip") / "tiny", quick_gelu=True)


def unit(x):
    return torch.nn.functional.normalize(x, dim=-1)


@torch.no_grad()
def test_semantics_is_open_clips_embedding_at_length_sqrt_d(reference, folder, batch):
    mean, std = torch.tensor([0.4, 0.5, 0.6])[:, None, None], torch.tensor([0.2, 0.3, 0.4])[:, None, None]
    expected = unit(reference.encode_image(((batch["image"] + 1) / 2 - mean) / std))
    value = Semantics(weights=folder)(batch)
    torch.testing.assert_close(value, expected * 48**0.5)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(96, 96), (80, 120), (20, 31)])
def test_images_of_other_sizes_are_read_as_open_clip_reads_them(reference, folder, shape):
    image = torch.randint(0, 256, (1, 3, *shape), generator=torch.Generator().manual_seed(0)).float() / 127.5 - 1
    picture = to_pil_image((image[0] + 1) / 2)
    transform = open_clip.image_transform(32, False, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    expected = unit(reference.encode_image(transform(picture)[None]))
    assert isinstance(picture, Image.Image)
    cosine = (unit(Semantics(weights=folder)({"image": image})) * expected).sum()
    assert cosine > 0.9995  # 8 bit between resizing and encoding there, none here


@torch.no_grad()
def test_caption_is_open_clips_words_and_sentence(reference, folder):
    value = Caption(weights=folder)({"caption": CAPTIONS})
    ids = open_clip.tokenize(CAPTIONS)
    assert value.shape == (2, 78, 65)
    sentence = reference.encode_text(ids)
    torch.testing.assert_close(value[:, 77, :48], sentence)
    assert value[:, 77, 48:64].eq(0).all()  # the sentence is narrower than the words
    words = reference.ln_final(
        reference.transformer(reference.token_embedding(ids) + reference.positional_embedding, reference.attn_mask)
    )
    for row, length in enumerate(ids.argmax(1) + 1):
        torch.testing.assert_close(value[row, :length, :64], words[row, :length])
        assert value[row, length:77].eq(0).all()
        assert value[row, :, 64].tolist() == [1.0] * length + [0.0] * (77 - length) + [1.0]


@torch.no_grad()
def test_agreement_reads_the_caption_where_there_is_one(reference, folder, batch):
    agreement = Agreement(weights=folder)
    images = agreement({"image": batch["image"]})
    captions = agreement({"caption": CAPTIONS})
    torch.testing.assert_close(captions, unit(reference.encode_text(open_clip.tokenize(CAPTIONS))))
    torch.testing.assert_close(agreement.from_text(CAPTIONS[1]), captions[1:])
    torch.testing.assert_close(images * 48**0.5, Semantics(weights=folder)(batch))
    mixed = agreement({"image": batch["image"], "caption": [CAPTIONS[0], ""]})
    torch.testing.assert_close(mixed, torch.stack([captions[0], images[1]]))
    torch.testing.assert_close(agreement.distance(captions, images), 1 - (captions * images).sum(1))


@torch.no_grad()
def test_rows_are_independent_and_an_empty_caption_is_nothing(folder, batch):
    mixed = batch | {"caption": ["a red disc", ""]}
    both = Decomposition({n: d(weights=folder) for n, d in (("c", Caption), ("s", Semantics), ("a", Agreement))})
    for name, value in both(mixed).items():
        for row in range(2):
            one = {"image": batch["image"][row : row + 1], "caption": mixed["caption"][row : row + 1]}
            torch.testing.assert_close(both[name](one)[0], value[row])
    assert both["c"](mixed)[1].eq(0).all()
    assert Tokens()(mixed)[1].eq(0).all()


def test_autocast_around_changes_nothing_and_no_gradient_is_kept(folder, batch):
    semantics = Semantics(weights=folder)
    expected = semantics(batch)
    image = batch["image"].clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = semantics({"image": image})
    assert torch.equal(found, expected)
    assert not found.requires_grad


def openai_state(model: CLIP):
    """As OpenAI ships it: half precision where it matters, and three facts beside the weights."""
    facts = {"input_resolution": 32, "context_length": 77, "vocab_size": 49408}
    return {k: v.half() for k, v in model.state_dict().items()} | {k: torch.tensor(v) for k, v in facts.items()}


class Node(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def write_torchscript(state, path):
    root = Node()
    for name, value in state.items():
        *parents, leaf = name.split(".")
        module: torch.nn.Module = root
        for parent in parents:
            if parent not in module._modules:
                module.add_module(parent, Node())
            module = module._modules[parent]
        module.register_buffer(leaf, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, yet the format of these files
        torch.jit.trace(root, torch.zeros(1)).save(str(path))


@torch.no_grad()
@pytest.mark.parametrize("layout", ["archive", "tensors"])
def test_openais_files_get_the_quick_gelu(layout, tmp_path, reference):
    state = openai_state(reference)
    path = tmp_path / "ViT-tiny.pt"
    if layout == "archive":
        write_torchscript(state, path)
    else:
        torch.save(state, path)
    value = Caption(model="ViT-L-14", weights=str(path))({"caption": CAPTIONS})[:, 77, :48]
    ids = open_clip.tokenize(CAPTIONS)
    torch.testing.assert_close(value, reference.encode_text(ids), atol=0.05, rtol=0.02)  # halves
    other = tiny(quick_gelu=False)
    assert (value - reference.encode_text(ids)).norm() < 0.1 * (value - other.encode_text(ids)).norm()


@torch.no_grad()
def test_a_file_for_a_named_architecture(tmp_path, reference):
    config = {"embed_dim": 48, "quick_gelu": True, "vision_cfg": VISION, "text_cfg": TEXT}
    (tmp_path / "tiny-test-quickgelu.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "tiny-test-quickgelu.json")
    torch.save(reference.state_dict(), tmp_path / "tiny.pt")
    value = Agreement("tiny-test-quickgelu", str(tmp_path / "tiny.pt"))({"caption": CAPTIONS})
    torch.testing.assert_close(value, unit(reference.encode_text(open_clip.tokenize(CAPTIONS))))
    torch.save({"a": torch.nn.Linear(1, 1)}, tmp_path / "code.pt")
    with pytest.raises(ValueError, match="is refused"):
        Agreement("tiny-test-quickgelu", str(tmp_path / "code.pt"))({"caption": CAPTIONS})
    with pytest.raises(ValueError, match="no architecture 'tiny-typo'"):
        Agreement("tiny-typo", str(tmp_path / "tiny.pt"))({"caption": CAPTIONS})


def test_missing_weights_name_the_decomposer_and_the_file(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"Semantics needs CLIP weights \(ViT-L-14-336.*hf download timm/vit_l"):
        Semantics()
    with pytest.raises(FileNotFoundError, match=r"Agreement needs open_clip_model\.safetensors of ViT-B-32, laion2b"):
        Agreement("ViT-B-32", "laion2b_s34b_b79k")
    with pytest.raises(FileNotFoundError, match=r"Caption needs CLIP weights.*there is nothing at .*nowhere"):
        Caption(weights="nowhere")
    with pytest.raises(FileNotFoundError, match=r"lacks open_clip_config\.json"):
        Caption(weights=str(tmp_path))


def test_tokens_are_clips_pieces():
    captions = [*CAPTIONS, "", "word " * 100]
    value = Tokens()({"caption": captions})
    ids = open_clip.tokenize(captions)
    assert value.shape == (4, 77, 2)
    assert torch.equal(value[[0, 1, 3], :, 0], ids[[0, 1, 3]])
    assert value[[0, 1, 3], :, 1].sum(1).tolist() == (ids.argmax(1) + 1)[[0, 1, 3]].tolist()
    assert value[3, 76, 0] == 49407  # cut, and still ended
    assert Tokens().vocabulary_size == 49408
    assert not Tokens().can_read({"image": torch.zeros(1, 3, 8, 8)})


def test_compact_tokens_know_their_words_and_no_others(tmp_path):
    (tmp_path / "words.txt").write_text("a\nred\ndisc\nunicyclist\n,\nred\n")
    pieces = open_clip.SimpleTokenizer().encode("unicyclist")
    assert len(pieces) > 1
    tokens = Tokens(length=9, words=str(tmp_path / "words.txt"))
    end = 2 + 4 + len(pieces) + 1  # padding and unknown, four words of one piece, one of several, start
    assert tokens.vocabulary_size == end + 1
    value = tokens({"caption": ["a red giraffe, red!", "unicyclist"]})
    comma = 5 + len(pieces)
    assert value[0, :, 0].tolist() == [end - 1, 2, 3, 1, comma, 3, 1, end, 0]
    assert value[0, :, 1].tolist() == [1] * 8 + [0]
    assert value[1, : 2 + len(pieces), 0].tolist() == [end - 1, *range(5, 5 + len(pieces)), end]
    assert [tokens.decode(row) for row in value] == ["a red ?, red ?", "unicyclist"]


def test_a_folder_with_words_reads_compact_ids(tmp_path):
    words = "a\nred\nblue\ndisc\n"
    model = tiny(quick_gelu=False, vocab_size=8)
    path = write_folder(model, tmp_path / "compact", quick_gelu=False, vocab_size=8)
    (tmp_path / "compact" / "words.txt").write_text(words)
    ids = torch.zeros(1, 77, dtype=torch.long)
    ids[0, :6] = torch.tensor([6, 2, 3, 5, 1, 7])
    with torch.no_grad():
        expected = unit(model.encode_text(ids))
    torch.testing.assert_close(Agreement(weights=path)({"caption": ["a red disc giraffe"]}), expected)


def test_distances_and_previews(folder, batch):
    for decomposer in (Tokens(), Caption(weights=folder), Semantics(weights=folder), Agreement(weights=folder)):
        value = decomposer(batch)
        near, far = decomposer.distance(value, value), decomposer.distance(value, value.flip(0))
        torch.testing.assert_close(near, torch.zeros(2), atol=1e-5, rtol=0)
        assert (far > 1e-3).all()
        picture = decomposer.preview(value)
        assert picture.shape == (2, 3, 128, 128)
        assert picture.abs().max() <= 1
        assert not torch.equal(picture[0], picture[1])
    a, b = Tokens()({"caption": ["a red disc", "a green disc"]}).split(1)
    assert Tokens().distance(a, b).item() == pytest.approx(1 / 5)  # start, a, red or green, disc, end


@torch.no_grad()
def write_blip(folder):
    transformers = pytest.importorskip("transformers")
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", "red", "disc", "##s", "on", "sand", "a", "[DEC]"]
    (folder / "vocab.txt").write_text("\n".join(words))
    tokenizer = transformers.BertTokenizerFast(vocab=str(folder / "vocab.txt"))
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.save_pretrained(folder)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    ends = {"bos_token_id": 11, "eos_token_id": 2, "pad_token_id": 0, "sep_token_id": 2}
    text = tower | ends | {"vocab_size": 12, "encoder_hidden_size": 32, "max_position_embeddings": 40}
    vision = tower | {"image_size": 32, "patch_size": 8}
    config = transformers.BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=16)
    model = transformers.BlipForConditionalGeneration(config).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.4)
    model.text_decoder.cls.predictions.bias[5:11] += 20  # says words
    model.save_pretrained(folder)
    transformers.BlipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return model, tokenizer


@torch.no_grad()
def test_captioner_says_what_blip_says(tmp_path, batch):
    model, tokenizer = write_blip(tmp_path)
    mean, std = (torch.tensor(v)[:, None, None] for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    ids = model.generate(pixel_values=((batch["image"] + 1) / 2 - mean) / std, max_new_tokens=6, do_sample=False)
    expected = [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
    captioner = Captioner(str(tmp_path), length=6)
    assert isinstance(captioner, captions.Captioner)
    assert captioner.captions(batch["image"]) == expected
    assert expected[0] != expected[1]
    assert all(text and "[" not in text for text in expected)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"Captioner needs preprocessor_config\.json"):
        Captioner(str(tmp_path))


def test_merges_split_as_gpt2_does(tmp_path):
    from transformers import GPT2Tokenizer

    merges = ["r e", "re d", "Ġ c", "Ġc u", "Ġcu b", "Ġcub e", "o n"]
    path = tmp_path / "merges.txt"
    path.write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    tokens = Tokens(length=24, merges=str(path))
    pieces = tokens._gpt2.get_vocab()
    reference = GPT2Tokenizer(vocab=pieces, merges=[tuple(pair.split()) for pair in merges])
    assert tokens.vocabulary_size == 257 + len(merges) and pieces["<|endoftext|>"] == 263
    assert pieces["!"] == 0 and pieces["~"] == 93 and pieces["¡"] == 94 and pieces["Ā"] == 188 and pieces["re"] == 256
    for caption in ("A red cube, on  snow!", "naïve 日本 'tis", "x" * 40):
        expected = reference(caption.lower())["input_ids"][:24]
        value = tokens.encode(caption)
        assert value[value[:, 1] == 1, 0].tolist() == expected
    assert tokens.decode(tokens.encode("A red cube")) == "a red cube"
    assert tokens.unread("a red cube " + "x" * 30) == ("x" * 30,) and not tokens.encode("").any()
    (tmp_path / "words.txt").write_text("one two three\n")
    with pytest.raises(ValueError, match="two pieces with a space"):
        Tokens(merges=str(tmp_path / "words.txt"))
    with noting_files() as read:  # what an exported model has to include, also when it was read before
        Tokens(merges=str(path))
    assert read == {str(path): path}


def test_an_empty_caption_may_be_one(reference, folder):
    start, end = Caption(weights=folder, empty=True).from_text("")[0, :2, -1]
    assert start == end == 1 and not Caption(weights=folder).from_text("").any()
    raw, scaled = (Semantics(weights=folder, scaled=x) for x in (False, True))
    image = {"image": torch.rand(2, 3, 32, 32)}
    lengths = raw(image).norm(dim=1, keepdim=True)
    torch.testing.assert_close(raw(image) / lengths * 48**0.5, scaled(image))
    assert (lengths - 48**0.5).abs().min() > 1e-3
