"""A model whose first stage draws the codes of a dVAE, tiny and untrained; `Cascade` treats it as any other."""

import copy
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from composer import Cascade, Composition, NoisyImage, SampleOptions, SmallImage, tasks
from composer.__main__ import main
from composer.cascade.start import InitialNoise, Kept
from composer.cascade.token_stage import TokenSampling, TokenStage, to_text
from composer.diffusion.strength import Strength
from composer.evaluation.adherence import quantise
from composer.evaluation.best_of import best_of
from composer.evaluation.reading import Reading
from composer.images.sheet import read_recipe, to_pil
from composer.tasks.editing import edit
from composer.tasks.recipe import draw_recipe
from tests.conftest import TINY

SIZE, LENGTH, GRID = 16, 12, 4
ENCODER = {"codes": 24, "width": 8, "start": 8, "blocks": 1, "levels": 3}
TRANSFORMER = {"width": 16, "layers": 3, "heads": 2, "vocabulary": 84, "codes": 24, "text_length": LENGTH}
TRANSFORMER |= {"rows": GRID, "columns": GRID, "kernel": 3}
SPEC: dict[str, Any] = {
    "name": "words",
    "stages": [
        {
            "file": "base.safetensors",
            "size": SIZE,
            "tokens": {"class_path": "composer.autoregressive.ImageTokens", "init_args": TRANSFORMER},
            "autoencoder": {"class_path": "composer.networks.dvae.DVAE", "init_args": ENCODER},
            "conditions": ["caption"],
            "sampling": {"temperature": 0.9, "guidance": 1.5},
        }
    ],
    "decomposers": {
        "caption": {
            "class_path": "decomposers.Tokens",
            "init_args": {"length": LENGTH, "words": "asset:scenes_clip/words.txt"},
        }
    },
    "readers": {"caption": {"class_path": "decomposers.Agreement", "init_args": {"weights": "asset:scenes_clip"}}},
}
WORDS = "a red cube"


def changed(part=None, **changes):
    spec = copy.deepcopy(SPEC)
    (stage,) = spec["stages"]
    (stage if part is None else stage[part]["init_args"]).update(changes)
    return spec


def loud(spec):
    """Untrained networks that say something."""
    torch.manual_seed(0)
    made = Cascade.from_spec(spec)
    with torch.no_grad():
        for stage in made.stages:
            for parameter in stage.weights().parameters():
                parameter.mul_(1.5) if isinstance(stage, TokenStage) else parameter.add_(
                    torch.randn_like(parameter) / 50
                )
            if isinstance(stage, TokenStage):
                stage.tokens.embed_text.weight.normal_()
    return made


@pytest.fixture(scope="module")
def model():
    return loud(SPEC)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "words"
    model.save(path, "# words\n")
    return path


@pytest.fixture
def image():
    return torch.rand(1, 3, SIZE, SIZE) * 2 - 1


def test_it_draws_what_its_transformer_draws_and_its_dvae_decodes(model):
    stage = model.stages[0]
    drawn = model.sample(caption=WORDS, seeds=[3, 4])
    assert drawn.shape == (2, 3, SIZE, SIZE) and not torch.equal(drawn[0], drawn[1])
    value = model.decomposition["caption"].from_text(WORDS)
    text = stage.tokens.pad_text([value[0, : int(value[0, :, 1].sum()), 0].tolist()] * 2)
    codes = stage.tokens.sample(text, [3, 4], temperature=0.9, guidance=1.5)
    assert torch.equal(drawn, stage.autoencoder.decode(codes))
    torch.testing.assert_close(drawn[1:], model.sample(caption=WORDS, seeds=4), rtol=0, atol=1e-5)


