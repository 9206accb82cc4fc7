"""diffusers' layout, in and out: diffusers' own networks with random weights are the oracle."""

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch.nn import functional as F

from composer.__main__ import main
from composer.cascade.stage import Stage
from composer.published import export_diffusers, karlo
from composer.published.diffusers_layout import FAMILIES, WEIGHTS
from composer.published.engine import Row, convert, interleave, revert
from composer.published.family import Needs, configuration, denoiser
from composer.published.importing import Published, import_model
from composer.storage.folder import read_model, write_model
from tests.published.kit import meta, needs_kit

try:
    from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
except ImportError:  # before 0.42
    from diffusers.pipelines.unclip.text_proj import UnCLIPTextProjModel

CLIP = 8  # width of its embeddings
TINY = {
    "width": 32,
    "multipliers": (1, 2, 3),
    "blocks": 2,
    "attention": (2, 4),
    "head_dim": 32,
    "vector_dim": 48,
    "token_dim": 0,
    "spatial_dim": 0,
    "group_width": 1,
}


@pytest.fixture
def their_karlo(tmp_path):
    """A tiny Karlo of diffusers' own, and the two files that it saves."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=3,
        out_channels=6,
        block_out_channels=(64, 128),
        layers_per_block=2,
        cross_attention_dim=24,
        attention_head_dim=64,
        resnet_time_scale_shift="scale_shift",
        class_embed_type="identity",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    ).eval()
    projection = UnCLIPTextProjModel(clip_embeddings_dim=CLIP, time_embed_dim=256, cross_attention_dim=24).eval()
    projection.learned_classifier_free_guidance_embeddings.data.normal_()
    unet.save_pretrained(tmp_path / "karlo/decoder")
    projection.save_pretrained(tmp_path / "karlo/text_proj")
    return unet, projection, [tmp_path / f"karlo/{part}/{WEIGHTS}" for part in ("decoder", "text_proj")]


@pytest.fixture
def without_clip(monkeypatch):
    """The empty caption, without the CLIP that encodes it."""
    monkeypatch.setattr(karlo, "empty_caption", lambda reader: torch.randn(karlo.EMPTY, CLIP + 1))


def given():
    """Noisy images, steps, words, how many of them are real, the sentence, and image embeddings, of two rows."""
    torch.manual_seed(1)
    real = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([7, 930])
    return x, t, torch.randn(2, 5, CLIP), real, torch.randn(2, CLIP), torch.randn(2, CLIP)


def as_diffusers(unet, projection, image=None):
    """What diffusers' pipeline computes of `given`, or with other image embeddings."""
    x, t, words, real, sentence, own = given()
    tokens, vector = projection(
        image_embeddings=own if image is None else image,
        prompt_embeds=sentence,
        text_encoder_hidden_states=words,
        do_classifier_free_guidance=False,
    )
    mask = F.pad(real, (4, 0), value=True)
    return unet(x, t, encoder_hidden_states=tokens, class_labels=vector, attention_mask=mask).sample[:, :3]


def as_ours(stage, image=True):
    """What a model of ours computes of `given`, or without the image embeddings."""
    x, t, words, real, sentence, semantics = given()
    words = torch.cat([words, real[..., None].float()], 2)
    caption = torch.cat([words, F.pad(sentence, (0, 1), value=1.0)[:, None]], 1)
    cond = stage.encode({"caption": caption} | ({"semantics": semantics} if image else {}), (16, 16))
    return stage.denoiser.network(x, t / 1000, cond)


def rebuilt(folder):
    """The first stage of a model's folder, without its decomposers."""
    config, weights, _ = read_model(folder)
    stage = Stage.from_spec(config["stages"][0])
    stage.weights().load_state_dict(weights[config["stages"][0]["file"]])
    return stage


