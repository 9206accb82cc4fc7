"""The pixel values of a decoded image: as stored, and in sRGB, a band of rows at a time."""

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float32
from PIL import Image, ImageCms, ImageFile, ImageOps
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT, TiffImageFile
from torch import Tensor

WHITE = (1.0, 1.0, 1.0)

BAND = 1 << 18
"""Pixels converted at a time, so that a large image is held in floats once, not in every step of the conversion."""


Convert = Callable[[Image.Image], Float32[np.ndarray, "h w c"]]
"""Converts a band of an image to colours in [0, 1]."""


class NotFinite(ValueError):
    """An image contains NaN or infinite values."""


@dataclass(frozen=True)
class RGB:
    """One decoded image.

    Attributes:
        image: In [-1, 1], sRGB, transparent parts composited on a background.
        alpha: In [0, 1], 1 = opaque; None if the file has no transparency.
    """

    image: Float32[Tensor, "3 h w"]
    alpha: Float32[Tensor, "1 h w"] | None = None


@dataclass(frozen=True)
class Pixels:
    """The first frame of an image, upright.

    Attributes:
        picture: Its values as they are stored. Grey of 16 bits is ``I;16`` in either byte order, and white is always
            the highest value.
        top: The value of white in grey of 16 bits.
        unsigned: Whether grey of 32 bits is unsigned, which Pillow does not tell.
        inverted: Whether 0 is white, of floats.
    """

    picture: Image.Image
    top: int = 65535
    unsigned: bool = False
    inverted: bool = False

    @classmethod
    def of(cls, image: Image.Image, size: int | None = None) -> "Pixels":
        """Decodes an image; damaged files may raise any error.

        Args:
            image: An opened image.
            size: Shorter side that it will be reduced to. A large JPEG is decoded at no less than twice that.
        """
        ImageFile.LOAD_TRUNCATED_IMAGES = (
            False  # other libraries set it, and truncated images would come back half grey
        )
        tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
        inverted = tags.get(PHOTOMETRIC_INTERPRETATION) == 0
        top = 4095 if tags.get(BITSPERSAMPLE) == (12,) else 65535
        unsigned = image.mode == "I" and bool(tags) and tags.get(SAMPLEFORMAT, (1,))[0] == 1
        raw = raw_mode(image)
        if size is not None:
            image.draft(None, (2 * size, 2 * size))  # JPEG only; never smaller than requested
        with _quiet() if tags else nullcontext():
            image.load()
        key = _transparent(image, raw)
        picture = _upright(image)
        if key is not None:
            picture.info["transparency"] = key
        if picture.mode.startswith("I;16") or (picture.mode == "I" and image.format == "PPM"):
            values = np.asarray(picture).astype(np.uint16)
            info, picture = picture.info, Image.fromarray(top - values if inverted else values)
            picture.info = info
        return cls(picture, top, unsigned, inverted and picture.mode == "F")

    def bands(self) -> Iterator[tuple[slice, Float32[np.ndarray, "h w c"]]]:
        """Yields rows and their colours in sRGB, in [0, 1], with alpha if the image has it.

        Raises:
            NotFinite: It contains NaN or infinite values.
        """
        w, h = self.picture.size
        rows = max(1, BAND // w)
        convert = self._deep() if self.picture.mode.startswith(("I", "F")) else self._shallow()
        for top in range(0, h, rows):
            where = slice(top, min(top + rows, h))
            band = convert(self.picture.crop((0, where.start, w, where.stop)))
            if not np.isfinite(band).all():
                raise NotFinite
            yield where, band

    def rgb(self, background: tuple[float, float, float] = WHITE) -> RGB:
        """Converts the image to sRGB.

        Args:
            background: Colour under transparent parts, in [-1, 1].

        Raises:
            NotFinite: It contains NaN or infinite values.
        """
        w, h = self.picture.size
        image, alpha = torch.empty(3, h, w), None
        under = torch.tensor(background)[:, None, None]
        for rows, band in self.bands():
            values = torch.from_numpy(band).permute(2, 0, 1)
            colours = values[:3] * 2 - 1
            if len(values) == 4:
                alpha = torch.empty(1, h, w) if alpha is None else alpha
                alpha[:, rows] = values[3:]
                colours = colours * values[3:] + under * (1 - values[3:])
            image[:, rows] = colours
        return RGB(image, alpha)

    def _deep(self) -> Convert:
        """Grey values of 16 or 32 bits, in [0, 1]; with alpha if one value is declared transparent."""
        values = self._values(self.picture)
        low, high = float(values.min()), float(values.max())  # NaN passes through, and is refused later
        key = self.picture.info.get("transparency")

        def convert(band: Image.Image) -> np.ndarray:
            values = self._values(band).astype(np.float64)
            if band.mode.startswith("I;16"):
                grey = values / self.top
            else:
                grey = _rescale(values, low, high, (1, 255, 65535) if band.mode == "F" else (255, 65535))
            channels = [1 - grey if self.inverted else grey] * 3
            if isinstance(key, int):
                channels.append((values != key).astype(np.float64))
            return np.stack(channels, axis=2).astype(np.float32)

        return convert

    def _values(self, picture: Image.Image) -> np.ndarray:
        values = np.asarray(picture)
        return values.view(np.uint32) if self.unsigned else values

    def _shallow(self) -> Convert:
        """Converts images of at most 8 bits per channel to sRGB, in [0, 1], with alpha if they have it."""
        transparent = self.picture.has_transparency_data
        profile = self.picture.info.get("icc_profile", b"")
        target = "RGBA" if transparent else "RGB"

        def convert(band: Image.Image) -> np.ndarray:
            if band.mode == "La":  # premultiplied
                band = band.convert("LA")
            if band.mode in ("P", "PA", "RGBa", "1"):  # what colour management cannot read
                band = band.convert(target)
            elif transparent and band.mode in ("L", "RGB"):  # a declared colour is transparent
                band = band.convert("RGBA")
            transform = profile_transform(profile, band.mode, target) if profile else None
            if transform is not None:
                alpha = band.getchannel("A") if transparent else None
                band = ImageCms.applyTransform(band, transform) or band
                if alpha is not None:
                    band.putalpha(alpha)  # some versions of the colour engine leave it out
            return np.asarray(band.convert(target), dtype=np.float32) / 255

        return convert


def raw_mode(image: Image.Image) -> str:
    """How an opened image's file packs its values, in Pillow's notation, such as ``RGB;16B``; "" where unknown."""
    args = image.tile[0].args if isinstance(image, ImageFile.ImageFile) and image.tile else None
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


_QUIET = Lock()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps libtiff from writing errors to the process's stderr; Pillow raises them anyway."""
    with _QUIET:  # stderr is the whole process's
        try:
            theirs = os.dup(2)
        except OSError:  # there is none
            yield
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, 2)
            yield
        finally:
            os.dup2(theirs, 2)
            os.close(theirs)
            os.close(nowhere)


