"""Grounds, skies and light of a scene, as precomputed, mip-mapped textures."""

from collections.abc import Callable
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

GROUNDS = ("sand", "grass", "snow", "stone", "wood", "tiles")
SKIES = ("clear", "cloudy", "dawn", "dusk", "night", "stormy")

TEXELS = 512
"""Width of a texture at its finest level; a power of two."""

GROUND_TILE = 8.0
"""Width in the world after which a ground repeats, in units of a large sphere's radius."""

# One row per sky, linear RGB: colour at the horizon, at the zenith, of the clouds, of the sun (or moon), of the ambient
# light. Suns are hardly tinted, so that a thing keeps the colour in its caption.
SKY_LIGHT = torch.tensor(
    [
        [[0.50, 0.72, 0.95], [0.05, 0.22, 0.75], [1.00, 1.00, 1.00], [1.22, 1.15, 1.03], [0.27, 0.32, 0.40]],
        [[0.74, 0.77, 0.80], [0.28, 0.32, 0.38], [0.92, 0.93, 0.95], [0.70, 0.70, 0.68], [0.50, 0.51, 0.53]],
        [[1.00, 0.74, 0.46], [0.40, 0.50, 0.82], [1.00, 0.52, 0.55], [1.20, 1.04, 0.92], [0.33, 0.29, 0.35]],
        [[0.95, 0.24, 0.10], [0.07, 0.03, 0.36], [0.80, 0.08, 0.20], [1.25, 0.98, 0.84], [0.22, 0.20, 0.34]],
        [[0.030, 0.045, 0.13], [0.003, 0.006, 0.030], [0.9, 0.9, 1.0], [0.74, 0.80, 0.95], [0.14, 0.16, 0.25]],
        [[0.21, 0.25, 0.25], [0.05, 0.07, 0.08], [0.015, 0.02, 0.025], [0.72, 0.75, 0.74], [0.34, 0.38, 0.38]],
    ]
)


def _noise(beta: float, seed: int, stretch: float = 1.0) -> Float[Tensor, "t t"]:
    """Tileable Gaussian noise of unit variance whose spectrum falls as |frequency|^-beta; stretched along rows."""
    white = torch.randn(TEXELS, TEXELS, generator=torch.Generator().manual_seed(seed))
    fy, fx = torch.fft.fftfreq(TEXELS)[:, None], torch.fft.rfftfreq(TEXELS)[None]
    radius = ((fx * stretch).square() + (fy / stretch).square()).sqrt().clamp(min=1 / TEXELS)
    spectrum = torch.fft.rfft2(white) * radius.pow(-beta)
    spectrum[0, 0] = 0
    field: Tensor = torch.fft.irfft2(spectrum, s=(TEXELS, TEXELS))
    return field / field.std()


def _mix(a: list[float], b: list[float], share: Float[Tensor, "t t"]) -> Float[Tensor, "3 t t"]:
    """Blends two sRGB colours and gives the result in linear RGB."""
    low, high = torch.tensor(a)[:, None, None], torch.tensor(b)[:, None, None]
    return torch.lerp(low, high, share.clamp(0, 1)[None]).clamp(0, 1).pow(2.2)


def _joints(rows: int, columns: int, width: float) -> tuple[Float[Tensor, "t t"], Int[Tensor, "t t"]]:
    """A running bond of `rows` x `columns` slabs: 1 in the joints, and each slab's index."""
    y, x = torch.meshgrid(torch.arange(TEXELS) / TEXELS, torch.arange(TEXELS) / TEXELS, indexing="ij")
    row = (y * rows).floor()
    across = x * columns + row % 2 / 2
    edge = torch.minimum(_edge(y * rows) / rows, _edge(across) / columns) * GROUND_TILE
    return (edge < width).float(), (row * columns + across.floor() % columns).long()


def _edge(x: Tensor) -> Tensor:
    """Distance to the nearest whole number."""
    return (x - x.round()).abs()


def _sand() -> Float[Tensor, "3 t t"]:
    y = torch.arange(TEXELS)[:, None] / TEXELS
    ripples = torch.sin(2 * torch.pi * (11 * y + 0.45 * _noise(2.2, 1)))
    return _mix([0.72, 0.57, 0.38], [0.97, 0.86, 0.64], 0.55 + 0.22 * ripples + 0.10 * _noise(0.6, 2))


def _grass() -> Float[Tensor, "3 t t"]:
    return _mix([0.13, 0.27, 0.08], [0.50, 0.62, 0.22], 0.45 + 0.16 * _noise(1.6, 3) + 0.17 * _noise(0.4, 4))


def _snow() -> Float[Tensor, "3 t t"]:
    return _mix([0.76, 0.83, 0.94], [1.0, 1.0, 1.0], 0.65 + 0.25 * _noise(2.0, 5) + 0.05 * _noise(0.0, 6))


