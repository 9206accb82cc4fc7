"""From a file as people have them to one tensor: right, or refused with one reason."""

import io
import stat
import warnings
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32
from PIL import Image, ImageCms, ImageFile, ImageOps
from PIL.TiffImagePlugin import SAMPLEFORMAT, TiffImageFile
from torch import Tensor
from torch.nn import functional as F

SUFFIXES = frozenset(
    [".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2", ".ppm", ".pgm", ".pbm"]
)
"""File names that a folder is searched for; what a file really holds is read from its header."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
"""Pillow's readers that are tried. Others start programs (EPS), or are rare enough that nobody tests them."""

MAX_PIXELS = 64_000_000
MIN_SIDE = 32
MAX_ASPECT = 8

WHITE = (1.0, 1.0, 1.0)


class Reason(StrEnum):
    """Why a file is refused; each refused file has exactly one."""

    MISSING = "there is no such file"
    NOT_A_FILE = "it is not a regular file"
    UNREADABLE = "it cannot be read from disk"
    NOT_AN_IMAGE = f"it holds no image in a format that is read here ({', '.join(FORMATS)})"
    TOO_LARGE = f"it has more than {MAX_PIXELS // 1_000_000} megapixels"
    TOO_SMALL = "a side is shorter than the least that is taken"
    TOO_LONG = f"one side is more than {MAX_ASPECT} times the other"
    DAMAGED = "it is truncated or damaged"
    NOT_FINITE = "it holds NaN or infinite values"


class Refused(ValueError):
    """A file that is not used, and why.

    Attributes:
        path: The file.
        reason: The one reason.
        detail: What was found, for a person.
    """

    def __init__(self, path: Path, reason: Reason, detail: str = ""):
        super().__init__(path, reason, detail)  # all of them, so that the error survives a worker's pickling
        self.path, self.reason, self.detail = path, reason, detail

    def __str__(self) -> str:
        return f"{self.path} is refused: {self.reason}" + (f" ({self.detail})" if self.detail else "")


@dataclass(frozen=True)
class RGB:
    """One decoded image.

    Attributes:
        image: In [-1, 1], sRGB, transparent parts composited on a background.
        alpha: In [0, 1], 1 = opaque; None where the file knows no transparency.
    """

    image: Float32[Tensor, "3 h w"]
    alpha: Float32[Tensor, "1 h w"] | None = None


