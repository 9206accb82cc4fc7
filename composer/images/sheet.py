"""Contact sheets, previews, PNGs that contain their recipe, and an HTML page."""

import base64
import hashlib
import io
import json
import math
import os
import struct
import textwrap
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from torch.nn import functional as F

from composer.decomposition import Decomposition, Representations
from composer.images.reading import File, Reason, Refused, opened, read_pixels
from composer.images.table import Table, escape_html
from composer.storage.files import replacing, write_atomically

RECIPE_KEY = "composer"
MAX_RECIPE = 8_000_000
"""Maximum characters of JSON; longer recipes are refused before parsing. Initial noise of 256 px takes a million."""

QUICK = 8_000_000
"""Pixels; larger images are compressed less, in a fraction of the time."""

COLOUR_CHUNKS: dict[str, Callable[[Any], tuple[bytes, bytes]]] = {
    "gamma": lambda value: (b"gAMA", struct.pack(">I", round(value * 100_000))),
    "chromaticity": lambda values: (b"cHRM", struct.pack(">8I", *(round(value * 100_000) for value in values))),
    "srgb": lambda intent: (b"sRGB", struct.pack(">B", intent)),
}
"""Colour information of a PNG besides a profile, which Pillow does not write: Pillow's name -> the chunk."""

SMALLEST_CELL, LARGEST_CELL = 128, 256
MARGIN, GAP, LABEL_WIDTH = 16, 8, 150
PAPER, INK = "#faf9f7", "#22211f"
MISSING_GLYPHS = str.maketrans(
    {"\u00d7": "x", "\u2212": "-", "\u2013": "-", "\u2014": "-", "→": "->", "←": "<-", "≥": ">=", "≤": "<="}
)
"""Pillow's font, the only one always available, has few characters beyond ASCII; accents are removed."""


def to_pil(image: Float[Tensor, "3 h w"]) -> Image.Image:
    """Rounds an image in [-1, 1] to 8 bits; values outside are clipped.

    torchvision's `to_pil_image` truncates instead of rounding: a third of the values are one level lower.

    Raises:
        ValueError: The image contains NaN.
    """
    if image.ndim != 3 or len(image) != 3:
        raise ValueError(f"expected a single image (3 h w), such as images[0], found {tuple(image.shape)}")
    if image.isnan().any():
        raise ValueError("expected an image in [-1, 1], found NaN in it")
    levels = ((image.detach().float().cpu() + 1) * 127.5).round().clamp(0, 255).byte()
    return Image.fromarray(levels.permute(1, 2, 0).numpy())


def png(picture: Image.Image) -> bytes:
    """Encodes an image as the bytes of a PNG, for notebooks."""
    data = io.BytesIO()
    picture.save(data, "PNG")
    return data.getvalue()


def from_pil(picture: Image.Image) -> Float[Tensor, "3 h w"]:
    """Converts a Pillow image in RGB to [-1, 1]; for files of any origin see `load_rgb`."""
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).float() / 127.5 - 1


def read_written(path: File) -> Image.Image:
    """Reads an image that Composer wrote, of any shape, with unchanged pixel values.

    Raises:
        Refused: It cannot be read.
    """
    return read_pixels(path, min_side=1, max_aspect=math.inf).picture


@torch.no_grad()
def previews(decomposition: Decomposition, reps: Representations, size: int) -> dict[str, Float[Tensor, "b 3 h w"]]:
    """Makes previews of representations with their decomposers, on the CPU, in the order of the decomposition.

    Args:
        decomposition: The decomposers of these names.
        reps: Representations; the decomposer of the same name makes the preview.
        size: Longer side in pixels; small previews are enlarged by integer factors up to this.

    Raises:
        KeyError: `reps` names something that the decomposition does not know.
    """
    unknown = sorted(reps.keys() - decomposition.keys())
    if unknown:
        known = ", ".join(sorted(decomposition.keys()))
        raise KeyError(f"no preview of {', '.join(unknown)}; this decomposition has {known}")
    return {
        name: _fit(decomposer.preview(reps[name]).float().cpu(), size)
        for name, decomposer in decomposition.named()
        if name in reps
    }


def decomposed(
    images: Float[Tensor, "b 3 h w"],
    decomposition: Decomposition,
    reps: Representations,
    rows: Sequence[str] = (),
    title: str = "",
) -> Image.Image:
    """Draws one row per image: the image, then a labelled preview of each representation."""
    shown = previews(decomposition, reps, _cell(images))
    columns = [images.cpu(), *shown.values()]
    return sheet([[column[i] for column in columns] for i in range(len(images))], rows, ["image", *shown], title)


