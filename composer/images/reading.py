"""Reads image files of any origin into tensors, or refuses them with one reason."""

import io
import math
import os
import stat
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from composer.images.pixels import RGB, WHITE, NotFinite, Pixels
from composer.storage.files import hash_content, printable

SUFFIXES = frozenset(
    [".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2", ".ppm", ".pgm", ".pbm"]
)
"""Suffixes of image files in a folder; the real format is read from the header."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
"""Pillow's readers that are used. Others start programs (EPS), or are too rare to be tested."""

MAX_PIXELS = 64_000_000
MIN_SIDE = 32
MAX_ASPECT = 8

MAX_BYTES = 8 * MAX_PIXELS
"""Maximum bytes read of an image: no supported format needs more for its pixels."""

MAX_HEADER = 32_000_000
"""Maximum bytes read before the first pixel."""


MAX_SCANS = 200
"""Maximum scans of a progressive JPEG: ten are usual; each takes time for the whole image, whatever its bytes."""


class Reason(StrEnum):
    """Why a file is refused; exactly one per file."""

    MISSING = "there is no such file"
    NOT_A_FILE = "it is not a regular file"
    UNREADABLE = "it cannot be read from disk"
    NOT_AN_IMAGE = f"it is not an image in a supported format ({', '.join(FORMATS)})"
    TOO_LARGE = f"it has more than {MAX_PIXELS // 1_000_000} megapixels, or as many bytes as if it had"
    TOO_SMALL = "a side is shorter than the minimum"
    TOO_LONG = f"one side is more than {MAX_ASPECT} times the other"
    DAMAGED = "it is truncated or damaged"
    NOT_FINITE = "it contains NaN or infinite values"
    CHANGED = "an edit would also change it outside the region"
    NO_MASK = "it is not a mask"


class Refused(ValueError):
    """A file that is not used, and why.

    Attributes:
        path: The file.
        reason: The one reason.
        detail: What was found, for the message.
    """

    def __init__(self, path: Path, reason: Reason, detail: str = ""):
        super().__init__(path, reason, detail)  # all of them, so that the error can be pickled by a worker
        self.path, self.reason, self.detail = path, reason, detail

    def __str__(self) -> str:
        return f"{self.path} is refused: {self.reason}" + (f" ({self.detail})" if self.detail else "")


class _Bounded(io.BufferedReader):
    """A file of which only so many bytes are read, as lengths in its header may be false."""

    left = MAX_HEADER

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(self.left + 1 if size is None or size < 0 else min(size, self.left + 1))
        self.left -= len(data)
        if self.left < 0:
            raise _TooMuch
        return data


class _TooMuch(Exception):
    """More bytes were requested than an image can need."""