def load_rgb(
    path: str | Path,
    size: int | None = None,
    background: tuple[float, float, float] = WHITE,
    min_side: int = MIN_SIDE,
) -> RGB:
    """Reads an image file.

    In this order: header, first frame, EXIF orientation, range of deep images, ICC profile to sRGB, alpha. A profile
    that is broken or of other colours than the image is ignored, as browsers do, and so are profiles of images with
    more than 8 bits. Images of 32 bits are rescaled by the least of the usual ranges that holds them (1 for floats,
    255, 65535), else from their own minimum to their maximum.

    Args:
        path: A regular file.
        size: Shorter side that the caller will reduce the image to, in pixels. A large JPEG is then decoded
            at a fraction of its size, at least twice this one. None decodes every pixel.
        background: Colour under transparent parts, in [-1, 1].
        min_side: Least shorter side of an image that is taken, in pixels.

    Raises:
        Refused: The file is not used; its `reason` says why.
    """
    path = Path(path)
    data = _read(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of what is refused or repaired here
        header = _open(path, data, min_side)
        try:
            image = _first_frame(header, size)
            rgba = _deep(image, header) if image.mode.startswith(("I", "F")) else _shallow(image)
        except Exception as error:  # decoders raise nearly anything on damaged files
            raise Refused(path, Reason.DAMAGED, str(error)) from error
    if not np.isfinite(rgba).all():
        raise Refused(path, Reason.NOT_FINITE)
    return _composite(rgba, background)


def _read(path: Path) -> bytes:
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise Refused(path, Reason.NOT_A_FILE)
        return path.read_bytes()
    except FileNotFoundError as error:
        raise Refused(path, Reason.MISSING) from error
    except OSError as error:
        raise Refused(path, Reason.UNREADABLE, str(error)) from error


def _open(path: Path, data: bytes, min_side: int) -> Image.Image:
    """Reads the header and refuses by size before a pixel is decoded."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise Refused(path, Reason.TOO_LARGE, str(error)) from error
    except Exception as error:  # as above
        raise Refused(path, Reason.NOT_AN_IMAGE) from error
    (w, h), found = image.size, f"{image.width} x {image.height}"
    if w * h > MAX_PIXELS:
        raise Refused(path, Reason.TOO_LARGE, found)
    if min(w, h) < min_side:
        raise Refused(path, Reason.TOO_SMALL, f"{found}, expected at least {min_side}")
    if max(w, h) > MAX_ASPECT * min(w, h):
        raise Refused(path, Reason.TOO_LONG, found)
    return image


def _first_frame(image: Image.Image, size: int | None) -> Image.Image:
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # other libraries set it, and half an image would come back grey
    if size is not None:
        image.draft(None, (2 * size, 2 * size))  # JPEG only; never below what is asked
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a broken EXIF block says nothing about the pixels
        return image


def _deep(image: Image.Image, header: Image.Image) -> Float32[np.ndarray, "h w c"]:
    """Grey values of 16 or 32 bits, in [0, 1]; with alpha where one value is declared transparent."""
    values = np.asarray(image).astype(np.float64)
    if image.mode == "I" and isinstance(header, TiffImageFile) and header.tag_v2.get(SAMPLEFORMAT, (1,))[0] == 1:
        values = np.where(values < 0, values + 2**32, values)  # Pillow reads unsigned samples as signed ones
    if image.mode.startswith("I;16") or (image.mode == "I" and header.format == "PPM"):
        grey = values / 65535
    else:
        grey = _rescale(values, (1, 255, 65535) if image.mode == "F" else (255, 65535))
    channels = [grey] * 3
    if isinstance(key := image.info.get("transparency"), int):
        channels.append((values != key).astype(np.float64))
    return np.stack(channels, axis=2).astype(np.float32)


def _rescale(values: Float[np.ndarray, "h w"], usual: tuple[int, ...]) -> Float[np.ndarray, "h w"]:
    low, high = values.min(), values.max()  # NaN passes through, to be refused
    if low < 0 or high > usual[-1]:
        return np.asarray((values - low) / max(high - low, np.finfo(np.float64).tiny))
    return np.asarray(values / next((top for top in usual if high <= top), 1))


def _shallow(image: Image.Image) -> Float32[np.ndarray, "h w c"]:
    """Images of 8 bits or fewer a channel as sRGB, in [0, 1], with alpha where they have it."""
    transparent = image.has_transparency_data
    profile = image.info.get("icc_profile", b"")
    if image.mode in ("P", "PA", "La", "RGBa", "1"):  # what colour management cannot read
        image = image.convert("RGBA" if transparent else "RGB")
    elif transparent and image.mode in ("L", "RGB"):  # a declared colour is transparent
        image = image.convert("RGBA")
    target = "RGBA" if transparent else "RGB"
    transform = _to_srgb(profile, image.mode, target) if profile else None
    if transform is not None:
        alpha = image.getchannel("A") if transparent else None
        image = ImageCms.applyTransform(image, transform) or image
        if alpha is not None:
            image.putalpha(alpha)  # some versions of the colour engine leave it out
    return np.asarray(image.convert(target), dtype=np.float32) / 255


@lru_cache(maxsize=16)  # a folder has few profiles, and building a transform costs more than applying it
def _to_srgb(profile: bytes, mode: str, target: str) -> ImageCms.ImageCmsTransform | None:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, target)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None


def _composite(rgba: Float32[np.ndarray, "h w c"], background: tuple[float, float, float]) -> RGB:
    values = torch.from_numpy(np.ascontiguousarray(rgba)).permute(2, 0, 1)
    image = values[:3] * 2 - 1
    if len(values) == 3:
        return RGB(image.contiguous())
    alpha = values[3:].contiguous()
    return RGB(image * alpha + torch.tensor(background)[:, None, None] * (1 - alpha), alpha)


def resize_and_crop(
    image: Float[Tensor, "c h w"], size: int, generator: torch.Generator | None = None
) -> Float[Tensor, "c {size} {size}"]:
    """Cuts the largest square out of an image and resizes it, antialiased (bicubic).

    Args:
        image: Any channels; values stay within the range that the image has.
        size: Side of the result in pixels.
        generator: Draws where to cut; None cuts at the centre.
    """
    h, w = image.shape[-2:]
    side = min(h, w)
    spare = h - side + w - side  # one of the two is zero
    offset = spare // 2 if generator is None else int(torch.randint(spare + 1, (), generator=generator))
    y, x = (offset, 0) if h > w else (0, offset)
    return resize(image[:, y : y + side, x : x + side], size)


def fit(images: Float[Tensor, "b c h w"], size: tuple[int, int]) -> Float[Tensor, "b c h2 w2"]:
    """Resizes images in [-1, 1] to a height and width, antialiased (bicubic); those of that size stay as they are."""
    if images.shape[-2:] == size:
        return images
    return F.interpolate(images, size, mode="bicubic", antialias=True).clamp(-1, 1)


def resize(image: Float[Tensor, "c h w"], size: int) -> Float[Tensor, "c {size} {size}"]:
    """Resizes to a square, antialiased (bicubic), within the range that the image has."""
    if image.shape[-2:] == (size, size):
        return image
    resized = F.interpolate(image[None], (size, size), mode="bicubic", antialias=True, align_corners=False)[0]
    return resized.clamp(image.amin(), image.amax())  # bicubic overshoots at edges