def _transparent(image: Image.Image, raw: str) -> int | tuple[int, ...] | None:
    """The transparent colour on the scale of the decoded pixels, which Pillow may leave on the file's scale."""
    key = image.info.get("transparency")
    if image.format != "PNG" or image.mode not in ("L", "RGB"):
        return None
    if isinstance(key, int):
        return key * {"L;2": 85, "L;4": 17}.get(raw, 1) & 255
    return tuple(part >> 8 if "16" in raw else part & 255 for part in key) if isinstance(key, tuple) else None


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # the pixels may be fine although the EXIF block is broken
        return image


def _rescale(
    values: Float[np.ndarray, "h w"], low: float, high: float, usual: tuple[int, ...]
) -> Float[np.ndarray, "h w"]:
    if low < 0 or high > usual[-1]:
        return np.asarray((values - low) / max(high - low, np.finfo(np.float64).tiny))
    return np.asarray(values / next((top for top in usual if high <= top), 1))


@lru_cache(maxsize=16)  # a folder has few profiles, and building a transform is slower than applying it
def profile_transform(
    profile: bytes, mode: str, target: str, direction: Literal["to sRGB", "from sRGB"] = "to sRGB"
) -> ImageCms.ImageCmsTransform | None:
    """The transform between a profile's colours and sRGB; None if it is broken or of another colour space.

    Args:
        profile: An ICC profile.
        mode: Pillow's mode of the input.
        target: Mode of the result.
        direction: From or to sRGB.
    """
    try:
        theirs, ours = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
        start, end = (theirs, ours) if direction == "to sRGB" else (ours, theirs)
        return ImageCms.buildTransform(start, end, mode, target)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