def sheet(
    images: Sequence[Sequence[Tensor | None]],
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    title: str = "",
    font: int = 14,
) -> Image.Image:
    """Draws a labelled contact sheet.

    Small images are enlarged by integer factors without smoothing; large ones are reduced to 256.

    Args:
        images: Rows of (3 h w) images in [-1, 1]; None leaves a cell empty. Sizes may differ.
        rows: One label per row, left of it; empty for none.
        columns: One label per column, above it; empty for none.
        title: Title of the sheet.
        font: Size of the labels, in pixels; larger if the sheet will be shown small.

    Raises:
        ValueError: There is no image, or labels and images do not match in number.
    """
    given: Sequence[Any] = images
    if any(isinstance(row, Tensor) and row.ndim == 3 for row in given):
        raise ValueError("expected rows of images: sheet([images])")
    width = max((len(row) for row in images), default=0)
    present = [image for row in images for image in row if image is not None]
    if not present:
        raise ValueError("expected at least one image on a sheet, found none")
    if (rows and len(rows) != len(images)) or (columns and len(columns) != width):
        raise ValueError(f"expected {len(images)} row and {width} column labels, found {len(rows)} and {len(columns)}")
    cell = max(_cell(image) for image in present)
    pictures = [[None if image is None else to_pil(_fit(image[None], cell)[0]) for image in row] for row in images]
    return _draw(pictures, cell, rows, columns, title, font)


def thumbnail(image: Float[Tensor, "c h w"]) -> Float[Tensor, "c h2 w2"]:
    """Reduces a large image as `sheet` does, to keep many in memory; small ones stay unchanged."""
    return image if max(image.shape[1:]) <= LARGEST_CELL else _fit(image[None], LARGEST_CELL)[0]


def _cell(image: Tensor) -> int:
    """Chooses the longer side at which an image is shown: readable, and an integer multiple if enlarged."""
    side = max(image.shape[-2:])
    return min(side * math.ceil(SMALLEST_CELL / side), LARGEST_CELL)


def _fit(image: Float[Tensor, "b c h w"], size: int) -> Float[Tensor, "b c h2 w2"]:
    h, w = image.shape[-2:]
    if max(h, w) > size:
        smaller = (max(1, round(h * size / max(h, w))), max(1, round(w * size / max(h, w))))
        return F.interpolate(image.float(), smaller, mode="bicubic", antialias=True)
    factor = size // max(h, w)
    return image.repeat_interleave(factor, 2).repeat_interleave(factor, 3)