@torch.no_grad()
def test_karlo_of_diffusers_is_read_and_written(their_karlo, without_clip, tmp_path):
    unet, projection, files = their_karlo
    (done,) = import_model({"karlo-decoder-diffusers": files}, tmp_path / "ours")
    assert len({name for row in done.report for name in row["theirs"]}) == len(unet.state_dict()) + len(
        projection.state_dict()
    )
    expected = as_diffusers(unet, projection)
    assert (as_ours(rebuilt(tmp_path / "ours")) - expected).abs().max() < 1e-5
    decoder, text_proj = export_diffusers(tmp_path / "ours", tmp_path / "again")
    for path, true in ((decoder, unet), (text_proj, projection)):
        again = type(true).from_pretrained(path)
        assert again.state_dict().keys() == true.state_dict().keys()
        assert all(torch.equal(x, again.state_dict()[name]) for name, x in true.state_dict().items())
    again = UNet2DConditionModel.from_pretrained(decoder), UnCLIPTextProjModel.from_pretrained(text_proj)
    assert (as_diffusers(*again) - expected).abs().max() < 1e-5


@torch.no_grad()
def test_an_absent_image_is_the_learned_value(their_karlo, without_clip, tmp_path):
    unet, projection, files = their_karlo
    import_model({"karlo-decoder-diffusers": files}, tmp_path / "ours")
    nothing = projection.learned_classifier_free_guidance_embeddings.expand(2, -1)
    expected = as_diffusers(unet, projection, nothing)
    assert (as_ours(rebuilt(tmp_path / "ours"), image=False) - expected).abs().max() < 1e-5


@needs_kit
def test_the_released_decoder_has_a_place_for_every_tensor():
    """Its names in diffusers' layout follow from the authors' layout: the two have the same network."""
    family = karlo.FAMILIES["karlo-decoder"]
    spec = family.configure(meta("karlo_decoder"), 64, Needs())["stages"][0]
    with torch.device("meta"):
        weights = Stage.from_spec(spec).weights()
    ours, theirs = weights.state_dict(), FAMILIES["karlo-decoder-diffusers"]
    rows = theirs.rows(weights, Needs())
    tensors = revert(rows, ours)
    assert theirs.recognises({name.removeprefix("decoder."): x for name, x in tensors.items()})
    assert (len(tensors), sum(x.numel() for x in tensors.values())) in theirs.released.values()
    assert theirs.configure(tensors, 64, Needs())["stages"][0] == spec
    assert convert(rows, tensors, ours).tensors.keys() == ours.keys()


def model(folder, network, conditions, scale=0):
    """A model of ours with random weights."""
    torch.manual_seed(2)
    config = configuration(16, denoiser({**TINY, **network}, "SquaredCosine"), conditions, {}, scale=scale)
    stage = Stage.from_spec(config["stages"][0])
    for parameter in stage.weights().parameters():
        parameter.normal_(std=0.08)
    file = config["stages"][0]["file"]
    write_model(folder, {"name": "tiny", **config}, {file: stage.weights().state_dict()}, "")
    return stage


LABEL = {"label": {"class_path": "conditions.Label", "init_args": {"classes": 7, "vector_dim": 48}}}
LOW_RES = {"low_res": {"class_path": "conditions.LowRes", "init_args": {"spatial_dim": 3}}}