def test_caption_seed_and_settings_count(model):
    drawn = model.sample(caption=WORDS)
    others = [
        model.sample(caption="a blue ball"),
        model.sample(),
        model.sample(caption=WORDS, seeds=1),
        model.sample(caption=WORDS, options=SampleOptions(guidance=1.0)),
        model.sample(caption=WORDS, options=SampleOptions(top_k=2)),
        model.sample(caption=WORDS, options=SampleOptions(stages={"base": {"temperature": 3.0}})),
    ]
    assert not any(torch.equal(drawn, other) for other in others)


def test_a_saved_model_draws_the_same(model, folder):
    loaded = Cascade.load(folder)
    assert loaded.names == ("caption",) and "base 16 px: caption" in repr(loaded)
    assert torch.equal(loaded.sample(caption=WORDS, seeds=[0, 5]), model.sample(caption=WORDS, seeds=[0, 5]))


def test_reduced_precision_is_of_the_transformer(folder):
    loaded = Cascade.load(folder).to("cpu", torch.bfloat16)
    assert loaded.precision == torch.bfloat16 and loaded.sample(caption=WORDS).isfinite().all()
    assert loaded.to("cpu", torch.float32).precision is None


def test_a_recipe_draws_the_same_again(folder, tmp_path):
    model = Cascade.load(folder)
    drawn = model.sample(caption=WORDS, seeds=7, options=SampleOptions(top_k=5))
    drawn.save(tmp_path / "a.png")
    found = read_recipe(tmp_path / "a.png")
    assert found["stages"] == {"base": {"temperature": 0.9, "top_k": 5, "guidance": 1.5}}
    assert torch.equal(draw_recipe(model, found), drawn)
    found["stages"]["base"]["steps"] = 5
    with pytest.raises(ValueError, match="no other keys than temperature, top_k, guidance"):
        draw_recipe(model, found)


def test_an_upsampler_enlarges_what_it_draws():
    spec = copy.deepcopy(SPEC)
    (other,) = copy.deepcopy(TINY["stages"])
    low_res = {"class_path": "conditions.LowRes", "init_args": {"vector_dim": 32}}
    other |= {"file": "up.safetensors", "size": 4 * SIZE, "conditions": {"low_res": low_res}}
    other["low_res"] = {"class_path": "composer.cascade.low_res.LowRes"}
    other["denoiser"]["init_args"]["network"]["init_args"] |= {"spatial_dim": 3, "token_dim": 0}
    spec["stages"].append(other)
    model = loud(spec)
    large = model.sample(caption=WORDS, seeds=[1, 2])
    assert large.shape == (2, 3, 4 * SIZE, 4 * SIZE)
    small = model.sample(caption=WORDS, seeds=[1, 2], options=SampleOptions(until="base"))
    alone = model.sample(Composition(start=SmallImage(small)), seeds=[1, 2])
    assert alone.shape == large.shape and torch.equal(alone, large)
    kept = Kept(large[:1], torch.cat([torch.ones(1, 1, 32, 64), torch.zeros(1, 1, 32, 64)], 2))
    found = model.sample(Composition(kept=kept), seeds=3)
    assert torch.equal(found[..., :32, :], large[:1, :, :32])


def test_the_best_of_several_is_chosen_by_clip(model):
    asked = model.ask(caption=WORDS)
    best = best_of(model, asked, [0, 1], 3, {"caption": 1.0})
    candidates = model.sample(asked, seeds=range(6))
    closed = Reading(model, quantise(candidates)).closed(asked.wanted)["caption"].view(2, 3)
    torch.testing.assert_close(best.scores, closed, rtol=0, atol=1e-4)
    assert best.seeds == [int(row.argmax()) + 3 * i for i, row in enumerate(closed)]


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_completion_keeps_the_given_codes(model, image, rows):
    stage, side = model.stages[0], 4
    top = rows * side
    where = torch.zeros(1, 1, SIZE, SIZE)
    where[:, :, :top] = 1
    seen: list[Any] = []
    own = stage.autoencoder.decode
    stage.autoencoder.decode = lambda codes: seen.append(codes) or own(codes)
    try:
        drawn = model.sample(Composition(parts=model.ask(caption=WORDS).parts, kept=Kept(image, where)), seeds=[1, 2])
    finally:
        del stage.autoencoder.decode
    mirrored = np.pad(image[:, :, :top], ((0, 0), (0, 0), (0, SIZE - top), (0, 0)), mode="symmetric")
    given = stage.autoencoder.encode(torch.from_numpy(mirrored))[:, :rows]
    assert torch.equal(seen[0][:, :rows], given.expand(2, -1, -1)) and drawn.shape == (2, 3, SIZE, SIZE)
    assert not torch.equal(seen[0][0], seen[0][1])
    other = image.clone()
    other[:, :, top:] = 0.5  # what is redrawn is not seen
    again = model.sample(Composition(parts=model.ask(caption=WORDS).parts, kept=Kept(other, where)), seeds=[1, 2])
    assert torch.equal(again, drawn)