def _draw(
    pictures: Sequence[Sequence[Image.Image | None]],
    cell: int,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    size: int,
) -> Image.Image:
    font, large = ImageFont.load_default(size), ImageFont.load_default(size + 6)
    count = max(len(row) for row in pictures)
    left = [_wrap(label, font, LABEL_WIDTH) for label in rows]
    above = [_wrap(label, font, cell) for label in columns]
    scratch = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    label_width = max((scratch.multiline_textbbox((0, 0), text, font)[2] for text in left), default=-GAP)
    label_height = max((scratch.multiline_textbbox((0, 0), text, font)[3] for text in above), default=-GAP)
    x0, step = MARGIN + math.ceil(label_width) + GAP, cell + GAP
    width = x0 + count * step - GAP + MARGIN
    heading = _wrap(title, large, width - 2 * MARGIN)
    heading_height = math.ceil(scratch.multiline_textbbox((0, 0), heading, large)[3]) + 2 * GAP if title else 0
    y0 = MARGIN + heading_height + math.ceil(label_height) + GAP
    drawn = Image.new("RGB", (width, y0 + len(pictures) * step - GAP + MARGIN), PAPER)
    for i, row in enumerate(pictures):
        for j, picture in enumerate(row):
            if picture is not None:
                x, y = x0 + j * step + (cell - picture.width) // 2, y0 + i * step + (cell - picture.height) // 2
                drawn.paste(picture, (x, y))
    draw = ImageDraw.Draw(drawn)
    draw.multiline_text((MARGIN, MARGIN), heading, INK, large)
    for i, text in enumerate(above):
        draw.multiline_text((x0 + i * step + cell // 2, y0 - GAP), text, INK, font, "md", align="center")
    for i, text in enumerate(left):
        draw.multiline_text((x0 - GAP, y0 + i * step + cell // 2), text, INK, font, "rm", align="right")
    return drawn


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Breaks a label into the longest lines that fit `width` pixels, long words too."""
    text = unicodedata.normalize("NFKD", text.translate(MISSING_GLYPHS))
    text = "".join(c for c in text if not unicodedata.combining(c))
    lines = [text]
    columns = len(text)
    while columns > 1 and any(font.getlength(line) > width for line in lines):
        columns -= 1
        lines = textwrap.wrap(text, columns)
    return "\n".join(lines)


def save_png(path: str | Path, image: Tensor | Image.Image, recipe: Mapping[str, Any] | None = None) -> None:
    """Writes a PNG, whole or not at all.

    Args:
        path: Where to; missing folders are made, a file of that name is replaced.
        image: (3 h w) in [-1, 1], or a Pillow image.
        recipe: Plain JSON values from which the image can be drawn again; `read_recipe` returns them. None writes no
            metadata.

    Raises:
        ValueError: The recipe is not JSON, or too long.
        OSError: The disk is full or the folder cannot be written.
    """
    if isinstance(path, Tensor | Image.Image):
        raise ValueError('expected a file, then an image: save_png("out.png", image)')
    picture = to_pil(image) if isinstance(image, Tensor) else image
    info = PngInfo()
    if recipe is not None:
        try:
            text = json.dumps(dict(recipe), ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"expected a recipe of plain JSON values: {error}") from error
        if len(text) > MAX_RECIPE:
            raise ValueError(f"expected a recipe of at most {MAX_RECIPE} characters, found {len(text)}")
        info.add_itxt(RECIPE_KEY, text)
    for key, chunk in COLOUR_CHUNKS.items():
        if key in picture.info:
            info.add(*chunk(picture.info[key]))
    quick = {"compress_level": 1} if picture.width * picture.height > QUICK else {}
    with replacing(Path(path)) as file:
        picture.save(file, "PNG", pnginfo=info, **quick)


def save_gif(path: Path, frames: Sequence[Image.Image]) -> None:
    """Writes images as a GIF that plays forwards, then backwards."""
    pictures = [frame.convert("RGB") for frame in [*frames, *frames[-2:0:-1]]]
    data = io.BytesIO()
    pictures[0].save(data, "GIF", save_all=True, append_images=pictures[1:], duration=200, loop=0)
    write_atomically(path, data.getvalue())


def read_recipe(path: File) -> dict[str, Any]:
    """Reads the recipe that `save_png` wrote. The data is untrusted: only JSON is parsed, nothing is run.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not a PNG, has no recipe, or its recipe is not a JSON object.
    """
    try:
        with opened(path, min_side=1, max_aspect=math.inf, formats=("PNG",)) as picture:
            text = picture.info.get(RECIPE_KEY)
    except Refused as error:
        if error.reason is Reason.MISSING:
            raise FileNotFoundError(f"there is no file {path}") from error
        raise ValueError(f"{path} cannot be read as a PNG: {error}") from error
    if text is None:
        raise ValueError(f"{path} has no recipe: it was saved without one, or another program removed it")
    if len(text) > MAX_RECIPE:
        raise ValueError(f"the recipe in {path} has {len(text)} characters, more than {MAX_RECIPE}")
    try:
        recipe = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the recipe in {path} is damaged: {error}") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"expected the recipe in {path} to be a JSON object, found {type(recipe).__name__}")
    return recipe


@dataclass(frozen=True, kw_only=True)
class Section:
    """One part of a page.

    Attributes:
        title: Its heading.
        text: A paragraph beneath it.
        pictures: File and caption of each picture.
        table: A table.
    """

    title: str
    text: str = ""
    pictures: Sequence[tuple[Path, str]] = ()
    table: Table | None = None


def html_index(folder: str | Path, sections: Sequence[Section], title: str = "Composer") -> Path:
    """Writes `index.html`, a page of images and tables without external resources.

    Args:
        folder: Where to; links to images are relative, so that the folder can be moved.
        sections: Its sections, in this order.
        title: Heading of the page.

    Returns:
        The page's path.

    Raises:
        FileNotFoundError: An image is missing.
    """
    folder = Path(folder)
    parts = [f"<h1>{escape_html(title)}</h1>"]
    for section in sections:
        parts.append(f"<h2>{escape_html(section.title)}</h2>")
        if section.text:
            parts.append(f"<p>{escape_html(section.text)}</p>")
        parts += [_figure(folder, path, caption) for path, caption in section.pictures]
        if section.table is not None:
            parts.append(section.table.html())
    page = _PAGE.format(policy=_POLICY, title=escape_html(title), style=_STYLE, body="\n".join(parts))
    write_atomically(folder / "index.html", page.encode())
    return folder / "index.html"


def _figure(folder: Path, path: Path, caption: str) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"expected a picture for {folder / 'index.html'}, found none at {path}")
    place = Path(os.path.relpath(path, folder)).as_posix()
    link, caption = quote(os.fsencode(place)), escape_html(caption)  # file names may not be UTF-8
    return f'<figure><img src="{link}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #22211f; background: #faf9f7 }
body { max-width: 75rem; margin: 2rem auto; padding: 0 1rem }
h2 { margin-top: 2.5rem }
figure { margin: 1rem 0 }
img { max-width: 100% }
figcaption { color: #66635e }
table { border-collapse: collapse }
th, td { padding: .25rem .9rem; border-bottom: 1px solid #dcd9d3; text-align: right }
th:first-child, td:first-child { text-align: left }
"""

_POLICY = (
    "default-src 'none'; img-src 'self' file:; "  # pages on the disk have no origin in some browsers
    f"style-src 'sha256-{base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()}'; "
    "base-uri 'none'; form-action 'none'"
)
"""Allows images beside the page and the style above; no scripts, no external resources."""

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
{body}
</html>
"""
