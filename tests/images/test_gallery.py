import base64
import hashlib
import json
import os
import re
import struct
import zlib
from html.parser import HTMLParser
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from composer.decomposition import Decomposer, Decomposition
from composer.images.sheet import (
    PAPER,
    Section,
    decomposed,
    from_pil,
    html_index,
    previews,
    read_recipe,
    save_png,
    sheet,
    to_pil,
)
from composer.images.table import Table

RECIPE = {
    "seed": 3,
    "weights": "ab" * 32,
    "composition": {"caption": "ein rotes Würfelchen, 立方体"},
    "guidance": [1.5, None],
}


class Grey(Decomposer):
    """One grey level, shown as two by one pixels."""

    def forward(self, batch):
        return batch["image"].mean((1, 2, 3))[:, None]

    def preview(self, value):
        return value[:, :, None, None].expand(-1, 3, 1, 2)

    def distance(self, wanted, got):
        return (wanted - got).abs().flatten(1).sum(1)


def plain(size: tuple[int, int], level: float) -> torch.Tensor:
    return torch.full((3, *size), level)


def count(picture: Image.Image, colour: tuple[int, int, int]) -> int:
    return int((np.array(picture) == colour).all(-1).sum())


def test_every_8_bit_level_survives_the_round_trip():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).expand(3, 16, 16)
    picture = Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())
    image = from_pil(picture)
    assert image.min() == -1 and image.max() == 1
    assert np.array_equal(np.array(to_pil(image)), np.array(picture))
    assert np.array(to_pil(torch.tensor([-3.0, 0.001, 9.0]).view(3, 1, 1)))[0, 0].tolist() == [0, 128, 255]
    with pytest.raises(ValueError, match="found NaN"):
        to_pil(torch.full((3, 2, 2), torch.nan))


def test_sheet_shows_every_pixel_as_a_block_in_its_place():
    noise = torch.rand(3, 64, 64) * 2 - 1
    drawn = sheet([[noise, plain((64, 64), 1.0)], [None, plain((32, 64), -1.0)]])
    x0 = y0 = 16
    assert drawn.size == (16 + 128 + 8 + 128 + 16,) * 2
    cells = np.array(drawn)
    block = cells[y0 : y0 + 128, x0 : x0 + 128]
    assert np.array_equal(block, np.array(to_pil(noise)).repeat(2, 0).repeat(2, 1))
    assert (cells[y0 : y0 + 128, x0 + 136 : x0 + 264] == 255).all()
    assert (cells[y0 + 136 : y0 + 264, x0 : x0 + 128] == cells[0, 0]).all()  # an empty cell is paper
    wide = cells[y0 + 136 : y0 + 264, x0 + 136 : x0 + 264]
    assert (wide[32:96] == 0).all() and (wide[:32] == cells[0, 0]).all() and (wide[96:] == cells[0, 0]).all()


def test_large_images_shrink_and_keep_their_shape():
    drawn = sheet([[plain((600, 1200), 1.0)]])
    assert count(drawn, (255, 255, 255)) == 256 * 128


def test_labels_are_drawn_beside_the_pictures_and_inside_the_sheet():
    images = [[plain((128, 128), 1.0)] * 2] * 2
    bare = sheet(images)
    assert count(bare, (255, 255, 255)) == 4 * 128 * 128 and len(np.unique(np.array(bare))) <= 4
    rows, columns = ["sketch", "a row that is called something very long"], ["b", "Unbreakably" * 6]
    drawn = sheet(images, rows, columns, "A title that has to be wrapped as well " * 3)
    assert count(drawn, (255, 255, 255)) == 4 * 128 * 128  # no label over a picture
    paper = np.array(Image.new("RGB", (1, 1), PAPER))[0, 0]
    ink = (np.array(drawn) != paper).any(-1)
    assert not ink[:8].any() and not ink[:, :8].any() and not ink[:, -8:].any()
    white = (np.array(drawn) == 255).all(-1)
    top, left = int(white.any(1).argmax()), int(white.any(0).argmax())
    assert ink[:top].any() and ink[top:, : left - 8].any()


def test_labels_avoid_signs_that_the_font_lacks():
    image = [[plain((128, 128), 1.0)]]
    assert sheet(image, title="a \u00d7 b → é").tobytes() == sheet(image, title="a x b -> e").tobytes()


@pytest.mark.parametrize(
    ("images", "rows", "columns", "message"),
    [
        ([], (), (), "expected at least one image on a sheet, found none"),
        ([[None]], (), (), "expected at least one image on a sheet, found none"),
        ([[plain((8, 8), 0.0)]], ["a", "b"], (), "expected 1 row and 1 column labels, found 2 and 0"),
        ([[plain((8, 8), 0.0)] * 2], (), ["a"], "expected 1 row and 2 column labels, found 0 and 1"),
    ],
)
def test_a_sheet_that_does_not_fit_is_refused(images, rows, columns, message):
    with pytest.raises(ValueError, match=message):
        sheet(images, rows, columns)