def _stone() -> Float[Tensor, "3 t t"]:
    joint, slab = _joints(8, 6, 0.045)
    tone = torch.rand(48, generator=torch.Generator().manual_seed(7))[slab]
    return _mix([0.30, 0.30, 0.32], [0.66, 0.65, 0.64], 0.30 + 0.45 * tone + 0.13 * _noise(0.9, 8) - 0.7 * joint)


def _wood() -> Float[Tensor, "3 t t"]:
    joint, slab = _joints(9, 2, 0.03)
    tone = torch.rand(18, generator=torch.Generator().manual_seed(9))[slab]
    return _mix([0.25, 0.13, 0.06], [0.72, 0.48, 0.27], 0.30 + 0.40 * tone + 0.16 * _noise(1.0, 10, 4.0) - 0.8 * joint)


def _tiles() -> Float[Tensor, "3 t t"]:
    square = torch.arange(TEXELS) * 8 // TEXELS
    dark = (square[:, None] + square[None]) % 2
    return _mix([0.24, 0.26, 0.33], [0.90, 0.88, 0.82], 1.0 * dark + 0.06 * _noise(1.5, 11))


def _clouds(level: float, contrast: float) -> Callable[[], Float[Tensor, "3 t t"]]:
    return lambda: (level + contrast * _noise(1.9, 12)).clamp(0, 1)[None].repeat(3, 1, 1)


def _stars() -> Float[Tensor, "3 t t"]:
    brightness = torch.rand(TEXELS, TEXELS, generator=torch.Generator().manual_seed(13))
    return ((brightness - 0.992) / 0.008).clamp(min=0).sqrt()[None].repeat(3, 1, 1)


_BAKERS: tuple[Callable[[], Tensor], ...] = (
    *(_sand, _grass, _snow, _stone, _wood, _tiles),
    *(_clouds(0.05, 0.35), _clouds(0.5, 0.45), _clouds(0.1, 0.4), _clouds(0.15, 0.45), _stars, _clouds(0.55, 0.5)),
)
"""The textures, in the order of `GROUNDS`, then of `SKIES`; a sky's is the density of its clouds or stars."""


@cache
def atlas(device: torch.device) -> tuple[Float[Tensor, "n 3"], Int[Tensor, " levels"]]:
    """All textures with all levels as one list of texels, and the offset of each level within a texture."""
    image = torch.stack([bake() for bake in _BAKERS])
    levels = [image]
    while image.shape[-1] > 1:
        image = torch.nn.functional.avg_pool2d(image, 2)
        levels.append(image)
    texels = torch.cat([level.flatten(2) for level in levels], 2).transpose(1, 2)
    starts = torch.tensor([0, *(level.shape[-1] ** 2 for level in levels[:-1])]).cumsum(0)
    return texels.reshape(-1, 3).contiguous().to(device), starts.to(device)


def sample(
    texture: Int[Tensor, " n"], u: Float[Tensor, " n"], v: Float[Tensor, " n"], footprint: Float[Tensor, " n"]
) -> Float[Tensor, "3 n"]:
    """Looks textures up, filtered to a footprint (trilinear mip-mapping, Williams 1983).

    Args:
        texture: Index into `GROUNDS`, or `len(GROUNDS)` + index into `SKIES`.
        u: Position along a texture's rows; it repeats after 1.
        v: Position across them.
        footprint: Width of a pixel in the same unit.
    """
    texels, starts = atlas(u.device)
    top = len(starts) - 1
    level = (footprint * TEXELS).clamp(min=1e-6).log2().clamp(0, top - 1e-3)
    lower = level.floor()
    blend = level - lower
    base = texture * (len(texels) // len(_BAKERS))
    fine, coarse = (_bilinear(texels, base + starts[k], TEXELS >> k, u, v) for k in (lower.long(), lower.long() + 1))
    return torch.lerp(fine, coarse, blend[:, None]).T


def _bilinear(texels: Tensor, base: Tensor, width: Tensor, u: Tensor, v: Tensor) -> Float[Tensor, "n 3"]:
    x, y = u * width - 0.5, v * width - 0.5
    x0, y0 = x.floor(), y.floor()
    fx, fy = (x - x0)[:, None], (y - y0)[:, None]
    left, right = x0.long() & (width - 1), (x0.long() + 1) & (width - 1)
    above, below = base + (y0.long() & (width - 1)) * width, base + ((y0.long() + 1) & (width - 1)) * width
    upper = torch.lerp(texels[above + left], texels[above + right], fx)
    return torch.lerp(upper, torch.lerp(texels[below + left], texels[below + right], fx), fy)
