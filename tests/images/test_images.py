import os
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from composer.images.reading import Reason, Refused, load_rgb, resize_and_crop

H, W = 40, 48
Y, X = np.mgrid[:H, :W]
RGB = np.stack([X * 5, Y * 6, 200 - X * 2 - Y * 2], -1).astype(np.uint8)
GREY = (X * 3 + Y * 2).astype(np.uint8)
DEEP = (X * 1000 + Y * 400).astype(np.uint16)
ALPHA = np.where(X < 20, 0, 51 + Y * 5).astype(np.uint8)
CMYK = np.stack([X * 5, Y * 6, X + Y, Y // 2], -1).astype(np.uint8)
SHARE = ALPHA[..., None] / 255
ON_WHITE = RGB / 255 * SHARE + 1 - SHARE


def grey(values):
    return np.repeat(values[..., None], 3, -1)


def png(path, depth, colour, rows, *chunks):
    """Writes a PNG by hand: what Pillow cannot write."""
    h, w = rows.shape[:2]
    header = struct.pack(">IIBBBBB", w, h, depth, colour, 0, 0, 0)
    data = b"".join(b"\0" + row.astype(">u2" if depth == 16 else "u1").tobytes() for row in rows)
    body = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in body)
    )


def swapped_profile():
    """The sRGB profile with red and blue primaries exchanged."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    tags = {bytes(profile[i : i + 4]): i for i in range(132, 132 + 12 * struct.unpack(">I", profile[128:132])[0], 12)}
    for tag, other in ((b"rXYZ", b"bXYZ"), (b"bXYZ", b"rXYZ")):
        profile[tags[tag] : tags[tag] + 4] = other
    return bytes(profile)


def save(array, format, mode=None, **options):
    def write(path):
        image = Image.fromarray(array)
        (image.convert(mode) if mode else image).save(path, format, **options)

    return write


def frames(format):
    def write(path):
        first, second = (Image.fromarray(a).quantize(64) for a in (RGB, 255 - RGB))
        first.save(path, format, save_all=True, append_images=[second])

    return write


def palette_png(path):
    image = Image.fromarray(GREY // 64, "P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    image.save(path, "PNG", transparency=bytes([255, 0, 128, 255]))


def palette_truth():
    colour = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [9 / 255] * 3])[GREY // 64]
    alpha = np.array([255, 0, 128, 255])[GREY // 64, None] / 255
    return colour * alpha + 1 - alpha


def cmyk_truth():
    c, m, y, k = (CMYK[..., i] / 255 for i in range(4))
    return np.stack([(1 - c) * (1 - k), (1 - m) * (1 - k), (1 - y) * (1 - k)], -1)


LAB = np.stack([60 + X * 2 + Y, X // 2, Y // 2 - 10], -1).astype(np.uint8)


def lab_truth():
    from skimage.color import lab2rgb

    return lab2rgb(np.stack([LAB[..., 0] / 2.55, LAB[..., 1].view(np.int8), LAB[..., 2].view(np.int8)], -1))


def quantized_truth():
    return np.asarray(Image.fromarray(RGB).quantize(64).convert("RGB")) / 255


def text(content):
    return lambda path: path.write_bytes(content)


def cut(array, format, share, **options):
    def write(path):
        save(array, format, **options)(path)
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])

    return write


def pgm(maximum):
    values = DEEP.astype(int) * maximum // int(DEEP.max())
    return text(b"P5 %d %d %d\n" % (W, H, maximum) + values.astype(">u2").tobytes())


FLOAT = (DEEP / DEEP.max()).astype(np.float32)
BROKEN = {name: FLOAT.copy() for name in ("nan", "inf")}
BROKEN["nan"][3, 3], BROKEN["inf"][3, 3] = np.nan, np.inf
NOISE = np.random.default_rng(0).integers(0, 256, (H, W, 3), np.uint8)

RIGHT = {  # kind: (how it is written, what it shows in [0, 1], tolerance)
    "png": (save(RGB, "PNG"), RGB / 255, 0),
    "bmp": (save(RGB, "BMP"), RGB / 255, 0),
    "tiff": (save(RGB, "TIFF"), RGB / 255, 0),
    "lzw tiff": (save(RGB, "TIFF", compression="tiff_lzw"), RGB / 255, 0),
    "ppm": (save(RGB, "PPM"), RGB / 255, 0),
    "lossless webp": (save(RGB, "WEBP", lossless=True), RGB / 255, 0),
    "lossless jpeg 2000": (save(RGB, "JPEG2000"), RGB / 255, 0),
    "avif": (save(RGB, "AVIF", quality=100, subsampling="4:4:4"), RGB / 255, 0.02),
    "jpeg": (save(RGB, "JPEG", quality=98, subsampling=0), RGB / 255, 0.02),
    "progressive jpeg": (save(RGB, "JPEG", quality=98, subsampling=0, progressive=True), RGB / 255, 0.02),
    "grey jpeg": (save(GREY, "JPEG", quality=98), grey(GREY / 255), 0.02),
    "cmyk jpeg": (lambda p: Image.fromarray(CMYK, "CMYK").save(p, "JPEG", quality=100), cmyk_truth(), 0.03),
    "cmyk tiff": (lambda p: Image.fromarray(CMYK, "CMYK").save(p, "TIFF"), cmyk_truth(), 0.01),
    "ycbcr tiff": (save(RGB, "TIFF", "YCbCr"), RGB / 255, 0.012),
    "grey": (save(GREY, "PNG"), grey(GREY / 255), 0),
    "1 bit": (save(GREY > 99, "PNG"), grey(GREY > 99), 0),
    "1 bit tiff": (save(GREY > 99, "TIFF"), grey(GREY > 99), 0),
    "16 bit grey": (save(DEEP, "PNG"), grey(DEEP / 65535), 1e-6),
    "16 bit big-endian tiff": (save(DEEP.astype(">u2"), "TIFF"), grey(DEEP / 65535), 1e-6),
    "16 bit rgb": (
        lambda p: png(p, 16, 2, np.stack([DEEP, DEEP // 2, DEEP // 3], -1)),
        np.stack([DEEP, DEEP // 2, DEEP // 3], -1) / 65535,
        1 / 255,
    ),
    "16 bit pgm": (pgm(65535), grey(FLOAT), 2e-5),
    "12 bit pgm": (pgm(4095), grey(FLOAT), 3e-4),
    "8 bits in 32": (save(GREY.astype(np.int32), "TIFF"), grey(GREY / 255), 1e-6),
    "16 bits in 32": (save(DEEP.astype(np.int32), "TIFF"), grey(DEEP / 65535), 1e-6),
    "32 bits": (save((FLOAT * 2e9).astype(np.int32), "TIFF"), grey(FLOAT), 1e-6),
    "32 bits with negative values": (save(((FLOAT - 0.5) * 4e9).astype(np.int32), "TIFF"), grey(FLOAT), 1e-6),
    "float": (save(FLOAT * 0.8, "TIFF"), grey(FLOAT * 0.8), 1e-6),
    "float up to 255": (save(FLOAT * 250, "TIFF"), grey(FLOAT * 250 / 255), 1e-6),
    "float in metres": (save(FLOAT * 90000 + 5000, "TIFF"), grey(FLOAT), 1e-6),
    "constant float": (save(np.full((H, W), 1e6, np.float32), "TIFF"), np.zeros((H, W, 3)), 0),
    "alpha": (save(np.dstack([RGB, ALPHA]), "PNG"), ON_WHITE, 1e-6),
    "alpha webp": (save(np.dstack([RGB, ALPHA]), "WEBP", lossless=True, exact=True), ON_WHITE, 1e-6),
    "grey and alpha": (save(np.dstack([GREY, ALPHA]), "PNG"), grey(GREY / 255) * SHARE + 1 - SHARE, 1e-6),
    "palette": (lambda p: Image.fromarray(RGB).quantize(64).save(p, "PNG"), quantized_truth(), 0),
    "palette with alpha": (palette_png, palette_truth(), 1e-6),
    "transparent grey": (
        lambda p: png(p, 8, 0, GREY, (b"tRNS", struct.pack(">H", 50))),
        grey(np.where(GREY == 50, 1, GREY / 255)),
        1e-6,
    ),
    "transparent colour": (
        lambda p: png(p, 8, 2, RGB, (b"tRNS", struct.pack(">3H", *RGB[9, 9]))),
        np.where((RGB[9, 9] == RGB).all(-1, keepdims=True), 1, RGB / 255),
        1e-6,
    ),
    "transparent 16 bit grey": (
        lambda p: png(p, 16, 0, DEEP, (b"tRNS", struct.pack(">H", 5000))),
        grey(np.where(DEEP == 5000, 1, DEEP / 65535)),
        1e-6,
    ),
    "animated gif": (frames("GIF"), quantized_truth(), 0),
    "tiff of two pages": (frames("TIFF"), quantized_truth(), 0),
    "profile": (save(RGB, "PNG", icc_profile=swapped_profile()), RGB[..., ::-1] / 255, 0.012),
    "profile and alpha": (
        save(np.dstack([RGB, ALPHA]), "PNG", icc_profile=swapped_profile()),
        RGB[..., ::-1] / 255 * SHARE + 1 - SHARE,
        0.012,
    ),
    "profile and palette": (
        lambda p: Image.fromarray(RGB).quantize(64).save(p, "PNG", icc_profile=swapped_profile()),
        quantized_truth()[..., ::-1],
        0.012,
    ),
    "profile of other colours": (save(GREY, "PNG", icc_profile=swapped_profile()), grey(GREY / 255), 0),
    "broken profile": (save(RGB, "PNG", icc_profile=b"nonsense" * 30), RGB / 255, 0),
    "broken exif": (save(RGB, "PNG", exif=b"Exif\0\0nonsense"), RGB / 255, 0),
    "tiff turned": (save(RGB, "TIFF", tiffinfo={274: 6}), np.rot90(RGB, -1) / 255, 0),
    "lab tiff": (lambda p: Image.fromarray(LAB, "LAB").save(p, "TIFF"), lab_truth(), 0.015),
}

REFUSED = {
    "missing": (lambda p: None, Reason.MISSING),
    "folder": (Path.mkdir, Reason.NOT_A_FILE),
    "pipe": (os.mkfifo, Reason.NOT_A_FILE),
    "empty": (text(b""), Reason.NOT_AN_IMAGE),
    "text": (text(b"<svg></svg>"), Reason.NOT_AN_IMAGE),
    "program": (
        text(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n%%EndComments\nshowpage\n"),
        Reason.NOT_AN_IMAGE,
    ),
    "header alone": (text(b"\x89PNG\r\n\x1a\n"), Reason.NOT_AN_IMAGE),
    "narrow": (save(RGB[:, :31], "PNG"), Reason.TOO_SMALL),
    "long": (save(np.zeros((32, 257), np.uint8), "PNG"), Reason.TOO_LONG),
    "large": (text(b"P6 8001 8000 255\n"), Reason.TOO_LARGE),
    "bomb": (text(b"P6 60000 60000 255\n"), Reason.TOO_LARGE),
    "cut png": (cut(NOISE, "PNG", 0.7), Reason.DAMAGED),
    "cut jpeg": (cut(NOISE, "JPEG", 0.7), Reason.DAMAGED),
    "cut progressive jpeg": (cut(NOISE, "JPEG", 0.7, progressive=True), Reason.DAMAGED),
    "cut webp": (cut(NOISE, "WEBP", 0.7), Reason.NOT_AN_IMAGE),
    "cut gif": (cut(NOISE, "GIF", 0.7), Reason.DAMAGED),
    "cut bmp": (cut(NOISE, "BMP", 0.7), Reason.DAMAGED),
    "cut ppm": (cut(NOISE, "PPM", 0.7), Reason.DAMAGED),
    "cut jpeg 2000": (cut(NOISE, "JPEG2000", 0.7), Reason.DAMAGED),
    "nan": (save(BROKEN["nan"], "TIFF"), Reason.NOT_FINITE),
    "inf": (save(BROKEN["inf"], "TIFF"), Reason.NOT_FINITE),
}


@pytest.mark.parametrize("kind", RIGHT)
def test_an_odd_file_comes_out_right(tmp_path, kind):
    write, truth, tolerance = RIGHT[kind]
    write(tmp_path / "image.jpg")  # the name says nothing about the content
    found = load_rgb(tmp_path / "image.jpg").image
    assert found.shape[1:] == truth.shape[:2]
    error = ((found + 1) / 2 - torch.from_numpy(truth.astype(np.float64)).permute(2, 0, 1)).abs().max()
    assert error <= tolerance + 1e-6


@pytest.mark.parametrize("kind", REFUSED)
def test_an_odd_file_is_refused_with_its_one_reason(tmp_path, kind):
    write, reason = REFUSED[kind]
    write(tmp_path / "image.jpg")
    with pytest.raises(Refused, match=r"image\.jpg is refused: ") as caught:
        load_rgb(tmp_path / "image.jpg")
    assert caught.value.reason == reason
    assert pickle.loads(pickle.dumps(caught.value)).reason == reason


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_comes_out_upright(tmp_path, orientation):
    stored = {
        1: RGB,
        2: RGB[:, ::-1],
        3: RGB[::-1, ::-1],
        4: RGB[::-1],
        5: RGB.swapaxes(0, 1),
        6: np.rot90(RGB),
        7: RGB[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(RGB, -1),
    }[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "image.png", exif=exif)
    assert np.array_equal(to_bytes(load_rgb(tmp_path / "image.png").image), RGB)


def to_bytes(image):
    return ((image + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()


def test_alpha_is_kept_and_the_background_shows(tmp_path):
    save(np.dstack([RGB, ALPHA]), "PNG")(tmp_path / "image.png")
    found = load_rgb(tmp_path / "image.png", background=(-1.0, 0.0, 1.0))
    assert torch.equal(found.alpha, torch.from_numpy(ALPHA / 255).float()[None])
    assert torch.equal(found.image[:, :, :20], torch.tensor([-1.0, 0.0, 1.0])[:, None, None].expand(3, H, 20))
    save(RGB, "PNG")(tmp_path / "opaque.png")
    assert load_rgb(tmp_path / "opaque.png").alpha is None


def test_no_damaged_byte_is_a_crash(tmp_path):
    random = np.random.default_rng(0)
    writers = [save(NOISE, "PNG"), save(RGB, "JPEG"), save(RGB, "WEBP"), save(RGB, "TIFF", compression="tiff_lzw")]
    refused = 0
    for trial in range(120):
        path = tmp_path / f"{trial}.jpg"
        writers[trial % 4](path)
        data = bytearray(path.read_bytes())
        for place in random.integers(0, len(data), 6):
            data[place] = random.integers(256)
        path.write_bytes(data)
        try:
            load_rgb(path)
        except Refused:
            refused += 1
    assert 20 < refused < 120


def test_a_flag_set_by_others_does_not_let_half_an_image_through(tmp_path, monkeypatch):
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", True)
    cut(NOISE, "JPEG", 0.7)(tmp_path / "image.jpg")
    with pytest.raises(Refused, match="truncated"):
        load_rgb(tmp_path / "image.jpg")


def test_a_large_jpeg_is_decoded_small(tmp_path):
    photograph = Image.fromarray(RGB).resize((1920, 1600), Image.Resampling.BICUBIC)
    photograph.save(tmp_path / "large.jpg", quality=98)
    small, full = load_rgb(tmp_path / "large.jpg", size=64).image, load_rgb(tmp_path / "large.jpg").image
    assert full.shape == (3, 1600, 1920) and 128 <= min(small.shape[1:]) <= 256
    assert (resize_and_crop(small, 64) - resize_and_crop(full, 64)).abs().max() < 0.03


def test_resizing_is_antialiased_and_stays_in_range():
    stripes = torch.tensor([-1.0, 1.0]).repeat(128).expand(3, 256, 256)  # at the Nyquist frequency: grey when reduced
    assert resize_and_crop(stripes, 32)[:, 4:-4, 4:-4].abs().max() < 0.01
    step = torch.cat([-torch.ones(3, 64, 32), torch.ones(3, 64, 32)], 2)
    assert resize_and_crop(step, 96).abs().max() == 1


@pytest.mark.parametrize("shape", [(64, 96), (96, 64)])
def test_crops_are_central_or_drawn(shape):
    image = torch.arange(float(shape[0] * shape[1])).view(1, *shape)
    central = resize_and_crop(image, 64)
    assert torch.equal(central, image[:, 16:80] if shape[0] == 96 else image[:, :, 16:80])
    drawn = {float(resize_and_crop(image, 64, torch.Generator().manual_seed(seed))[0, 0, 0]) for seed in range(99)}
    offsets = sorted(value // shape[1] if shape[0] == 96 else value for value in drawn)
    assert offsets[0] == 0 and offsets[-1] == 32 and len(offsets) > 25
    again = [resize_and_crop(image, 64, torch.Generator().manual_seed(5)) for _ in range(2)]
    assert torch.equal(*again)