class PictureFile:
    """An image file that is read from disk once: its bytes are kept.

    All functions that read images accept one instead of a path.

    Args:
        path: The file; it is opened at first use.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)

    @classmethod
    def of(cls, file: "File") -> "PictureFile":
        """Wraps a path; a `PictureFile` stays as it is."""
        return file if isinstance(file, PictureFile) else cls(file)

    @classmethod
    def holding(cls, name: str | Path, data: bytes) -> "PictureFile":
        """Wraps a file's content that was read elsewhere, such as from an archive; errors call it by that name."""
        file = cls(name)
        file.__dict__["data"] = data
        return file

    def __str__(self) -> str:
        return str(self.path)

    @cached_property
    def data(self) -> bytes:
        """The file's content.

        Raises:
            Refused: It is not an image, has too many pixels, or more bytes than an image can need.
        """
        with warnings.catch_warnings(), _file(self.path) as file:
            warnings.simplefilter("ignore")
            _check_size(self.path, _header(self.path, file, FORMATS).size, 1, math.inf)
            size = os.fstat(file.fileno()).st_size
            if size > MAX_BYTES:
                raise Refused(self.path, Reason.TOO_LARGE, f"{size:,} bytes")
            file.seek(0)
            file.left = MAX_BYTES
            return file.read(size)

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of its content, by which recipes identify files."""
        return hash_content(self.data)

    @property
    def source(self) -> str:
        """Its entry in a recipe: the SHA-256 of its content, and its name without folders."""
        return f"{self.sha256} {printable(self.path.name)}"


File = str | Path | PictureFile
"""An image file: its path, or a `PictureFile`, which keeps its content."""


def path_of(file: File) -> Path:
    """The path of an image file."""
    return file.path if isinstance(file, PictureFile) else Path(file)


@contextmanager
def opened(
    path: File,
    min_side: int = MIN_SIDE,
    max_aspect: float = MAX_ASPECT,
    formats: Sequence[str] = FORMATS,
) -> Iterator[Image.Image]:
    """Opens an image file without decoding it: checks type, format and size. All image files are opened here.

    Args:
        path: The file.
        min_side: Minimum of the shorter side, in pixels.
        max_aspect: Maximum ratio of the longer to the shorter side.
        formats: Which of `FORMATS` are accepted.

    Yields:
        The image, to be read before the block ends. Pillow's warnings about its content are suppressed.

    Raises:
        Refused: The file is not used; its `reason` says why.
    """
    kept = path.data if isinstance(path, PictureFile) else None
    path = path_of(path)
    with warnings.catch_warnings(), _file(path) if kept is None else _Bounded(io.BytesIO(kept)) as file:
        warnings.simplefilter("ignore")  # Pillow warns about faults that are refused or repaired here
        with _header(path, file, formats) as image:
            _check_size(path, image.size, min_side, max_aspect)
            file.left = MAX_BYTES
            yield image


def _file(path: Path) -> _Bounded:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would block, opening a device may do anything
            raise Refused(path, Reason.NOT_A_FILE)
        return _Bounded(io.FileIO(path))
    except FileNotFoundError as error:
        raise Refused(path, Reason.MISSING) from error
    except (OSError, ValueError) as error:  # a name with a NUL is a ValueError
        if isinstance(error, Refused):
            raise
        raise Refused(path, Reason.UNREADABLE, str(error)) from error


def _header(path: Path, file: _Bounded, formats: Sequence[str]) -> Image.Image:
    try:
        start = file.read(12)
        file.seek(0)
        if start[8:] == b"WEBP" or start[4:8] == b"ftyp":  # the readers of WebP and AVIF read the whole file
            file.left = MAX_BYTES
            if file.seek(0, os.SEEK_END) > MAX_BYTES:
                raise _TooMuch
            file.seek(0)
        image = Image.open(file, formats=tuple(formats))
        if "progressive" in image.info and (found := _scans(file)) > MAX_SCANS:
            raise _TooMuch(f"{found} scans of a progressive JPEG")
        return image
    except (Image.DecompressionBombError, _TooMuch) as error:
        raise Refused(path, Reason.TOO_LARGE, str(error)) from error
    except OSError as error:
        known = isinstance(error, UnidentifiedImageError) or error.errno is None
        raise Refused(path, Reason.NOT_AN_IMAGE if known else Reason.UNREADABLE) from error
    except Exception as error:  # readers may raise any error on damaged files
        raise Refused(path, Reason.NOT_AN_IMAGE) from error


def _scans(file: _Bounded) -> int:
    """Counts the markers that start a scan; these bytes never occur within a scan."""
    place, found, last = file.tell(), 0, b""
    file.seek(0)
    file.left = MAX_BYTES
    while data := file.read(1 << 20):
        found += (last + data).count(b"\xff\xda")
        last = data[-1:]
    file.seek(place)
    return found


def _check_size(path: Path, size: tuple[int, int], min_side: int, max_aspect: float) -> None:
    (w, h), found = size, f"{size[0]} x {size[1]}"
    if w * h > MAX_PIXELS:
        raise Refused(path, Reason.TOO_LARGE, found)
    if min(w, h) < min_side:
        raise Refused(path, Reason.TOO_SMALL, f"{found}, expected at least {min_side}")
    if max(w, h) > max_aspect * min(w, h):
        raise Refused(path, Reason.TOO_LONG, found)


def read_pixels(
    path: File, size: int | None = None, min_side: int = MIN_SIDE, max_aspect: float = MAX_ASPECT
) -> Pixels:
    """Decodes an image file; see `opened` and `load_rgb` for arguments and errors."""
    with opened(path, min_side, max_aspect) as image:
        path = path_of(path)
        try:
            return Pixels.of(image, size)
        except _TooMuch as error:
            raise Refused(path, Reason.TOO_LARGE) from error
        except Exception as error:  # decoders may raise any error on damaged files
            raise Refused(path, Reason.DAMAGED, str(error)) from error


@contextmanager
def converting(path: File) -> Iterator[None]:
    """Refuses a file if the block finds a damaged palette or values that are not finite."""
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            yield
    except NotFinite as error:
        raise Refused(path_of(path), Reason.NOT_FINITE) from error
    except Exception as error:
        raise Refused(path_of(path), Reason.DAMAGED, str(error)) from error


def load_rgb(
    path: File,
    size: int | None = None,
    background: tuple[float, float, float] = WHITE,
    min_side: int = MIN_SIDE,
) -> RGB:
    """Reads an image file.

    In this order: header, first frame, EXIF orientation, range of deep images, ICC profile to sRGB, alpha. A profile
    that is broken or of other colours than the image is ignored, as browsers do, and so are profiles of images with
    more than 8 bits. Images of 32 bits are rescaled by the smallest of the usual ranges that contains them (1
    for floats, 255, 65535), else from their minimum to their maximum.

    Args:
        path: A regular file.
        size: Shorter side that the caller will reduce the image to, in pixels. A large JPEG is then decoded
            at a fraction of its size, at least twice this one. None decodes every pixel.
        background: Colour under transparent parts, in [-1, 1].
        min_side: Minimum of the shorter side, in pixels.

    Raises:
        Refused: The file is not used; its `reason` says why.
    """
    pixels = read_pixels(path, size, min_side)
    with converting(path):
        return pixels.rgb(background)


def resize_and_crop(
    image: Float[Tensor, "c h w"], size: int, generator: torch.Generator | None = None
) -> Float[Tensor, "c {size} {size}"]:
    """Crops the largest square of an image and resizes it, antialiased (bicubic).

    Args:
        image: Any channels; values stay within the image's range.
        size: Side of the result in pixels.
        generator: Draws the position; None crops the centre.
    """
    rows, columns = largest_square(image.shape[-2], image.shape[-1], generator)
    return resize(image[:, rows, columns], size)


def largest_square(h: int, w: int, generator: torch.Generator | None = None) -> tuple[slice, slice]:
    """Chooses rows and columns of the largest square of an image: at the centre, or where the generator draws it."""
    side = min(h, w)
    spare = h - side + w - side  # one of the two is zero
    offset = spare // 2 if generator is None else int(torch.randint(spare + 1, (), generator=generator))
    y, x = (offset, 0) if h > w else (0, offset)
    return slice(y, y + side), slice(x, x + side)


def fit(images: Float[Tensor, "b c h w"], size: tuple[int, int]) -> Float[Tensor, "b c h2 w2"]:
    """Resizes images in [-1, 1] to a height and width, antialiased (bicubic); images of that size stay.

    torchvision's `resize` gives the same bits in 1.05 times the time; kornia antialiases with another filter.
    """
    if images.shape[-2:] == size:
        return images
    return F.interpolate(images, size, mode="bicubic", antialias=True).clamp_(-1, 1)


def resize(image: Float[Tensor, "c h w"], size: int) -> Float[Tensor, "c {size} {size}"]:
    """Resizes to a square, antialiased (bicubic), within the image's range."""
    if image.shape[-2:] == (size, size):
        return image
    resized = F.interpolate(image[None], (size, size), mode="bicubic", antialias=True, align_corners=False)[0]
    return resized.clamp(image.amin(), image.amax())  # bicubic overshoots at edges