def test_an_edit_completes_the_lower_part_of_a_picture(model, image):
    picture = to_pil(torch.nn.functional.interpolate(image, (40, 40))[0])
    (made,) = edit(model, picture, "0,0.5,1,1", caption=WORDS)
    before, after = np.array(picture), np.array(made)
    assert (before[:20] == after[:20]).all() and (before[20:] != after[20:]).any()


@pytest.mark.parametrize("region", ["0,0,1,0.5", "0.25,0.5,0.75,1", "0.5,0,1,1", "0,0.1,1,1"])
def test_what_is_not_the_upper_part_cannot_be_kept(model, image, region):
    picture = to_pil(torch.nn.functional.interpolate(image, (40, 40))[0])
    with pytest.raises(ValueError, match=r"at least 4 and any number of rows of its 16.*0,0.5,1,1"):
        edit(model, picture, region, caption=WORDS)


def test_it_reads_and_follows_its_conditions_alone(model):
    with pytest.raises(KeyError, match="no condition palette; it has caption"):
        model.sample(palette="#aa3311")
    with pytest.raises(ValueError, match=r"stage base has temperature, top_k, guidance; found steps"):
        model.sample(caption=WORDS, options=SampleOptions(steps=5))
    with pytest.raises(ValueError, match=r"stage base has temperature.*; found sampler"):
        model.sample(options=SampleOptions(stages={"base": {"sampler": "heun"}}))
    with pytest.raises(ValueError, match="temperature above 0"):
        model.sample(options=SampleOptions(temperature=0.0))
    with pytest.raises(ValueError, match="multiples of 16 pixels"):
        model.sample(options=SampleOptions(size=(24, 16)))
    with pytest.raises(ValueError, match="draws 16 x 16 pixels, not 32 x 16"):
        model.sample(options=SampleOptions(size=(16, 32)))
    with pytest.raises(ValueError, match=r"sampling of stage base has sampler.*found temperature"):
        Cascade.from_spec(TINY).sample(options=SampleOptions(temperature=0.5))


def test_what_needs_a_denoiser_is_refused(model, cascade, image):
    asked = model.ask(caption=WORDS)
    for change, says in (
        ({"start": NoisyImage(image, 0.5)}, "a start from noise or from a picture"),
        ({"start": InitialNoise(image)}, "a start from noise"),
        ({"strengths": {"caption": Strength(0.5)}}, "strengths"),
        ({"away": asked.parts}, "guidance away from conditions"),
        ({"also": ((asked.parts, -1.0),)}, "captions to add or to avoid"),
    ):
        with pytest.raises(ValueError, match=f"without a denoiser: it cannot do {says}"):
            model.sample(Composition(parts=asked.parts, **change))
    with pytest.raises(ValueError, match="cannot do inversion"):
        model.invert(image, {})
    with pytest.raises(ValueError, match="cannot do captions to add or to avoid"):
        model.sample(tasks.combine(model, asked, [("a blue ball", -1.0)]))
    for one, other in ((model, cascade), (cascade, model), (model, model)):
        with pytest.raises(ValueError, match="cannot do autoguidance"):
            one.lead_away_from(other)
        assert one.weaker is None


