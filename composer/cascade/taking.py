"""Converts what users pass to a model to tensors: files, Pillow images, arrays, texts."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from composer.cascade.asking import names_picture
from composer.decomposition import Batch, Decomposer, Decomposition, Representations
from composer.images.pixels import Pixels
from composer.images.reading import File, load_rgb, resize_and_crop
from composer.storage.files import require_utf8

Picture = File | Image.Image | np.ndarray | Tensor
"""An image's file, a Pillow image, (h w 3) of uint8, or (3 h w) in [-1, 1]."""


def open_pictures(pictures: Iterable[Picture], size: int) -> Float[Tensor, "b 3 {size} {size}"]:
    """Reads pictures as a model takes them: upright, in sRGB, cropped to a square, in [-1, 1].

    Raises:
        Refused: A file cannot be read as a picture.
        ValueError: A value is no picture.
    """
    return torch.stack([resize_and_crop(open_picture(picture, size), size) for picture in pictures])


def open_picture(picture: Picture, size: int | None = None) -> Float[Tensor, "3 h w"]:
    """Reads a picture upright, in sRGB, in [-1, 1].

    Args:
        picture: A file, a Pillow image, an array or a tensor.
        size: Shorter side that the caller will reduce it to, see `load_rgb`.

    Raises:
        Refused: A file cannot be read as a picture.
        ValueError: It is no picture.
    """
    if isinstance(picture, File):
        return load_rgb(picture, size).image
    if isinstance(picture, Image.Image):
        return Pixels.of(picture.copy()).rgb().image
    if isinstance(picture, np.ndarray) and picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3:
        return torch.from_numpy(picture.copy()).permute(2, 0, 1).float() / 127.5 - 1
    if isinstance(picture, Tensor) and picture.is_floating_point() and picture.ndim == 3 and len(picture) == 3:
        if picture.abs().max() > 1:
            found = f"{picture.min():.3g} to {picture.max():.3g}"
            raise ValueError(f"expected a tensor in [-1, 1], found values from {found}")
        return picture.float()
    found = type(picture).__name__
    if isinstance(picture, np.ndarray | Tensor):
        found += f" of shape {tuple(picture.shape)} and {picture.dtype}"
    raise ValueError(
        "expected an image's file, a Pillow image, an array (h w 3) of uint8 or a tensor (3 h w) in [-1, 1]; "
        f"found {found}"
    )


def to_batch(what: Batch | Picture | Sequence[Picture], caption: str | Sequence[str] | None, size: int) -> Batch:
    """Makes a batch from pictures; a batch stays as it is.

    Args:
        what: A batch, a picture, or several pictures; a tensor may be (b 3 h w).
        caption: What they show: one text for all, or one per picture.
        size: Side of the images.

    Raises:
        Refused: A file cannot be read as a picture.
        ValueError: A value is no picture.
    """
    if isinstance(what, Mapping):
        return dict(what)
    image = open_pictures(_listed(what), size)
    if caption is None:
        return {"image": image}
    captions = [caption] * len(image) if isinstance(caption, str) else list(caption)
    if len(captions) != len(image):
        raise ValueError(f"expected a caption, or one for each of {len(image)} pictures, found {len(captions)}")
    return {"image": image, "caption": captions}


def _listed(what: Picture | Sequence[Picture]) -> Sequence[Picture]:
    if isinstance(what, Tensor | np.ndarray):
        return list(what) if what.ndim == 4 else [what]
    if isinstance(what, Sequence) and not isinstance(what, str):
        return what
    return [what]


@torch.no_grad()
def to_representations(given: Mapping[str, Tensor | str], decomposition: Decomposition) -> Representations:
    """Converts texts, such as ``{"caption": "a red cube", "palette": "#aa3311"}``, to representations; tensors stay.

    Raises:
        ValueError: A value is neither text nor a tensor, or the condition cannot be given as text.
    """
    by = dict(decomposition.named())
    return {name: value if isinstance(value, Tensor) else _from_words(name, value, by) for name, value in given.items()}


def _from_words(name: str, value: Any, by: Mapping[str, Decomposer]) -> Tensor:
    reads_images = name in by and by[name].can_read({"image": None})
    picture_meant = isinstance(value, Image.Image) or (reads_images and names_picture(value))
    if isinstance(value, str) and name in by and not picture_meant:
        require_utf8(value)
        return by[name].from_text(value)
    if picture_meant:
        picture = f'"{value}"' if names_picture(value) else "picture"
        raise ValueError(f'decompose the image to get its {name}: {name}=model.decompose({picture})["{name}"]')
    says = f'parts["{name}"]' if isinstance(value, Mapping) else "a tensor or words"
    raise ValueError(f"expected {says} for {name}, found {type(value).__name__}")
