"""What large pictures take: memory for a picture once in floats, and no more of a file than a picture can need."""

import struct

import numpy as np
import pytest
import torch
from PIL import Image

from composer.images.reading import Reason, Refused, load_rgb, resize_and_crop
from composer.images.sheet import save_png, sheet, thumbnail
from composer.tasks.editing import Frame, Original, open_region
from tests.hostility import run

W, H = 3200, 2400
BYTES = {"decomposing": 1.5e9 / 48e6, "editing": 2.5e9 / 48e6}
"""A pixel, at most: as a picture of 8000 x 6000 has for 1.5 and 2.5 GB."""


@pytest.fixture(scope="module")
def pixels():
    y, x = np.mgrid[:H, :W]
    return np.stack([x // 13, y // 10, (x + y) // 23, 255 - x // 16], 2).astype(np.uint8)


WRITERS = {
    "jpeg": lambda pixels, path: Image.fromarray(pixels[..., :3]).save(path, "JPEG"),
    "png": lambda pixels, path: Image.fromarray(pixels[..., :3]).save(path, "PNG", compress_level=1),
    "png with alpha": lambda pixels, path: Image.fromarray(pixels).save(path, "PNG", compress_level=1),
    "png of 16 bits": lambda pixels, path: Image.fromarray(pixels[..., 0] * np.uint16(257)).save(path, "PNG"),
    "palette": lambda pixels, path: Image.fromarray(pixels[..., 0], "P").save(path, "PNG"),
    "tiff of floats": lambda pixels, path: Image.fromarray(pixels[..., 0].astype(np.float32)).save(path, "TIFF"),
    "webp": lambda pixels, path: Image.fromarray(pixels).save(path, "WEBP", method=0),
    "bmp": lambda pixels, path: Image.fromarray(pixels[..., :3]).save(path, "BMP"),
}


def quietly(work):
    """An exit status, whatever it returns."""
    work()
    return 0


def taken(folder, work, per_pixel):
    """Runs it; it may take so many bytes a pixel."""
    outcome = run([], folder, call=lambda _: quietly(work), megabytes=per_pixel * W * H / 1e6)
    assert not outcome.broken and outcome.status == 0, outcome
    return outcome.megabytes


@pytest.mark.parametrize("kind", WRITERS)
def test_taking_a_large_picture_apart_takes_it_in_floats_once(pixels, tmp_path, kind):
    WRITERS[kind](pixels, tmp_path / "a.png")
    taken(tmp_path / "out", lambda: resize_and_crop(load_rgb(tmp_path / "a.png").image, 64).sum(), BYTES["decomposing"])


@pytest.mark.parametrize("kind", ["png", "png with alpha", "png of 16 bits"])
def test_editing_a_large_picture_copies_its_rows_alone(pixels, tmp_path, kind):
    WRITERS[kind](pixels, tmp_path / "a.png")

    def edit():
        original = Original.open(tmp_path / "a.png")
        frame = Frame.around(original, open_region("0.1,0.1,0.95,0.95", (H, W)))
        frame.seen(64)
        save_png(tmp_path / "out" / "b.png", frame.paste(torch.zeros(1, 3, 64, 64))[0])

    taken(tmp_path / "out", edit, BYTES["editing"])
    before, after = (np.asarray(Image.open(path)) for path in (tmp_path / "a.png", tmp_path / "out" / "b.png"))
    assert (before[: H // 10] == after[: H // 10]).all() and (before != after).any()


def sparse(start, size=6_000_000_000):
    """A file of so many bytes that takes no room."""

    def write(path):
        with path.open("wb") as file:
            file.write(start)
            file.truncate(size)

    return write


def tag(number, kind, count):
    return struct.pack("<HHII", number, kind, count, 300)


HUGE = {
    "nothing": (sparse(b""), Reason.NOT_AN_IMAGE),
    "a tiff without a directory": (sparse(b"II*\0\x08\0\0\0"), Reason.NOT_AN_IMAGE),
    "a tiff of a long directory": (
        sparse(b"II*\0\x08\0\0\0" + struct.pack("<H", 2) + tag(256, 4, 1) + tag(273, 4, 1_400_000_000)),
        Reason.TOO_LARGE,
    ),
    "a png of a long text": (sparse(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 2**31 - 1) + b"tEXt"), Reason.TOO_LARGE),
    "a webp": (sparse(b"RIFF\xff\xff\xff\xffWEBPVP8L"), Reason.TOO_LARGE),
    "an avif": (sparse(b"\0\0\0\x18ftypavif"), Reason.TOO_LARGE),
    "a bmp of more pixels": (
        sparse(b"BM" + bytes(8) + struct.pack("<IIiiHHIIiiII", 54, 40, 30000, 30000, 1, 24, *[0] * 6)),
        Reason.TOO_LARGE,
    ),
}


@pytest.mark.parametrize("kind", HUGE)
def test_a_huge_file_is_not_read_whole(tmp_path, kind):
    write, reason = HUGE[kind]
    write(tmp_path / "a.tif")
    found = []

    def read():
        try:
            load_rgb(tmp_path / "a.tif")
        except Refused as error:
            found.append(error.reason)

    outcome = run([], tmp_path / "out", seconds=20, megabytes=200, call=lambda _: quietly(read))
    assert not outcome.broken and found == [reason], (outcome, found)


def test_a_jpeg_of_endless_scans_is_refused_at_once(tmp_path):
    Image.new("RGB", (640, 480), "teal").save(tmp_path / "a.jpg", progressive=True)
    data = (tmp_path / "a.jpg").read_bytes()
    assert load_rgb(tmp_path / "a.jpg").image.shape == (3, 480, 640)
    last = data[data.rindex(b"\xff\xda") : -2]
    (tmp_path / "a.jpg").write_bytes(data[:-2] + 100_000 * last + b"\xff\xd9")
    with pytest.raises(Refused, match="100010 scans") as caught:
        load_rgb(tmp_path / "a.jpg")
    assert caught.value.reason is Reason.TOO_LARGE


def test_a_picture_at_the_start_of_a_huge_file_is_read(tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.tif")
    with (tmp_path / "a.tif").open("r+b") as file:
        file.truncate(6_000_000_000)
    outcome = run([], tmp_path / "out", megabytes=100, call=lambda _: quietly(lambda: load_rgb(tmp_path / "a.tif")))
    assert not outcome.broken, outcome


def test_pictures_shown_on_a_sheet_are_kept_small():
    """Exactly as the sheet would have shrunk them."""
    large, small = torch.rand(3, 700, 500) * 2 - 1, torch.rand(3, 40, 50) * 2 - 1
    assert max(thumbnail(large).shape) == 256 and thumbnail(small) is small
    assert sheet([[large, small]]).tobytes() == sheet([[thumbnail(large), thumbnail(small)]]).tobytes()
