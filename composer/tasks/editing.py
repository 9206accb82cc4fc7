"""Edits within a region that keep every pixel outside it: the file's own, at its own size, depth and transparency."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image, ImageCms
from torch import Tensor
from torch.nn import functional as F

from composer.cascade.asking import to_seeds
from composer.cascade.cascade import Cascade
from composer.cascade.composition import Composition
from composer.cascade.options import SampleOptions
from composer.cascade.parts import Parts
from composer.cascade.start import Kept
from composer.cascade.taking import Picture, open_picture
from composer.diffusion.samplers import Progress
from composer.images.fidelity import MODES, expand_palette, loss
from composer.images.masks import read_mask
from composer.images.pixels import BAND, Pixels, profile_transform
from composer.images.reading import File, PictureFile, Reason, Refused, converting, fit, opened, path_of, read_pixels
from composer.images.sheet import COLOUR_CHUNKS, to_pil
from composer.names import Kind
from composer.tasks.composition import Source, of_kind

Region = File | Sequence[float] | Image.Image | np.ndarray | Tensor
"""Where an edit may change a picture, see `to_region`."""

BOXED = 256
"""Side of the map that a box becomes where no picture gives a size."""


@dataclass(frozen=True)
class Original:
    """A picture with its file's own pixel values, turned upright.

    Attributes:
        picture: Pixels as they are, of one of `MODES` (a palette is spelled out, which loses nothing).
        image: The same in sRGB, (3 h w) in [-1, 1].
    """

    picture: Image.Image
    image: Float[Tensor, "3 h w"]

    @classmethod
    def open(cls, path: File) -> "Original":
        """Opens a file to be edited.

        Raises:
            Refused: The file is no picture that can be read, or its kind of pixels cannot be given back unchanged
                (see `fidelity.loss`).
        """
        path = PictureFile.of(path)
        with opened(path) as header:
            if found := loss(header):
                raise Refused(path.path, Reason.CHANGED, found)
        pixels = read_pixels(path)
        with converting(path):
            return cls(expand_palette(pixels.picture), pixels.rgb().image)

    @classmethod
    def of(cls, picture: Picture) -> "Original":
        """Takes a picture as `Cascade.decompose` does: a file, a picture of Pillow, an array or a tensor.

        Raises:
            Refused: See `open`.
            ValueError: It is no picture.
        """
        if isinstance(picture, File):
            return cls.open(picture)
        if not isinstance(picture, Image.Image):
            picture = to_pil(open_picture(picture))
        picture = picture if picture.mode in MODES else expand_palette(picture)
        return cls(picture, Pixels(picture).rgb().image)


def open_region(source: File, size: tuple[int, int] | None = None) -> Float[Tensor, "1 1 h w"]:
    """Reads where an edit may change a picture, or where a condition counts.

    Args:
        source: A mask's file of the same size (see `read_mask`), or a box "left,top,right,bottom" in pixels, or in
            shares of the sides where no number exceeds 1.
        size: Height and width of the picture to edit; None takes a mask of any size, and a box in shares.

    Raises:
        ValueError: The mask has another size, or the box lies outside or is empty.
        Refused: The mask cannot be read, or not in one way alone.
        FileNotFoundError: `source` is neither a box nor a file.
    """
    h, w = size or (BOXED, BOXED)
    numbers = _numbers(str(source))
    if numbers is not None:
        region = torch.zeros(1, 1, h, w)
        scale = [w, h, w, h] if max(numbers) <= 1 or size is None else [1, 1, 1, 1]
        left, top, right, bottom = (round(n * s) for n, s in zip(numbers, scale, strict=True))
        if not (0 <= left < right <= w and 0 <= top < bottom <= h):
            limit = "shares of the sides, 0 to 1" if size is None else f"{w} x {h} pixels"
            raise ValueError(f"expected a box left,top,right,bottom within {limit}, found {source}")
        region[..., top:bottom, left:right] = 1
        return region
    if not path_of(source).exists():
        raise FileNotFoundError(f"expected a mask's file or a box left,top,right,bottom, found {str(source)!r}")
    source = PictureFile.of(source)
    with opened(source, min_side=1) as mask:
        found = f"{mask.width} x {mask.height}"
    region = read_mask(source)
    if size is not None and region.shape[2:] != size:
        raise ValueError(f"the mask {source} has {found} pixels, the picture {w} x {h}")
    return region


def _numbers(source: str) -> list[float] | None:
    try:
        numbers = [float(part) for part in source.split(",")]
    except ValueError:
        return None
    return numbers if len(numbers) == 4 and all(map(math.isfinite, numbers)) else None


def window(region: Bool[Tensor, "h w"], margin: float = 0.5) -> tuple[slice, slice]:
    """Chooses the part of the picture that the model sees: a square around the region, with a margin.

    A region that no such square holds gets the whole picture.

    Args:
        region: Where the edit may change the picture; not empty.
        margin: Context on each side, as a share of the region's longer side.
    """
    h, w = region.shape
    rows, columns = region.any(1).nonzero(), region.any(0).nonzero()
    (top, bottom), (left, right) = ((int(x.min()), int(x.max()) + 1) for x in (rows, columns))
    side = max(bottom - top, right - left)
    if side > min(h, w):
        return slice(0, h), slice(0, w)
    side = min(int(side * (1 + 2 * margin)) + 1, h, w)
    y, x = (max(0, min((a + b - side) // 2, n - side)) for a, b, n in ((top, bottom, h), (left, right, w)))
    return slice(y, y + side), slice(x, x + side)


def feather(region: Float[Tensor, "1 1 h w"], radius: int) -> Float[Tensor, "1 1 h w"]:
    """Softens a region inward only: 0 outside, rising to 1 over `radius` pixels inside."""
    from scipy.ndimage import distance_transform_cdt

    inside = region[0, 0].cpu().numpy() > 0
    if inside.all():  # there is no edge to begin at
        return region
    depth = distance_transform_cdt(inside, "chessboard").clip(max=radius + 1)
    return region * torch.from_numpy(depth).to(region) / (radius + 1)


@dataclass(frozen=True)
class Frame:
    """Where in a picture an edit happens: a region, and the square around it that the model sees.

    Attributes:
        original: The picture.
        region: (1 1 h w) of its size, 1 where it may change; not empty.
        rows: Of the square.
        columns: Of the square.
    """

    original: Original
    region: Float[Tensor, "1 1 h w"]
    rows: slice
    columns: slice
    _seen: dict[int, tuple[Tensor, Tensor]] = field(init=False, repr=False, compare=False, default_factory=dict)

    @classmethod
    def around(cls, original: Original, region: Float[Tensor, "1 1 h w"]) -> "Frame":
        """Chooses the square.

        Raises:
            ValueError: The region's size is not the picture's, or it is empty.
        """
        h, w = original.image.shape[1:]
        if region.shape[2:] != (h, w):
            raise ValueError(f"the region has {region.shape[3]} x {region.shape[2]} pixels, the picture {w} x {h}")
        if not region.any():
            raise ValueError("the region is empty: nothing of the picture may change")
        return cls(original, region, *window(region[0, 0] > 0))

    def seen(self, size: int) -> tuple[Float[Tensor, "1 3 s s"], Float[Tensor, "1 1 s s"]]:
        """The square and its region, at a stage's size; a pixel that is partly free counts as free."""
        if size not in self._seen:  # resizing a large picture takes a second
            image = self.original.image[None, :, self.rows, self.columns]
            region = self.region[:, :, self.rows, self.columns]
            free = (F.interpolate(region, (size, size), mode="bilinear", antialias=True) > 0).float()
            self._seen[size] = fit(image, (size, size)), free
        return self._seen[size]

    def source(self, cascade: Cascade, caption: str = "", source: str = "the picture") -> Source:
        """Decomposes the square."""
        return Source.of(cascade, self.seen(cascade.sight)[0][0], caption, source)

    def restrict(self, cascade: Cascade, composition: Composition) -> Composition:
        """Restricts a composition to the region; a region that covers everything is plain generation.

        Within the square the kept pixels are a condition (``mask``, where the model has it) and are held through the
        sampling. Guidance does not lead away from that condition, as in GLIDE (section 2.4), whose model without a
        caption sees the kept pixels too: every set of conditions has it.
        """
        small, free = self.seen(cascade.stages[0].size)
        if free.all():
            return composition
        if kept := of_kind(cascade, Kind.MASK):
            batch = {"image": small.to(cascade.device), "region": free.to(cascade.device)}
            mask = cascade.decompose(batch).pick(*kept)
            away, also = composition.away or Parts(), [(parts | mask, weight) for parts, weight in composition.also]
            composition = replace(composition, parts=composition.parts | mask, away=away | mask, also=tuple(also))
        large, free = self.seen(cascade.stages[-1].size)
        return replace(composition, kept=Kept(large, 1 - free))

    def paste(self, images: Float[Tensor, "b 3 s s"], soften: int = 2) -> list[Image.Image]:
        """Puts results into the picture; all pixels outside the region stay the file's own, bit for bit.

        Args:
            images: What the model made of the square.
            soften: Pixels over which the edit fades in, inside the region.
        """
        return [self._pasted(image, soften) for image in images]

    def _pasted(self, image: Float[Tensor, "3 s s"], soften: int) -> Image.Image:
        """Puts one result into the picture, a band of rows at a time."""
        part = self.region[:, :, self.rows, self.columns]
        h, w = part.shape[2:]
        patch = fit(image[None].cpu(), (h, w))[0]
        picture = self.original.picture.copy()
        kept = ("icc_profile", "dpi", *COLOUR_CHUNKS)
        picture.info = {key: value for key, value in picture.info.items() if key in kept}
        step = max(1, BAND // w)
        for top in range(0, h, step):
            bottom = min(top + step, h)
            above, below = min(top, soften), min(h - bottom, soften)  # as far as softening looks
            blend = feather(part[:, :, top - above : bottom + below], soften)[0, 0, above : above + bottom - top]
            if blend.any():
                _paste(picture, patch[:, top:bottom], blend.numpy(), self.columns.start, self.rows.start + top)
        return picture


def to_region(region: Region, size: tuple[int, int]) -> Float[Tensor, "1 1 h w"]:
    """Converts a box, a mask's file or an array to a region.

    Args:
        region: What `open_region` reads; four numbers left, top, right, bottom; or a mask of the picture's size, as a
            picture of Pillow, an array or a tensor: true, 1 or white where the picture may change.
        size: Height and width of the picture.

    Raises:
        ValueError: It is none of these, or does not fit the picture.
        Refused: A mask's file cannot be read, or not in one way alone.
        FileNotFoundError: Words are neither a box nor a file.
    """
    if isinstance(region, File):
        return open_region(region, size)
    if isinstance(region, Image.Image):
        region = np.array(region.convert("L"))
    if isinstance(region, Sequence) and len(region) == 4:
        return open_region(",".join(map(str, region)), size)
    if not isinstance(region, np.ndarray | Tensor):
        raise ValueError(
            f'expected a region such as "0.1,0.2,0.6,0.9" (left,top,right,bottom), the file of a mask, or an array '
            f"(h w); found {region!r}"
        )
    mask = torch.as_tensor(region)
    if mask.dtype == torch.uint8 and mask.max() > 1:
        mask = mask > 127
    if mask.ndim not in (2, 3, 4) or mask.shape[:-2].numel() != 1:
        raise ValueError(f"expected a region (h w), one for all results, found {tuple(mask.shape)}")
    return mask.float().reshape(1, 1, *mask.shape[-2:]).cpu()


@torch.no_grad()
def edit(
    cascade: Cascade,
    original: Original | Picture,
    region: Region,
    reps: Composition | Mapping[str, Tensor | str] | None = None,
    *,
    keep: Sequence[str] = (),
    seeds: Sequence[int] | int = 0,
    soften: int = 2,
    options: SampleOptions | None = None,
    progress: Progress | None = None,
    **conditions: Tensor | str,
) -> list[Image.Image]:
    """Redraws a region of a picture under new conditions. All pixels outside it are the file's own, bit for bit.

    ``edit(model, "photo.png", "0.1,0.2,0.6,0.9", caption="a large red cube")`` returns a list with one picture.

    Args:
        cascade: The model.
        original: The picture: its file, or what `Original.of` takes.
        region: Where it may change: ``"left,top,right,bottom"``, the file of a mask, or what `to_region` takes.
        reps: What the region should follow, as in `Cascade.sample`.
        keep: Conditions to take from the picture itself, such as its sketch.
        seeds: One per result.
        soften: Pixels over which the edit fades in, inside the region.
        options: How to sample, as in `Cascade.sample`.
        progress: Wraps the steps.
        **conditions: Further representations, or words, by the name of their condition.

    Returns:
        Pictures of the original's size and mode. An empty region gives the picture back.

    Raises:
        KeyError: See `Cascade.sample`.
        ValueError: The region's size is not the picture's, or something cannot be read.
        Refused: The picture or the mask cannot be read, or its pixels cannot be kept as they are.
    """
    if not isinstance(cascade, Cascade):
        raise ValueError('expected a model, then a picture: edit(model, "photo.png", "0.1,0.2,0.6,0.9", ...)')
    seeds, asked = to_seeds(seeds), cascade.ask(reps, **conditions)
    original = original if isinstance(original, Original) else Original.of(original)
    size = original.image.shape[1], original.image.shape[2]
    where = to_region(region, size)
    if not where.any() and where.shape[2:] == size:
        return [original.picture.copy() for _ in seeds]
    frame = Frame.around(original, where)
    words = conditions.get("caption")
    own = frame.source(cascade, words if isinstance(words, str) else "")
    asked = own.pick(*(name for name in keep if name not in asked.parts)) | asked
    images = cascade.sample(frame.restrict(cascade, asked), seeds, options, progress=progress)
    return frame.paste(images, soften)


def extend(original: Original, sides: tuple[float, float, float, float]) -> tuple[Original, Float[Tensor, "1 1 h w"]]:
    """Enlarges the canvas for outpainting.

    Args:
        original: The picture.
        sides: How much to add at the left, top, right and bottom: in pixels, or in shares of the sides where no number
            exceeds 1.

    Returns:
        The larger picture, its new parts filled by reflection, and where they are.

    Raises:
        ValueError: Nothing is added, or less than nothing.
    """
    w, h = original.picture.size
    scale = (w, h, w, h) if max(sides) <= 1 else (1, 1, 1, 1)
    left, top, right, bottom = (round(n * s) for n, s in zip(sides, scale, strict=True))
    if min(left, top, right, bottom) < 0 or not any((left, top, right, bottom)):
        raise ValueError(f"expected how much to add at left,top,right,bottom, found {','.join(map(str, sides))}")
    around = ((top, bottom), (left, right))
    pixels = np.array(original.picture)
    pixels = np.pad(pixels, (*around, *[(0, 0)] * (pixels.ndim - 2)), mode="symmetric")
    picture = Image.fromarray(pixels)
    picture.info = dict(original.picture.info)
    image = np.pad(original.image.numpy(), ((0, 0), *around), mode="symmetric")
    region = torch.ones(1, 1, *image.shape[1:])
    region[..., top : top + h, left : left + w] = 0
    return Original(picture, torch.from_numpy(image)), region


def _paste(picture: Image.Image, patch: Float[Tensor, "3 h w"], blend: np.ndarray, x: int, y: int) -> None:
    """Blends a patch into a picture at a place; where `blend` is 0 the picture's bits stay."""
    h, w = blend.shape
    pixels = np.array(picture.crop((x, y, x + w, y + h)))
    colours = _as(picture, patch)
    for channel in range(colours.shape[-1]):  # transparency, the last channel where there is one, stays
        own = pixels if pixels.ndim == 2 else pixels[..., channel]
        mixed = own + (colours[..., channel] - own) * blend
        own[blend > 0] = np.rint(mixed).astype(own.dtype)[blend > 0]
    picture.paste(Image.fromarray(pixels), (x, y))


def _as(picture: Image.Image, patch: Float[Tensor, "3 h w"]) -> np.ndarray:
    """A patch in the picture's own colours and range, (h w c) float."""
    unit = (patch.movedim(0, -1).numpy().astype(np.float64) + 1) / 2
    if picture.mode in ("L", "LA", "I;16"):
        luma = unit @ np.array([0.2126, 0.7152, 0.0722])
        return np.asarray(luma[..., None] * (65535 if picture.mode == "I;16" else 255))
    profile = picture.info.get("icc_profile")
    transform = profile_transform(profile, "RGB", "RGB", "from sRGB") if profile else None
    if transform is None:  # a broken profile was ignored when the picture was read, too
        return unit * 255
    rgb = Image.fromarray(np.rint(unit * 255).astype(np.uint8))
    return np.array(ImageCms.applyTransform(rgb, transform), np.float64)
