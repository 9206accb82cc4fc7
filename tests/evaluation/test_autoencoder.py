"""`composer evaluate-autoencoder`, on tiny untrained autoencoders."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio as by_skimage

from composer.__main__ import main
from composer.data.datasets import Photographs
from composer.evaluation.autoencoder import measure_reconstructions
from composer.evaluation.metrics import kid, read_by
from composer.evaluation.samples import open_sample
from composer.images.reading import load_rgb
from composer.images.sheet import save_png, to_pil
from composer.networks.autoencoder import Autoencoder
from composer.networks.dvae import DVAE
from decomposers import Palette

SIZE = 32


@pytest.fixture
def photographs(tmp_path):
    pictures = Photographs(SIZE)
    folder = tmp_path / "photographs"
    folder.mkdir()
    for i in range(5):
        save_png(folder / f"{i}.png", to_pil(pictures.row(i, 0)["image"]))
    return folder


@pytest.mark.parametrize(
    "made", [Autoencoder(width=8, multipliers=[1, 2], blocks=1, groups=4), DVAE(codes=16, width=4, start=4, blocks=1)]
)
def test_psnr_and_kid_are_those_of_the_reconstructed_files(made, photographs):
    found = measure_reconstructions(made, open_sample(str(photographs), 5, SIZE), read_by(Palette()), rows=2)
    images = torch.stack([load_rgb(photographs / f"{i}.png").image for i in range(5)])
    with torch.no_grad():
        pictures = [np.array(to_pil(x)) for x in made.decode(made.encode(images))]
    true = [by_skimage(np.asarray(to_pil(x)), y) for x, y in zip(images, pictures, strict=True)]
    assert math.isclose(found.psnr, sum(true) / 5, abs_tol=0.01)
    again = torch.stack([torch.from_numpy(picture).movedim(2, 0) for picture in pictures]) / 127.5 - 1
    assert math.isclose(found.kid, kid(images, again, read_by(Palette())).value, rel_tol=1e-3)
    assert len(found.examples) == 5 and torch.equal(found.examples[3][0], images[3])


def test_the_command_writes_numbers_and_a_sheet(photographs, tmp_path):
    Autoencoder(width=8, multipliers=[1, 2], blocks=1, groups=4).save(tmp_path / "made")
    words = ["--data", str(photographs), "--size", str(SIZE), "--count", "4", "--out", str(tmp_path / "out")]
    assert main(["evaluate-autoencoder", str(tmp_path / "made"), *words, "--json", str(tmp_path / "a.json")]) in (
        0,
        None,
    )
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["images"] == 4 and 0 < found["psnr"] < 30 and len(found["about"]["autoencoder"]) == 64
    with Image.open(tmp_path / "out" / "autoencoder.png") as sheet:
        assert sheet.width > 4 * SIZE > 2 * SIZE and sheet.height > 2 * SIZE


def test_images_that_do_not_divide_by_the_factor_are_refused(photographs, tmp_path, capsys):
    Autoencoder(width=8, multipliers=[1, 1, 1, 1], blocks=1, groups=4).save(tmp_path / "made")
    words = ["--data", str(photographs), "--size", "20", "--count", "4"]
    assert main(["evaluate-autoencoder", str(tmp_path / "made"), *words]) == 1
    assert "expected height and width in multiples of 8, found 20 x 20" in capsys.readouterr().err
