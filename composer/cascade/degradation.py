"""Realistic degradation of small images, for upsamplers that should work on any image."""

import io
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from PIL import Image
from torch import Generator, Tensor
from torch.nn import functional as F

from composer.cascade.low_res import Corruption
from composer.images.sheet import from_pil, to_pil

INTERPOLATIONS = ("bilinear", "bicubic", "area")


class Degradation(Corruption):
    """unCLIP's corruption of its second upsampler's input, after BSR (Zhang et al. 2021, section 3).

    In random order: an isotropic and an anisotropic Gaussian blur, resizing down and up again, Gaussian noise
    (independent, grey or correlated over the channels), JPEG; then JPEG once more, as pictures are saved in the end.
    Each strength is uniform from 0 to level times its maximum; training uses level 1. The paper's camera sensor noise
    is left out.

    The defaults are the moderate strengths of latent diffusion (Rombach et al. 2022, appendix D.6.1, and its code),
    which found the paper's own very strong: noise to 25 and quality down to 30.

    Args:
        blur: Highest standard deviation of a blur, in pixels of the small image.
        shrink: How many times smaller the resizing makes it at most, at least 1.
        noise: Highest standard deviation of the noise, in 8-bit steps.
        quality: Lowest quality of JPEG, 1 to 95.
    """

    def __init__(self, blur: float = 1.4, shrink: float = 2.0, noise: float = 2.0, quality: int = 80):
        if blur < 0 or shrink < 1 or noise < 0 or not 1 <= quality <= 95:
            raise ValueError(
                "expected a blur and a noise of at least 0, a shrink of at least 1 and a quality of 1 to 95; "
                f"found blur {blur}, noise {noise}, shrink {shrink} and quality {quality}"
            )
        self.blur, self.shrink, self.noise, self.quality = blur, shrink, noise, quality

    def level(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return torch.ones_like(u)

    def corrupt(
        self, image: Float[Tensor, "b 3 h w"], level: Float[Tensor, " b"], seeds: Sequence[int]
    ) -> Float[Tensor, "b 3 h w"]:
        out = image.clone()
        for i, (strength, seed) in enumerate(zip(level.tolist(), seeds, strict=True)):
            if strength > 0:
                out[i : i + 1] = self._row(image[i : i + 1].float(), strength, Generator().manual_seed(seed))
        return out

    def _row(self, x: Float[Tensor, "1 3 h w"], level: float, generator: Generator) -> Float[Tensor, "1 3 h w"]:
        steps = (self._blur_evenly, self._blur_along, self._resize, self._add_noise, self._compress)
        for i in torch.randperm(len(steps), generator=generator).tolist():
            x = steps[i](x, level, generator)
        return self._compress(x, level, generator)

    def _blur_evenly(self, x: Tensor, level: float, generator: Generator) -> Tensor:
        sigma = level * self.blur * _uniform(generator)
        return _blurred(x, sigma, sigma, 0.0)

    def _blur_along(self, x: Tensor, level: float, generator: Generator) -> Tensor:
        long, short = (level * self.blur * _uniform(generator) for _ in range(2))
        return _blurred(x, long, short, math.pi * _uniform(generator))

    def _resize(self, x: Tensor, level: float, generator: Generator) -> Tensor:
        """Without antialiasing except for `area`: aliasing is one of the degradations."""
        factor = 1 + level * (self.shrink - 1) * _uniform(generator)
        down, up = (INTERPOLATIONS[int(_uniform(generator) * len(INTERPOLATIONS))] for _ in range(2))
        h, w = x.shape[2:]
        small = F.interpolate(x, (max(1, round(h / factor)), max(1, round(w / factor))), mode=down)
        return F.interpolate(small, (h, w), mode=up)

    def _add_noise(self, x: Tensor, level: float, generator: Generator) -> Tensor:
        sigma = level * self.noise / 127.5 * _uniform(generator)
        kind = _uniform(generator)
        white = torch.randn(x.shape[1:], generator=generator)
        mix = torch.eye(3)
        if kind < 0.4:
            mix = torch.tensor([[1.0, 0, 0]] * 3)  # one noise for all channels: grey
        elif kind < 0.6:
            basis = torch.linalg.qr(torch.randn(3, 3, generator=generator)).Q
            mix = basis * torch.rand(3, generator=generator).sqrt()
        return x + sigma * torch.einsum("ij,jhw->ihw", mix, white).to(x)

    def _compress(self, x: Tensor, level: float, generator: Generator) -> Tensor:
        """By Pillow: torchvision gives the same pixels in 0.35 times the time, but has no 4:4:4 (above 95)."""
        quality = round(100 - level * (5 + (95 - self.quality) * _uniform(generator)))
        file = io.BytesIO()
        to_pil(x[0]).save(file, "JPEG", quality=quality, subsampling="4:4:4" if quality > 95 else "4:2:0")
        return from_pil(Image.open(file))[None].to(x)


def _blurred(x: Float[Tensor, "1 3 h w"], sigma1: float, sigma2: float, angle: float) -> Float[Tensor, "1 3 h w"]:
    """Blurs with a Gaussian of standard deviations sigma1 along `angle` (radians) and sigma2 across.

    kornia's `filter2d` gives the same, bit for bit, in 1.1 times the time; OpenCV's in 0.34, on the CPU alone.
    """
    radius = math.ceil(3 * max(sigma1, sigma2))
    if radius == 0:
        return x
    line = torch.arange(-radius, radius + 1.0)
    dy, dx = torch.meshgrid(line, line, indexing="ij")
    along, across = dx * math.cos(angle) + dy * math.sin(angle), dy * math.cos(angle) - dx * math.sin(angle)
    least = 1e-2  # of a pixel: as good as no blur, but not a division by 0
    weights = torch.exp(-((along / max(sigma1, least)) ** 2 + (across / max(sigma2, least)) ** 2) / 2)
    kernel = (weights / weights.sum()).to(x).expand(3, 1, -1, -1)
    return F.conv2d(F.pad(x, (radius,) * 4, mode="replicate"), kernel, groups=3)


def _uniform(generator: Generator) -> float:
    return float(torch.rand((), generator=generator))
