"""Mask: the part of an image that an edit keeps."""

import math
from functools import cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from composer.decomposition import Batch, Decomposer, draw
from composer.names import Kind

STREAM = 320  # of `draw`: the first of seven
SIDE = 64  # of a mask in the bank of strokes
HATCH = 4  # width of a preview's stripes, in pixels


class Mask(Decomposer):
    """The pixels that an edit keeps, zero elsewhere, and a mask that is 1 on them (Composer, section 2.1).

    The kept part is everything outside of the batch's region, if it has one. In training, it is random: brush strokes
    (7 of 10 rows), boxes (2) or half-planes (1) are removed, in the proportions of VideoComposer's released code; the
    shapes are our own. Strokes come from a precomputed bank, rotated, mirrored and shifted at random. A batch needs a
    region or seeds.
    """

    at_source = False
    kind = Kind.MASK

    def can_read(self, batch: Batch) -> bool:
        return "image" in batch and ("region" in batch or "seed" in batch)

    def forward(self, batch: Batch) -> Float[Tensor, "b 4 h w"]:
        """Masks `batch["image"]` by `batch["region"]`, or at random by `batch["seed"]`.

        Raises:
            ValueError: The region's size is not the image's.
        """
        image = batch["image"]
        b, _, h, w = image.shape
        if "region" not in batch:
            removed = random_region(batch["seed"].to(image.device), h, w)
        elif batch["region"].shape == (b, 1, h, w):
            removed = batch["region"] >= 0.5
        else:
            raise ValueError(f"expected a region of shape {(b, 1, h, w)}, found {tuple(batch['region'].shape)}")
        kept = (~removed).to(image)
        return torch.cat([image * kept, kept], 1)

    def preview(self, value: Float[Tensor, "b 4 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Draws the kept pixels, with grey stripes elsewhere."""
        h, w = value.shape[2:]
        y, x = (torch.arange(n, device=value.device) for n in (h, w))
        stripes = ((y[:, None] + x) // HATCH % 2).to(value) * 0.4 + 0.2
        image, kept = value[:, :3], value[:, 3:]
        return image * kept + stripes * (1 - kept)

    def distance(self, wanted: Float[Tensor, "b 4 h w"], got: Float[Tensor, "b 4 h w"]) -> Float[Tensor, " b"]:
        """Mean absolute difference over the pixels that `wanted` keeps, in units of the image: 0 to 2."""
        kept = wanted[:, 3:]
        difference = (wanted[:, :3] - got[:, :3]).abs() * kept
        return difference.sum((1, 2, 3)) / (3 * kept.sum((1, 2, 3))).clamp_min(1)


def random_region(seed: Tensor, h: int, w: int) -> Bool[Tensor, "b 1 h w"]:
    """Draws what an edit removes: strokes, a box or a half-plane, a pure function of the seed.

    Args:
        seed: (b,) int64 sample seeds.
        h: Height in pixels.
        w: Width in pixels.
    """
    kind = draw(seed, STREAM, 10)[:, None, None]
    plain = torch.where(kind < 9, _boxes(seed, h, w), _half_planes(seed, h, w))
    return torch.where(kind < 7, _strokes(seed, h, w), plain)[:, None]


def _uniform(seed: Tensor, stream: int, n: int) -> Float[Tensor, "n b 1 1"]:
    """Draws n numbers per row, uniform in [0, 1)."""
    return torch.stack([draw(seed, STREAM + stream + i, 1 << 20) for i in range(n)])[..., None, None] / (1 << 20)


def _grid(seed: Tensor, h: int, w: int) -> tuple[Float[Tensor, "h 1"], Float[Tensor, "1 w"]]:
    """Centres of the pixels, the image being the unit square."""
    y, x = ((torch.arange(n, device=seed.device) + 0.5) / n for n in (h, w))
    return y[:, None], x[None]


def _boxes(seed: Tensor, h: int, w: int) -> Bool[Tensor, "b h w"]:
    """Boxes with sides of 0.25 to 0.75, anywhere inside the image."""
    y, x = _grid(seed, h, w)
    height, width, top, left = _uniform(seed, 1, 4)
    height, width = 0.25 + height / 2, 0.25 + width / 2
    in_rows, in_columns = (y - top * (1 - height)) / height, (x - left * (1 - width)) / width
    box: Tensor = ((in_rows - 0.5).abs() < 0.5) & ((in_columns - 0.5).abs() < 0.5)
    return box


def _half_planes(seed: Tensor, h: int, w: int) -> Bool[Tensor, "b h w"]:
    """Half-planes whose edge passes within 0.25 of the centre, at any angle."""
    y, x = _grid(seed, h, w)
    angle, offset = _uniform(seed, 1, 2)
    angle = angle * math.tau
    before: Tensor = (y - 0.5) * angle.sin() + (x - 0.5) * angle.cos() < (offset - 0.5) / 2
    return before


def _strokes(seed: Tensor, h: int, w: int) -> Bool[Tensor, "b h w"]:
    """Strokes of the bank, rotated, mirrored and shifted with wrap-around."""
    bank = _bank(seed.device)
    flip, down, right = (draw(seed, STREAM + 1 + i, n)[:, None] for i, n in enumerate((8, SIDE, SIDE)))
    steps = torch.arange(SIDE, device=seed.device)
    y = ((steps * (1 - 2 * (flip & 1)) + down) % SIDE)[:, :, None]
    x = ((steps * (1 - (flip & 2)) + right) % SIDE)[:, None]
    y, x = torch.where(flip[:, None] < 4, y, x), torch.where(flip[:, None] < 4, x, y)
    masks = bank[draw(seed, STREAM + 4, len(bank))[:, None, None], y, x]
    if (h, w) != (SIDE, SIDE):  # the bank holds soft edges, which stay smooth at any size
        masks = F.interpolate(masks[:, None], size=(h, w), mode="bilinear")[:, 0]
    return masks > 0.5


@cache
def _bank(device: torch.device) -> Float[Tensor, "n side side"]:
    """256 fixed soft masks; each a brush's random walk over a plane that wraps around, 1 under the brush."""
    if device.type != "cpu":
        return _bank(torch.device("cpu")).to(device)
    generator = torch.Generator().manual_seed(0)
    return torch.stack([_walk(generator) for _ in range(256)])


def _walk(generator: torch.Generator) -> Float[Tensor, "side side"]:
    """Walks of 4 to 12 straight steps, each turning by up to 1.2 rad, with a brush of 0.04 to 0.14 in radius.

    OpenCV draws it in 0.17 times the time, but 3% of the pixels differ from those that models were trained with.
    """

    def uniform(low: float, high: float, n: int = 1) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator)

    n, radius = int(uniform(4.0, 13.0)), uniform(0.04, 0.14)
    heading = uniform(0.0, math.tau) + uniform(-1.2, 1.2, n).cumsum(0)
    step = torch.stack([heading.sin(), heading.cos()], 1) * uniform(0.1, 0.3, n)[:, None]
    start = uniform(0.0, 1.0, 2) + step.cumsum(0) - step
    axis = (torch.arange(SIDE) + 0.5) / SIDE
    point = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1)[:, :, None]
    point = (point - start - step / 2 + 0.5) % 1 - 0.5 + step / 2  # from the start, the short way round
    along = ((point * step).sum(-1) / step.square().sum(-1)).clamp(0, 1)
    gap = (point - along[..., None] * step).square().sum(-1).sqrt().amin(-1) - radius
    return (0.5 - gap * SIDE).clamp(0, 1)