def test_codes_of_another_dvae_are_refused():
    with pytest.raises(ValueError, match="codes of another dVAE: expected 24 codes, found a dVAE of 25"):
        Cascade.from_spec(changed("autoencoder", codes=25))
    with pytest.raises(ValueError, match="expect a grid of 2 x 2 codes, found 4 x 4"):
        Cascade.from_spec(changed("autoencoder", levels=4))
    with pytest.raises(ValueError, match="grid of 8 x 8 codes, found 4 x 4"):
        Cascade.from_spec(changed(size=32))
    for names in ([], ["caption", "text"]):
        with pytest.raises(ValueError, match="conditions: expected a list of 1 to 1"):
            Cascade.from_spec(changed(conditions=names))
    with pytest.raises(ValueError, match="expected the name of a DVAE"):
        Cascade.from_spec(changed(autoencoder=SPEC["stages"][0]["tokens"]))


def test_weights_of_another_dvae_do_not_load(folder):
    with pytest.raises(ValueError, match="base"):
        Cascade.from_weights(
            changed("autoencoder", width=16),
            {"base.safetensors": Cascade.load(folder).stages[0].weights().state_dict()},
        )


def test_captions_become_texts():
    value = torch.tensor([[[5, 1], [6, 1], [0, 0]], [[0, 0], [0, 0], [0, 0]]])
    assert to_text(value, 84, 4).tolist() == [[5, 6, 84, 84], [84, 84, 84, 84]]
    assert to_text(value, 84, 2).tolist() == [[5, 6], [84, 84]]
    with pytest.raises(ValueError, match="caption of at most 1 tokens, found 2: shorten it"):
        to_text(value, 84, 1)
    with pytest.raises(ValueError, match=r"from 0 to 5, found \[5, 6\]"):
        to_text(value, 6, 4)
    with pytest.raises(ValueError, match="as Tokens gives them"):
        to_text(torch.zeros(1, 156, 3), 84, 4)


def test_settings_are_what_they_were(model):
    assert asdict(model.settings()["base"]) == {"temperature": 0.9, "top_k": None, "guidance": 1.5}
    assert isinstance(model.settings()["base"], TokenSampling)
    assert not model.ignores_seeds(Composition())


def test_on_the_command_line(folder, tmp_path, capsys):
    words = ["compose", "--model", str(folder), "--caption", WORDS, "--out", str(tmp_path / "out")]
    assert main([*words, "--temperature", "0.7", "--top-k", "9", "--best-of", "2", "--weights", "caption=1"]) == 0
    assert read_recipe(tmp_path / "out/compose_seed0.png")["stages"]["base"] == {
        "temperature": 0.7,
        "top_k": 9,
        "guidance": 1.5,
    }
    capsys.readouterr()
    assert main(["export", str(folder), str(tmp_path / "theirs"), "--as", "diffusers"]) == 1
    assert "draws by tokens: diffusers has no class for it" in capsys.readouterr().err
    assert main([*words, "--stage", "base:top_k=3", "--seeds", "5"]) == 0
    assert main([*words, "--steps", "5"]) == 1
    assert "has temperature, top_k, guidance; found steps" in capsys.readouterr().err
    long = "a red cube " * 9
    assert main([*words[:4], long, *words[5:]]) == 0
    assert "room for" in capsys.readouterr().err
    with Image.open(tmp_path / "out/compose_seed0.png") as picture:
        picture.resize((32, 32)).save(tmp_path / "photo.png")
    words = ["edit", str(tmp_path / "photo.png"), "--model", str(folder), "--out", str(tmp_path / "out")]
    assert main([*words, "--region", "0,0.5,1,1", "--caption", WORDS]) == 0
    assert main([*words, "--region", "0,0,1,0.5", "--caption", WORDS]) == 1
    assert "0,0.5,1,1, which redraws the lower half" in capsys.readouterr().err
