"""Which image files an edit can write back without loss, decided from their headers."""

from collections.abc import Sequence

from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, COLORMAP, EXTRASAMPLES, SAMPLEFORMAT, SAMPLESPERPIXEL, TiffImageFile

from composer.images.pixels import raw_mode

MODES = ("L", "LA", "RGB", "RGBA", "I;16")
"""Pillow's modes of images that can be edited; those of PNG."""

SPELLED_OUT = ("1", "P", "PA", "I;16B")
"""Modes that convert to one of these without loss."""

DEEP = "16 bits per channel and colours or transparency, of which only 8 would be kept: save it with 8 bits per channel"


def loss(header: Image.Image) -> str | None:
    """Describes what an edit would lose of an image, and what to convert it to; None if nothing.

    An edit writes a PNG with the file's values. So it accepts grey of up to 8 bits or of 16, and grey with alpha,
    colours, colours with alpha and palettes of up to 8 bits per channel; a PNG of 8 or 16 bits must hold every value.

    Args:
        header: An opened image, not yet decoded.
    """
    if header.mode not in MODES and header.mode not in SPELLED_OUT and not _is_deep_pgm(header):
        return f"its pixels have Pillow's mode {header.mode}: save it as a PNG with 8 bits per channel, grey or in RGB"
    if isinstance(header, TiffImageFile):
        return _tiff(header)
    raw = raw_mode(header)
    if header.format == "PNG" and "16" in raw and (header.mode != "I;16" or "transparency" in header.info):
        return DEEP
    if header.format == "PNG" and b"cICP" in _start(header).partition(b"IDAT")[0]:
        return "its colours are declared by cICP, which would be lost: save it in sRGB, or with an ICC profile"
    if header.format == "BMP" and raw in ("BGR;15", "BGR;16"):
        return "5 or 6 bits per channel, which 8 can only round: save it as a PNG"
    if header.format == "PPM":
        return _ppm(header)
    if header.format == "JPEG2000":
        return _jpeg_2000(header)
    if header.format == "AVIF" and any(flags & 0x60 for flags in _av1_flags(_start(header))):
        return "10 or 12 bits per channel, of which only 8 would be kept: save it as a PNG with 8 bits per channel"
    return None


def _tiff(header: TiffImageFile) -> str | None:
    tags = header.tag_v2
    bits, extra = tags.get(BITSPERSAMPLE, (1,)), tags.get(EXTRASAMPLES, ())
    if 1 in extra:
        return "its colours are multiplied by its alpha: save it with straight (unassociated) alpha, or as a PNG"
    if max(bits) > 8 and (tuple(bits) != (16,) or header.mode not in ("I;16", "I;16B")):
        return DEEP if max(bits) == 16 else f"it has {max(bits)} bits per channel: save it with 8 or 16"
    if tags.get(SAMPLESPERPIXEL, 1) != len(header.getbands()):
        return f"{tags[SAMPLESPERPIXEL]} values per pixel, {len(header.getbands())} would be kept: save it as a PNG"
    if set(tags.get(SAMPLEFORMAT, (1,))) != {1}:
        return "its values have a sign: save it as a PNG"
    if header.mode in ("P", "PA") and not _is_8_bit(tags.get(COLORMAP, ())):
        return "its palette has 16 bits per channel, of which only 8 would be kept: save it as a PNG in RGB"
    return None


def _is_8_bit(colours: Sequence[int]) -> bool:
    """Whether 16-bit colours encode 8-bit ones, in either of the usual ways."""
    return all(colour % 257 == 0 for colour in colours) or all(colour % 256 == 0 for colour in colours)


def _is_deep_pgm(header: Image.Image) -> bool:
    return header.format == "PPM" and header.mode == "I"


def _ppm(header: Image.Image) -> str | None:
    """Pillow scales other maxima to 255 or 65535, which is exact for integer factors only."""
    args = header.tile[0].args if isinstance(header, ImageFile) else None
    most = args[1] if isinstance(args, tuple) and len(args) > 1 and isinstance(args[1], int) else 0
    top = 65535 if header.mode == "I" else 255
    if most > 255 and header.mode != "I":
        return DEEP
    if most and top % most:
        return f"its maximum is {most}, that of a PNG {top}: save it as a PNG"
    return None


def _jpeg_2000(header: Image.Image) -> str | None:
    """Reads the depths from the codestream (ISO/IEC 15444-1, A.5.1)."""
    data = _start(header)
    place = data.find(b"\xff\x4f\xff\x51")
    count = int.from_bytes(data[place + 40 : place + 42], "big")
    depths = set(data[place + 42 : place + 42 + 3 * count : 3])
    exact = depths == ({15} if header.mode == "I;16" else {7}) and count == len(header.getbands())
    if place >= 0 and exact and header.mode not in ("P", "PA"):
        return None
    return "its values do not have 8 bits per channel: save it as a PNG with 8 bits per channel"


def expand_palette(picture: Image.Image) -> Image.Image:
    """Converts a decoded image to one of `MODES`: palette indices become colours, a transparent colour alpha."""
    clear = picture.has_transparency_data
    grey = picture.mode in ("1", "L", "LA")
    mode = picture.mode if picture.mode == "I;16" else ("LA" if clear else "L") if grey else "RGBA" if clear else "RGB"
    spelled = picture if picture.mode == mode else picture.convert(mode)
    spelled.info.pop("transparency", None)
    return spelled


def _av1_flags(data: bytes) -> list[int]:
    """Finds the bytes of an AVIF that give its bit depths (AV1 in ISOBMFF, 2.3.3)."""
    found = data.split(b"av1C")[1:]
    return [part[2] for part in found if len(part) > 2]


def _start(header: Image.Image) -> bytes:
    """Reads a file's first megabyte, which contains its headers."""
    assert isinstance(header, ImageFile) and header.fp is not None
    place = header.fp.tell()
    header.fp.seek(0)
    data = header.fp.read(1 << 20)
    header.fp.seek(place)
    return data
