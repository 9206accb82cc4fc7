"""Decomposers that read pictures at the source's size, whatever a model draws."""

import numpy as np
import pytest
import torch
from PIL import Image

from composer.__main__ import main
from composer.cascade.assembling import assemble
from composer.cascade.cascade import Cascade
from composer.data import Crops, ImageData, ImageFolder, Mixture, SceneImages
from composer.decomposition import Decomposition
from composer.images.reading import load_rgb, resize, resize_and_crop
from composer.prior.taking import load_prior
from composer.tasks.composition import Source
from decomposers import Mask, Sketch

SMALL, LARGE = 32, 96


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((200, 150), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text("a red cube")
    return folder


def test_decomposers_read_the_source_and_masks_the_image():
    large = torch.rand(2, 3, LARGE, LARGE) * 2 - 1
    batch = {"image": torch.stack([resize(x, SMALL) for x in large]), "source": large, "seed": torch.arange(2)}
    plain, at_source = (Decomposition({"sketch": Sketch(), "mask": Mask()}, side) for side in (None, LARGE))
    assert torch.equal(at_source(batch)["sketch"], plain({"image": large})["sketch"])
    assert plain(batch)["sketch"].shape[-1] == SMALL
    assert torch.equal(at_source(batch)["mask"], plain(batch)["mask"])
    del batch["source"]
    assert at_source(batch)["sketch"].shape[-1] == LARGE  # what there is, enlarged


def test_a_column_that_some_rows_have_keeps_its_size():
    column = torch.rand(2, 1, SMALL, SMALL)
    known = {"sketch": torch.tensor([True, False])}
    batch = {"image": torch.rand(2, 3, SMALL, SMALL), "sketch": column, "known": known}
    found = Decomposition({"sketch": Sketch()}, LARGE)(batch)["sketch"]
    assert found.shape == column.shape and torch.equal(found[0], column[0]) and not torch.equal(found[1], column[1])


@pytest.mark.parametrize("crop", ["centre", "random"])
def test_a_folder_shows_both_sizes_of_one_square(photos, crop):
    folder = ImageFolder(str(photos), SMALL, crop=crop, flip=True)
    alone = [folder.row(i, i)["image"] for i in range(3)]
    Mixture([folder], [1]).show_source(LARGE)
    for i, image in enumerate(alone):
        row = folder.row(i, i)
        assert torch.equal(row["image"], image) and row["source"].shape == (3, LARGE, LARGE)
        assert (resize(row["source"], SMALL) - image).abs().mean() < 0.02
    with pytest.raises(ValueError, match="crops show no source"):
        ImageData(Crops(folder, 16), None, {}, batch_size=1, source=LARGE)


OPTIONS = [
    *("--data.source", str(LARGE), "--trainer.max_steps", "1", "--trainer.val_check_interval", "1"),
    *("--model.conditions.sketch.init_args.strides", "[1, 3]"),  # enters as it is read
    *("--data.batch_size", "2", "--grid.count", "1", "--grid.steps", "1", "--trainer.accelerator", "cpu"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model that was trained a step on photographs, at the source's size."""
    folder = tmp_path_factory.mktemp("source")
    (folder / "photos").mkdir()
    for i in range(2):
        pixels = np.random.default_rng(i).integers(0, 256, (120, 160, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{i}.png")
        (folder / "photos" / f"{i}.txt").write_text("a red cube")
    data = []
    for part in ("train", "validation"):
        data += [f"--data.{part}", "ImageFolder", f"--data.{part}.path", str(folder / "photos")]
        data += [f"--data.{part}.size", str(SMALL)]
    root = ["--trainer.default_root_dir", str(folder / "run")]
    assert main(["fit", "-c", "tiny", *data, *OPTIONS, *root]) == 0
    assert main(["export", str(folder / "run"), str(folder / "model")]) == 0
    return folder / "model"


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*logging interval")
def test_a_model_keeps_the_size_and_reads_pictures_at_it(model, photos):
    cascade = Cascade.load(model)
    assert cascade.decomposition.source == cascade.readers.source == LARGE and cascade.sight == LARGE
    path = photos / "1.png"
    square = resize_and_crop(load_rgb(path).image, LARGE)[None]
    parts = cascade.decompose(str(path))
    torch.testing.assert_close(parts["sketch"], Sketch()({"image": square}))
    assert torch.equal(Source.open(cascade, str(path)).has.parts["sketch"], parts["sketch"])
    made = cascade.sample(parts.pick("sketch", "palette"), seeds=[0])
    assert made.shape == (1, 3, SMALL, SMALL)
    with pytest.raises(ValueError, match=r"at least 96 pixels at the shorter side.*data\.source: 96"):
        cascade.sample(parts.pick("palette") | {"sketch": parts["sketch"][..., :SMALL, :SMALL]}, seeds=[0])
    assert cascade.read({"image": made})["sketch"].shape == parts["sketch"].shape
    with pytest.raises(ValueError, match="decomposers read images at one size"):
        assemble({"base": model, "next": plain(model)}, "both")
    cascade.decomposition["semantics"] = Sketch()
    with pytest.raises(ValueError, match="read images at 96 px, those of this prior at the size"):
        load_prior(cascade, "scenes_prior_ar", ())


def plain(model):
    """The same model without a size of its own."""
    cascade = Cascade.load(model)
    del cascade.spec["source"]
    folder = model.with_name("plain")
    cascade.save(folder)
    return folder


def test_scenes_have_no_more_pixels_to_show():
    data = ImageData(SceneImages("val", SMALL, 2), None, {"sketch": Sketch()}, batch_size=2, source=LARGE)
    assert "source" not in data.train.row(0, 0) and data.decomposition.source == LARGE