@pytest.mark.parametrize(
    ("network", "conditions"),
    [
        ({}, {}),
        ({"variances": True, "multipliers": (1, 1), "blocks": 1, "attention": ()}, {}),
        ({"scale_shift": False, "attention": (2,)}, {}),
        ({}, LABEL),
        ({"spatial_dim": 3}, {**LABEL, **LOW_RES}),
    ],
    ids=["plain", "variances", "additive", "classes", "upsampler"],
)
@torch.no_grad()
def test_a_network_of_ours_is_loaded_by_diffusers(network, conditions, tmp_path):
    stage = model(tmp_path / "ours", network, conditions, scale=4 if "low_res" in conditions else 0)
    path = tmp_path / "theirs"
    assert not main(["export", str(tmp_path / "ours"), str(path), "--as", "diffusers"])
    assert "the step of the schedule SquaredCosine" in (path / "README.md").read_text()
    torch.manual_seed(3)
    x, t, low = torch.randn(2, 3, 16, 16), torch.tensor([0, 721]), torch.randn(2, 3, 16, 16)
    label = torch.tensor([6, 2]) if "label" in conditions else None
    joined = torch.cat([x, low], 1) if "low_res" in conditions else x
    expected = UNet2DModel.from_pretrained(path)(joined, t, class_labels=label).sample[:, :3]
    reps = {"label": torch.tensor([[6], [2]]), "low_res": F.pad(low, (0, 0, 0, 0, 0, 1))}
    found = stage.denoiser.network(x, t / 1000, stage.encode(reps, (16, 16)))
    assert (found - expected).abs().max() < 1e-5 < found.std()


@pytest.mark.parametrize(
    ("network", "conditions", "says"),
    [
        ({"residual_resampling": False}, {}, "single convolutions"),
        ({"skip_scale": 0.5}, {}, "scaled skips"),
        ({"first_stride": 2}, {}, "half the size"),
        ({"blocks": (1, 2, 2)}, {}, "one number of blocks per level, and this one has several: 1, 2"),
        ({"multipliers": (2, 2, 3)}, {}, "several: 32, 64"),
        ({"attend_once": True}, {}, "one kind of block in a level"),
        ({"heads": 2}, {}, "one width of an attention head, and this one has several: 32, 48"),
        ({"group_width": 16}, {}, "one number of groups of a norm"),
        ({"token_dim": 8}, {}, "reads tokens"),
        (
            {"spatial_dim": 8},
            {"sketch": {"class_path": "conditions.Spatial", "init_args": {"in_channels": 1, "spatial_dim": 8}}},
            "reads sketch",
        ),
    ],
)
def test_what_diffusers_has_no_class_for_is_refused(network, conditions, says, tmp_path):
    with torch.no_grad():
        model(tmp_path / "ours", network, conditions)
    with pytest.raises(ValueError, match=says):
        export_diffusers(tmp_path / "ours", tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()


def test_an_export_overwrites_nothing(tmp_path):
    with torch.no_grad():
        model(tmp_path / "ours", {}, {})
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="choose another folder"):
        export_diffusers(tmp_path / "ours", tmp_path / "theirs")
    with pytest.raises(ValueError, match="has the stages base, found up64"):
        export_diffusers(tmp_path / "ours", tmp_path / "out", stage="up64")
    assert [path.name for path in (tmp_path / "theirs").iterdir()] == ["mine.txt"]


def test_incomplete_files_are_refused(their_karlo, tmp_path):
    decoder, text_proj = their_karlo[2]
    for files, says in (
        ([decoder], "made of 2 files, in this order: decoder/diffusion_pytorch_model.safetensors; text_proj"),
        ([text_proj, decoder], "is not a file of karlo-decoder-diffusers.*looks like no known family"),
        ([decoder, decoder], "these tensors do not make a karlo-decoder-diffusers"),
    ):
        with pytest.raises(ValueError, match=says):
            import_model({"karlo-decoder-diffusers": files}, tmp_path / "out")
    with pytest.raises(ValueError, match="looks like karlo-decoder-diffusers"):
        Published.open(decoder, "glide-base")
    decoder.write_bytes(decoder.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        import_model({"karlo-decoder-diffusers": [decoder, text_proj]}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_rows_without_a_reverse_are_refused():
    rows = [Row("a", ("b",), interleave(4))]
    x = torch.arange(12.0)
    assert torch.equal(revert(rows, convert(rows, {"b": x}, {"a": x}).tensors)["b"], x)
    with pytest.raises(ValueError, match="1 tensors are without a place, the first of them c"):
        revert(rows, {"a": x, "c": x})
