"""Masks as people save them: each is read rightly, or refused with a reason."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from composer.images.masks import read_mask
from composer.images.reading import Reason, Refused
from composer.tasks.editing import open_region
from tests.odd_pictures import png_bytes, tiff_bytes

H, W = 40, 50
WHERE = np.zeros((H, W), bool)
WHERE[8:25, 10:33] = True
BYTE = WHERE * np.uint8(255)
OTHERWISE = np.random.default_rng(0).integers(0, 120, (H, W, 3), np.uint8)
"""Dark colours that a mask by transparency has and nobody sees."""


def pillow(values, format="PNG", mode=None, **options):
    def write(path):
        picture = Image.fromarray(values)
        (picture.convert(mode) if mode else picture).save(path, format, **options)

    return write


def raw(data):
    return lambda path: path.write_bytes(data)


def colours(path, *table, index=WHERE):
    picture = Image.fromarray(index.astype(np.uint8), "P")
    picture.putpalette(sum(table, ()))
    picture.save(path, "PNG")


def key(colour):
    """A PNG in which a colour, at least, is transparent."""
    values = np.where(WHERE[..., None], np.array([200, 0, 0]), np.array([9, 9, 9])).astype(np.uint8)
    return raw(png_bytes(values, 8, 2, (b"tRNS", np.array(colour, ">u2").tobytes())))


def ramp():
    return np.linspace(0, 1, W)[None].repeat(H, 0)


RIGHT = {
    "grey": pillow(BYTE),
    "1 bit": pillow(WHERE),
    "1 bit tiff": pillow(WHERE, "TIFF"),
    "in colours": pillow(np.dstack([BYTE] * 3)),
    "jpeg": pillow(BYTE, "JPEG", quality=60),
    "bad jpeg in colours": pillow(np.dstack([BYTE] * 3), "JPEG", quality=20),
    "webp": pillow(np.dstack([BYTE] * 3), "WEBP", quality=50),
    "gif": pillow(BYTE, "GIF"),
    "palette": lambda path: colours(path, (0, 0, 0), (255, 255, 255)),
    "palette upside down": lambda path: colours(path, (255, 255, 255), (0, 0, 0), index=~WHERE),
    "16 bits": pillow(WHERE * np.uint16(65535)),
    "16 bits, barely half": pillow(WHERE * np.uint16(33000)),
    "16 bits that hold 8": pillow(WHERE * np.uint16(255)),
    "16 bits where 0 is white": raw(tiff_bytes((~WHERE).astype(np.uint16) * 65535, 0)),
    "32 bits of 0 and 255": pillow(WHERE * np.int32(255), "TIFF"),
    "floats to 1": pillow(WHERE.astype(np.float32), "TIFF"),
    "floats to 255": pillow(WHERE * np.float32(255), "TIFF"),
    "floats from -1": pillow(WHERE * np.float32(2) - 1, "TIFF"),
    "soft floats": pillow(np.clip(WHERE + (ramp() - 0.5) * 0.8, 0, 1).astype(np.float32), "TIFF"),
    "labels": pillow(WHERE.astype(np.uint8)),
    "labels of 16 bits": pillow(WHERE.astype(np.uint16)),
    "labels of 32 bits": pillow(WHERE.astype(np.int32), "TIFF"),
    "alpha": pillow(np.dstack([OTHERWISE, BYTE])),
    "alpha of grey": pillow(np.dstack([OTHERWISE[..., 0], BYTE])),
    "white on nothing": pillow(np.dstack([BYTE, BYTE])),
    "alpha in webp": pillow(np.dstack([OTHERWISE, BYTE]), "WEBP", lossless=True, exact=True),
    "grey with alpha that is full": pillow(np.dstack([BYTE, np.full_like(BYTE, 255)])),
    "a transparent colour": key([9, 9, 9]),
    "a transparent grey": raw(png_bytes(BYTE, 8, 0, (b"tRNS", b"\0\0"))),
    "a transparent grey of 4 bits": raw(png_bytes(WHERE * np.uint8(5) + 2, 4, 0, (b"tRNS", b"\0\2"))),
    "a transparent entry": lambda path: (
        Image.fromarray(WHERE.astype(np.uint8)).convert("P").save(path, "PNG", transparency=0)
    ),
    "a gif's transparent entry": lambda path: (
        Image.fromarray(WHERE.astype(np.uint8)).convert("P").save(path, "GIF", transparency=0)
    ),
}

REFUSED = {
    "labels 0 to 3": (pillow((ramp() * 3).astype(np.uint8)), "nothing in it is white"),
    "dark grey": (pillow(WHERE * np.uint8(90)), "nothing in it is white"),
    "16 bits that hold 8, soft": (pillow((ramp() * 255).astype(np.uint16)), "nothing in it is white"),
    "labels all 1": (pillow(np.ones((H, W), np.uint8)), "nothing in it is white"),
    "red": (pillow(np.dstack([BYTE, BYTE * 0, BYTE * 0])), "coloured"),
    "green on white": (pillow(np.dstack([~BYTE, np.full_like(BYTE, 255), ~BYTE])), "coloured"),
    "labels with a palette": (lambda path: colours(path, (0, 0, 0), (128, 0, 0)), "coloured"),
    "a photograph with holes": (
        pillow(np.dstack([(ramp() * 255).astype(np.uint8)] * 3 + [BYTE])),
        "partly bright and partly dark",
    ),
    "black and white with a hole": (
        pillow(np.dstack([BYTE, np.where(ramp() > 0.1, 255, 0).astype(np.uint8)])),
        "partly bright and partly dark",
    ),
    "nan": (pillow(np.where(WHERE, 1, np.nan).astype(np.float32), "TIFF"), "NaN"),
    "a program": (raw(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 40\n%%EndComments\nshowpage\n"), "not an image"),
    "a pipe": (os.mkfifo, "not a regular file"),
    "a folder": (os.mkdir, "not a regular file"),
    "cut": (raw(png_bytes(BYTE, 8, 0)[:60]), "damaged"),
    "a bomb": (raw(b"P5 60000 60000 255\n"), "megapixels"),
}


@pytest.mark.parametrize("kind", RIGHT)
def test_a_mask_is_read_rightly(tmp_path, kind):
    RIGHT[kind](tmp_path / "mask.png")
    found = open_region(str(tmp_path / "mask.png"), (H, W))
    assert found.dtype == torch.float32
    assert np.array_equal(found[0, 0].numpy(), WHERE)


@pytest.mark.parametrize("kind", REFUSED)
def test_a_mask_that_says_two_things_or_none_is_refused(tmp_path, kind):
    write, reason = REFUSED[kind]
    write(tmp_path / "mask.png")
    with pytest.raises(Refused, match=reason):
        open_region(str(tmp_path / "mask.png"), (H, W))


def test_an_empty_and_a_full_mask_are_what_they_are(tmp_path):
    for level in (0, 255):
        Image.new("L", (9, 7), level).save(tmp_path / "mask.png")
        assert torch.equal(read_mask(tmp_path / "mask.png"), torch.full((1, 1, 7, 9), level / 255))


def test_a_mask_is_turned_as_its_picture_is(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(np.rot90(BYTE)).save(tmp_path / "mask.png", exif=exif)
    assert np.array_equal(read_mask(tmp_path / "mask.png")[0, 0].numpy(), WHERE)


def test_the_reason_is_that_it_is_no_mask(tmp_path):
    REFUSED["red"][0](tmp_path / "mask.png")
    with pytest.raises(Refused) as caught:
        read_mask(tmp_path / "mask.png")
    assert caught.value.reason is Reason.NO_MASK
