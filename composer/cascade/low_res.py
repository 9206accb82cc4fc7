"""The link between two stages: the smaller image as the next stage reads it, and how training corrupts it.

An upsampler that was trained on perfect small images fails on those that the previous stage draws. So training corrupts
them: with noise whose level the network is told (Ho et al. 2022; Imagen, section 2.5), or by blur and degradation
(unCLIP, section 2.3).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from composer.decomposition import Batch, Decomposer, draw
from composer.diffusion.samplers import latents
from composer.images.reading import fit
from composer.storage.building import Buildable

LEVEL, NOISE = 701, 702  # streams of `draw`
FINE = 1 << 20


class Corruption(Buildable, ABC):
    """A corruption of small images whose strength is a level in [0, 1], 0 being none."""

    @abstractmethod
    def level(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """The levels of training, for `u` uniform in [0, 1)."""

    @abstractmethod
    def corrupt(
        self, image: Float[Tensor, "b 3 h w"], level: Float[Tensor, " b"], seeds: Sequence[int]
    ) -> Float[Tensor, "b 3 h w"]:
        """Corrupts images in [-1, 1], each by its own level and seed; the result may leave that range."""


class GaussianNoise(Corruption):
    """Imagen's noise-conditioning: variance-preserving Gaussian noise, alpha x + s noise with s = sin(pi level / 2).

    Args:
        highest: Training draws levels from U[0, highest]; 1 in Imagen. A small network that samples only at low
            levels is better with less.
    """

    def __init__(self, highest: float = 1.0):
        if not 0 < highest <= 1:
            raise ValueError(f"expected a highest level in (0, 1], found {highest}")
        self.highest = highest

    def level(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return self.highest * u

    def corrupt(
        self, image: Float[Tensor, "b 3 h w"], level: Float[Tensor, " b"], seeds: Sequence[int]
    ) -> Float[Tensor, "b 3 h w"]:
        angle = (level * (math.pi / 2))[:, None, None, None]
        return angle.cos() * image + angle.sin() * latents(seeds, tuple(image.shape[1:]), image.device)


class GaussianBlur(Corruption):
    """unCLIP's corruption of its first upsampler's input: a Gaussian blur, always at full level in training.

    kornia's blur agrees to 2e-7 and takes 4.4 times as long on a CPU; torchvision's mirrors the picture at its edges.

    Args:
        kernel: Side of the kernel, odd; 3 in unCLIP.
        sigma: Its standard deviation in pixels; 0.6 in unCLIP.
    """

    def __init__(self, kernel: int = 3, sigma: float = 0.6):
        if kernel % 2 == 0 or kernel < 1 or sigma <= 0:
            raise ValueError(f"expected an odd kernel and sigma > 0, found {kernel} and {sigma}")
        x = torch.arange(kernel) - kernel // 2
        line = torch.exp(-(x**2) / (2 * sigma**2))
        self.weights = torch.outer(line, line) / line.sum() ** 2

    def level(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return torch.ones_like(u)

    def corrupt(
        self, image: Float[Tensor, "b 3 h w"], level: Float[Tensor, " b"], seeds: Sequence[int]
    ) -> Float[Tensor, "b 3 h w"]:
        weights = self.weights.to(image).expand(3, 1, -1, -1)
        padded = F.pad(image, (len(self.weights) // 2,) * 4, mode="replicate")
        return torch.lerp(image, F.conv2d(padded, weights, groups=3), level[:, None, None, None])


class LowRes(Decomposer):
    """The previous stage's image, (b 4 h w): in [-1, 1], and in the last channel the level of its corruption.

    In training it is the batch's image, shrunk and corrupted at a level drawn from the sample's seed; without a seed
    it is not corrupted. In a cascade, the image that the previous stage has drawn goes through `corrupt`.

    Args:
        corruption: How training corrupts it; None never does.
        scale: How many times larger the stage's own image is.
    """

    at_source = False

    def __init__(self, corruption: Corruption | None = None, scale: int = 4):
        super().__init__()
        if scale < 2:
            raise ValueError(f"expected a stage that enlarges at least 2 times, found {scale}")
        self.corruption, self.scale = corruption, scale

    def forward(self, batch: Batch) -> Float[Tensor, "b 4 h w"]:
        small = shrink(batch["image"], self.scale)
        if "seed" not in batch or self.corruption is None:
            return self.corrupt(small, 0.0, [0] * len(small))
        u = draw(batch["seed"], LEVEL, FINE).to(small) / FINE
        return self.corrupt(small, self.corruption.level(u), draw(batch["seed"], NOISE, 1 << 62).tolist())

    def corrupt(
        self, image: Float[Tensor, "b 3 h w"], level: float | Float[Tensor, " b"], seeds: Sequence[int]
    ) -> Float[Tensor, "b 4 h w"]:
        """Corrupts small images at a level in [0, 1], one for all or one per row, and adds it as the last channel.

        Raises:
            ValueError: A level above 0 without a corruption, or outside [0, 1].
        """
        levels = torch.as_tensor(level, dtype=image.dtype, device=image.device).expand(len(image))
        low, high = (float(x) for x in levels.aminmax()) if len(levels) else (0.0, 0.0)
        if not 0 <= low <= high <= 1 or (high > 0 and self.corruption is None):
            raise ValueError(
                f"expected augmentation levels in [0, 1], found {low:g} to {high:g}"
                + ("" if self.corruption else "; this stage was trained without augmentation: 0 is its only level")
            )
        if self.corruption is not None and high > 0:
            image = self.corruption.corrupt(image, levels, seeds)
        return torch.cat([image, levels[:, None, None, None].expand(-1, 1, *image.shape[2:])], dim=1)

    def preview(self, value: Float[Tensor, "b 4 h w"]) -> Float[Tensor, "b 3 h w"]:
        return value[:, :3].clamp(-1, 1)

    def distance(self, wanted: Float[Tensor, "b 4 h w"], got: Float[Tensor, "b 4 h w"]) -> Float[Tensor, " b"]:
        """Mean absolute difference of the images, 0 to 2."""
        return (wanted[:, :3] - got[:, :3]).abs().mean((1, 2, 3))


def shrink(image: Float[Tensor, "b 3 h w"], scale: int) -> Float[Tensor, "b 3 h2 w2"]:
    """Makes images `scale` times smaller, see `composer.images.reading.fit`.

    Raises:
        ValueError: `scale` does not divide height and width.
    """
    h, w = image.shape[2:]
    if h % scale or w % scale:
        raise ValueError(f"expected images whose sides are multiples of {scale}, found {w} x {h}")
    return fit(image, (h // scale, w // scale))
