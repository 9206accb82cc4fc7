"""The cascade: sampling, inversion, storage, edits, recipes and adherence, on a tiny untrained model."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from composer.cascade.assembling import carry_weights
from composer.cascade.cascade import Cascade
from composer.cascade.options import SampleOptions
from composer.cascade.parts import Parts
from composer.cascade.recipe import pack
from composer.cascade.stage import Sampling
from composer.decomposition import Decomposer
from composer.evaluation.adherence import Evaluation, quantise
from composer.evaluation.reading import Reading
from composer.evaluation.samples import Sample
from composer.images.sheet import from_pil, read_recipe, save_png, to_pil
from composer.storage.building import Buildable, build
from composer.tasks.composition import Composition
from composer.tasks.editing import Original, edit, feather, open_region, window
from composer.tasks.recipe import draw_recipe, recipe, unpack
from tests.conftest import SIZE, TINY


@pytest.fixture
def images():
    return torch.rand(3, 3, SIZE, SIZE) * 2 - 1


def test_parts_recombine(cascade, images):
    parts = cascade.decompose({"image": images})
    assert set(parts) == {"palette", "intensity"}  # no region: nothing to mask
    both = parts.pick("intensity").row(0) | parts.pick("palette").row(1)
    out = cascade.sample(both, seeds=[3, 4])
    assert out.shape == (2, 3, SIZE, SIZE) and out.abs().max() <= 1
    assert not torch.allclose(out, cascade.sample(both.drop("palette"), seeds=[3, 4]))


def test_a_picture_depends_on_its_seed_alone(cascade, images):
    parts = cascade.decompose({"image": images[:1]})
    pair, single = cascade.sample(parts, seeds=[1, 2]), cascade.sample(parts, seeds=[2])
    assert torch.allclose(pair[1:], single, atol=1 / 255)


def test_two_sided_guidance_of_equal_sides_is_none(cascade, images):
    parts = cascade.decompose({"image": images[:1]})
    plain = cascade.sample(parts, options=SampleOptions(guidance=1.0))
    assert torch.allclose(
        cascade.sample(Composition(parts=parts, away=parts), options=SampleOptions(guidance=5.0)), plain, atol=1e-4
    )


def test_inversion_comes_back(cascade, images):
    parts = cascade.decompose({"image": images[:1]}).pick("palette")
    latent = cascade.invert(images[:1] * 0.5, parts, steps=60)
    back = cascade.sample(
        Composition(parts=parts, start=latent), options=SampleOptions(sampler="heun", steps=60, guidance=1.0)
    )
    assert (back - images[:1] * 0.5).abs().mean() < 0.01


def test_wrong_representations_are_refused(cascade, images):
    parts = cascade.decompose({"image": images})
    with pytest.raises(KeyError, match="no condition style; it has intensity, mask, palette"):
        cascade.sample(Parts(style=torch.zeros(1, 3)))
    with pytest.raises(ValueError, match="1 or 2 rows"):
        cascade.sample(parts, seeds=[0, 1])
    with pytest.raises(KeyError, match="no sketch among these parts"):
        parts.pick("sketch")
    with pytest.raises(ValueError, match="at least 1 step"):
        Sampling(steps=0)


def test_saved_and_loaded_is_the_same(cascade, saved, images):
    loaded = Cascade.load(saved)
    parts = cascade.decompose({"image": images})
    assert torch.equal(cascade.sample(parts, seeds=[0, 1, 2]), loaded.sample(parts, seeds=[0, 1, 2]))
    assert len(loaded.sha256) == 64


def test_changed_bytes_are_found(saved):
    data = bytearray((saved / "base.safetensors").read_bytes())
    data[-1] ^= 1
    (saved / "base.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=r"base\.safetensors is damaged or was changed"):
        Cascade.load(saved)
    (saved / "base.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="incomplete"):
        Cascade.load(saved)


def test_no_model_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a model folder"):
        Cascade.load(tmp_path)


def test_weights_of_another_configuration_are_refused(cascade, tmp_path):
    other = json.loads(json.dumps(TINY))
    other["stages"][0]["denoiser"]["init_args"]["network"]["init_args"]["blocks"] = 2
    with pytest.raises(ValueError, match=r"do not belong to this configuration.*missing"):
        state = {"base.safetensors": _weights(cascade)}
        Cascade.from_spec(other).load_weights(state)


def _weights(cascade):
    stage = cascade.stages[0]
    return {f"denoiser.{k}": v for k, v in stage.denoiser.state_dict().items()} | {
        f"conditions.{k}": v for k, v in stage.conditions.state_dict().items()
    }


@pytest.mark.parametrize(
    "path", ["os.system", "subprocess.Popen", "torch.nn.Linear", "decomposers.torch", "composer.diffusion.denoiser.nn"]
)
def test_a_model_can_name_nothing_but_our_classes(path):
    with pytest.raises(ValueError, match=r"not one of the modules|expected the name of a"):
        build({"class_path": path, "init_args": {}}, Buildable)


def test_wrong_arguments_are_explained():
    with pytest.raises(ValueError, match="does not take these arguments"):
        build({"class_path": "decomposers.Intensity", "init_args": {"colour": 1}}, Buildable)


def test_a_failed_save_leaves_the_model_intact(cascade, saved, monkeypatch):
    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(OSError, match="No space left"):
        cascade.save(saved)
    monkeypatch.undo()
    Cascade.load(saved)
    assert not list(saved.glob(".*"))


def picture(tmp_path, mode="RGB", size=(60, 40), **info):
    rng = np.random.default_rng(0)
    if mode == "I;16":
        made = Image.fromarray(rng.integers(0, 65536, (size[1], size[0]), dtype=np.uint16))
    else:
        depth = len(Image.new(mode, (1, 1)).getbands())
        pixels = rng.integers(0, 256, (size[1], size[0], depth), dtype=np.uint8)
        made = Image.fromarray(pixels.squeeze(), mode if depth > 1 else "L")
    made.save(tmp_path / "picture.png", **info)
    return tmp_path / "picture.png"


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "I;16"])
def test_nothing_outside_the_region_changes(cascade, tmp_path, mode):
    path = picture(tmp_path, mode)
    original = Original.open(path)
    region = open_region("10,5,30,25", (40, 60))
    (after,) = edit(cascade, original, region, Parts(), keep=["intensity"])
    assert (after.mode, after.size) == (mode, (60, 40))
    before, outside = np.asarray(Image.open(path)), region[0, 0].numpy() == 0
    assert (np.asarray(after)[outside] == before[outside]).all()
    assert (np.asarray(after)[~outside] != before[~outside]).mean() > 0.4
    if mode in ("RGBA", "LA"):
        assert (np.asarray(after)[..., -1] == before[..., -1]).all()


def test_an_empty_region_gives_the_file_back_and_a_full_one_plain_generation(cascade, tmp_path):
    path = picture(tmp_path, size=(48, 48))
    original = Original.open(path)
    (same,) = edit(cascade, original, torch.zeros(1, 1, 48, 48), Parts())
    assert same.tobytes() == Image.open(path).tobytes()
    parts = cascade.decompose({"image": torch.zeros(1, 3, SIZE, SIZE)})
    (full,) = edit(cascade, original, torch.ones(1, 1, 48, 48), parts, seeds=[5], soften=0)
    plain = torch.nn.functional.interpolate(cascade.sample(parts, seeds=[5]), (48, 48), mode="bicubic", antialias=True)
    assert (from_pil(full) - from_pil(to_pil(plain[0]))).abs().max() <= 2 / 127


def test_icc_profile_survives_an_edit(cascade, tmp_path):
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    (after,) = edit(
        cascade,
        Original.open(picture(tmp_path, icc_profile=profile)),
        open_region("0.2,0.2,0.6,0.8", (40, 60)),
        Parts(),
        keep=["palette"],
    )
    assert after.info["icc_profile"] == profile


def test_sixteen_bit_colour_is_refused_rather_than_reduced(tmp_path):
    import zlib

    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = (40).to_bytes(4, "big") + (40).to_bytes(4, "big") + bytes([16, 2, 0, 0, 0])
    rows = zlib.compress(b"".join(b"\0" + bytes(40 * 6) for _ in range(40)))
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    (tmp_path / "deep.png").write_bytes(data)
    with pytest.raises(ValueError, match="16 bits per channel"):
        Original.open(tmp_path / "deep.png")


def test_regions(tmp_path):
    Image.new("L", (10, 10)).save(tmp_path / "mask.png")
    with pytest.raises(ValueError, match="10 x 10 pixels, the picture 60 x 40"):
        open_region(str(tmp_path / "mask.png"), (40, 60))
    with pytest.raises(ValueError, match="within 60 x 40"):
        open_region("10,10,70,20", (40, 60))
    with pytest.raises(FileNotFoundError, match="a mask's file or a box"):
        open_region("nowhere.png", (40, 60))
    assert torch.equal(open_region("0,0,0.5,1", (40, 60)), open_region("0,0,30,40", (40, 60)))


def test_window_and_feather():
    region = torch.zeros(40, 60, dtype=torch.bool)
    region[10:20, 50:60] = True
    rows, columns = window(region)
    assert rows.stop - rows.start == columns.stop - columns.start == 21 and columns.stop == 60
    region[:, :] = True
    assert window(region) == (slice(0, 40), slice(0, 60))
    box = torch.zeros(1, 1, 9, 9)
    box[..., 2:7, 2:7] = 1
    soft = feather(box, 2)
    assert soft[0, 0, 4].tolist() == pytest.approx([0, 0, 1 / 3, 2 / 3, 1, 2 / 3, 1 / 3, 0, 0])


def test_a_picture_is_made_again_from_its_recipe(cascade, saved, images, tmp_path):
    model = Cascade.load(saved)
    parts = model.decompose({"image": images})
    image = model.sample(parts.row(1), seeds=[9], options=SampleOptions(steps=3))
    made = recipe(model, Composition(parts=parts.row(1)), 9, SampleOptions(steps=3))
    save_png(tmp_path / "x.png", image[0], made)
    assert torch.equal(quantise(draw_recipe(model, read_recipe(tmp_path / "x.png"))), quantise(image))
    with pytest.raises(ValueError, match="drawn by the model 'tiny'"):
        draw_recipe(cascade, made)
    with pytest.raises(ValueError, match="recipe is incomplete"):
        draw_recipe(model, {"model": {"sha256": ""}})


def test_packed_representations_are_exact_and_bounded():
    parts = {"a": torch.randn(1, 3), "b": torch.arange(4).view(1, 4)}
    back = unpack(pack(parts))
    assert all(torch.equal(back[k], v) for k, v in parts.items())
    with pytest.raises(ValueError, match="cannot be unpacked"):
        unpack("no tensors")


def sample_of(image):
    return Sample(len(image), lambda index: {"image": image[list(index)]})


def test_adherence_of_the_true_images_is_perfect_and_of_others_chance(cascade, images):
    evaluation = Evaluation(cascade, sample_of(quantise(images)))
    whole = evaluation.block(range(3))
    perfect = evaluation.score(quantise(images), ["palette", "intensity"], whole)
    assert all(row.closed == pytest.approx(1) and row.ceiling == pytest.approx(1) for row in perfect.values())
    others = evaluation.score(quantise(images).roll(1, 0), ["palette"], whole)  # each is the stranger of chance
    assert others["palette"].closed == pytest.approx(0, abs=1e-6)
    stranger = whole.true["palette"].roll(1, 0)
    reader = dict(cascade.readers.named())["palette"]
    chance = reader.distance(whole.wanted["palette"], stranger).mean()
    assert perfect["palette"].chance == pytest.approx(float(chance))


def test_adherence_table(cascade, images):
    drawn = []
    evaluation = Evaluation(cascade, sample_of(images), progress=drawn.append, rows=2)
    table = evaluation.measure()
    assert set(table.alone) == {"palette", "intensity"} and table.cross == {}
    assert sum(drawn) == evaluation.count() == 12 and max(drawn) == 2
    assert list(table.json()) == ["alone", "all", "cross", "mask"]
    assert list(table.json()["alone"]["palette"]) == ["closed", "distance", "chance", "ceiling"]
    assert list(evaluation.measure_alone().json()) == ["alone"]
    far = Reading(cascade, images).distances(evaluation.block([0]).wanted)
    assert far["intensity"].shape == (3,) and far["intensity"][0] < 0.01
    for count, rows in ((1, 2), (3, 0)):
        with pytest.raises(ValueError, match=rf"at least 2 of them, .* found {count} and {rows}"):
            Evaluation(cascade, sample_of(images[:count]), rows=rows)


def test_a_model_carries_the_files_that_its_decomposers_were_built_from(tmp_path):
    (tmp_path / "words.txt").write_text("a\nred\ncube\n")
    tokens = {"class_path": "decomposers.Tokens", "init_args": {"words": str(tmp_path / "words.txt")}}
    moved = carry_weights(
        {"decomposers": {"caption": tokens, "palette": TINY["decomposers"]["palette"]}}, tmp_path / "m"
    )
    assert str(tmp_path) not in json.dumps(moved)
    (tmp_path / "words.txt").unlink()
    made = build(moved["decomposers"]["caption"], Decomposer, folder=tmp_path / "m")
    assert made({"caption": ["a red cube"]}).shape == (1, 77, 2)


def test_load_finds_a_shipped_model_by_name(saved, monkeypatch, tmp_path):
    monkeypatch.setattr("composer.storage.finding._PACKAGE", tmp_path)
    shutil.copytree(saved, tmp_path / "assets" / "mine")
    assert Cascade.load("mine").spec["name"] == "tiny"