def test_previews_come_in_one_size_and_by_name(batch):
    decomposition = Decomposition({"grey": Grey()})
    reps = decomposition(batch)
    shown = previews(decomposition, reps, 65)
    assert shown["grey"].shape == (2, 3, 32, 64)
    assert torch.allclose(shown["grey"][:, 0, 5, 5], batch["image"].mean((1, 2, 3)))
    with pytest.raises(KeyError, match="no preview of depth; this decomposition has grey"):
        previews(decomposition, {"depth": torch.zeros(1, 1)}, 64)
    drawn = decomposed(batch["image"], decomposition, reps, ["one", "two"], "Taken apart")
    grey = tuple(np.array(to_pil(shown["grey"][0]))[0, 0])
    assert count(drawn, grey) >= 64 * 128


def test_a_recipe_comes_back_and_the_pixels_with_it(tmp_path):
    image, path = torch.rand(3, 20, 30) * 2 - 1, tmp_path / "new" / "a.png"
    save_png(path, image, RECIPE)
    assert read_recipe(path) == RECIPE
    with Image.open(path) as picture:
        assert np.array_equal(np.array(picture), np.array(to_pil(image)))
    save_png(path, image)
    assert b"composer" not in path.read_bytes()
    with pytest.raises(ValueError, match="has no recipe"):
        read_recipe(path)
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    save_png(path, plain((8, 8), 0.0), RECIPE)
    before = path.read_bytes()
    for recipe in ({"x": float("nan")}, {"x": path}, {"x": "y" * 8_000_001}):
        with pytest.raises(ValueError, match="expected a recipe"):
            save_png(path, plain((8, 8), 1.0), recipe)
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        save_png(path, plain((8, 8), 1.0), RECIPE)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged"),
        ("[" * 200_000, "is damaged"),
        ("[1]", "to be a JSON object, found list"),
        (json.dumps({"x": "y" * 8_000_001}), "more than 8000000"),
    ],
)
def test_a_strangers_recipe_is_refused(tmp_path, text, message):
    info = PngInfo()
    info.add_itxt("composer", text)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", pnginfo=info)
    with pytest.raises(ValueError, match=message):
        read_recipe(tmp_path / "a.png")


def test_recipes_are_read_from_png_files_alone(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture at all")
    Image.new("RGB", (4, 4)).save(tmp_path / "b.jpg")
    for name in ("a.png", "b.jpg"):
        with pytest.raises(ValueError, match="cannot be read as a PNG"):
            read_recipe(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_recipe(tmp_path / "c.png")


def test_a_recipe_that_inflates_is_refused(tmp_path):
    save_png(tmp_path / "a.png", plain((4, 4), 0.0))
    data = (tmp_path / "a.png").read_bytes()
    body = b"iTXt" + b"composer\0\1\0\0\0" + zlib.compress(b'{"x": "' + b"y" * 50_000_000 + b'"}')
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    (tmp_path / "a.png").write_bytes(data[:33] + chunk + data[33:])  # behind the header
    with pytest.raises(ValueError, match=r"cannot be read as a PNG|has no recipe"):
        read_recipe(tmp_path / "a.png")


class Page(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.open, self.images, self.cells, self.scripts = [], [], [], 0
        self.policy, self.styles = "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.scripts += tag == "script"
        if "http-equiv" in dict(attrs):
            self.policy = dict(attrs)["content"]
        if tag == "img":
            self.images.append(dict(attrs)["src"])

    def handle_data(self, data):
        if self.open[-1:] == ["style"] and not self.styles:
            self.styles.append(data)
        if self.open[-1:] in (["td"], ["th"]) and data.strip():
            self.cells.append(data)


def test_the_page_shows_pictures_and_tables_and_needs_nothing_else(tmp_path):
    picture = tmp_path / "shots" / "a #1.png"
    save_png(picture, plain((8, 8), 0.0))
    sections = [
        Section(title="<script>", text="a & b", pictures=[(picture, 'a "quoted" caption')]),
        Section(title="Adherence", table=Table(["name", "closed"], [["<b>palette</b>", "-0.8"], ["-", "1"]])),
    ]
    path = html_index(tmp_path, sections, "Demo")
    text = path.read_text()
    page = Page(text)
    assert page.images == ["shots/a%20%231.png"] and page.scripts == 0
    assert page.cells == ["name", "closed", "<b>palette</b>", "-0.8", "-", "1"]
    assert "a &amp; b" in text and not re.search(r"https?:|@import|url\(", text)
    rules = dict(rule.strip().split(" ", 1) for rule in page.policy.split(";"))
    style = base64.b64encode(hashlib.sha256(page.styles[0].encode()).digest()).decode()
    assert rules == {
        "default-src": "'none'",
        "img-src": "'self' file:",
        "style-src": f"'sha256-{style}'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert " style=" not in text  # which the policy would not let through
    with pytest.raises(FileNotFoundError, match="found none at"):
        html_index(tmp_path, [Section(title="x", pictures=[(tmp_path / "gone.png", "")])])
    assert path.read_text() == text


def test_a_page_of_files_whose_names_are_no_text(tmp_path):
    name = os.fsdecode(b"\xff<b>.png")
    try:
        save_png(tmp_path / name, plain((8, 8), 0.0))
    except OSError:
        pytest.skip("the file system takes no such names")
    text = html_index(tmp_path, [Section(title=name, pictures=[(tmp_path / name, name)])], "\x1b\udcff").read_text()
    page = Page(text)
    assert os.fsdecode(unquote_to_bytes(page.images[0])) == name
    assert "<h2>\ufffd&lt;b&gt;.png</h2>" in text and "<h1> \ufffd</h1>" in text
