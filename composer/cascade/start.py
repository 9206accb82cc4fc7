"""Where sampling starts, if not at noise drawn from the seeds, and which part of an image stays."""

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from composer.cascade.parts import row, slerp
from composer.images.reading import fit


@dataclass(frozen=True)
class InitialNoise:
    """Initial noise from which a model reproduces an image (x_T of Composer, section 3.4), instead of the seeds'.

    Attributes:
        noise: Of about unit variance, with the shape of the first stage's images or latents; a row per seed, or one
            for all.
        model: Identity of the model that inverted the image, as others draw something else from it; None is any.
    """

    noise: Float[Tensor, "b c h w"] = field(repr=False)
    model: str | None = None

    def interpolate(self, other: "InitialNoise", share: float) -> "InitialNoise":
        """Interpolates to another noise along the great circle (DALL-E 2, section 3.2).

        Raises:
            ValueError: The other one is of another model, or another size.
        """
        if self.model != other.model:
            raise ValueError("the two noises are of different models: invert both images with one model")
        return InitialNoise(slerp(self.noise, other.noise, share), self.model)

    def row(self, i: int) -> "InitialNoise":
        """Keeps row i, or the only row."""
        return replace(self, noise=row(self.noise, i))

    def require(self, model: str, rows: int) -> None:
        """Checks that a model can start with it.

        Raises:
            ValueError: It is another model's, or has neither 1 nor `rows` rows.
        """
        if self.model not in (None, model):
            raise ValueError(
                f"this noise was found by another model ({str(self.model)[:12]}, this is {model[:12]}), from which it "
                "draws another picture: invert the image with the model that draws"
            )
        if len(self.noise) not in (1, rows):
            raise ValueError(f"expected initial noise of 1 or {rows} rows (one per seed), found {len(self.noise)}")


Latent = InitialNoise
"""Its name before 0.3."""


@dataclass(frozen=True)
class NoisyImage:
    """An image to which noise is added, from which the first stage starts (SDEdit, Meng et al. 2022).

    Attributes:
        image: In [-1, 1], of any size; a row per seed, or one for all.
        time: Noise level, as the cosine schedule's time in (0, 1]: the lower, the more of the image stays; below
            about 0.8 its layout does.

    Raises:
        ValueError: The time is out of range.
    """

    image: Float[Tensor, "b 3 h w"] = field(repr=False)
    time: float

    def __post_init__(self) -> None:
        if not 0 < self.time <= 1:
            raise ValueError(f"expected to start at a time in (0, 1], found {self.time}")

    def row(self, i: int) -> "NoisyImage":
        """Keeps row i, or the only row."""
        return replace(self, image=row(self.image, i))


@dataclass(frozen=True)
class SmallImage:
    """A small image to upsample: the stages up to its size are skipped.

    Attributes:
        image: In [-1, 1]; a row per seed, or one for all.
    """

    image: Float[Tensor, "b 3 h w"] = field(repr=False)

    def row(self, i: int) -> "SmallImage":
        """Keeps row i, or the only row."""
        return replace(self, image=row(self.image, i))


Start = InitialNoise | NoisyImage | SmallImage


@dataclass(frozen=True)
class Kept:
    """The part of an image that has to stay.

    Attributes:
        image: In [-1, 1], of any size; a row per seed, or one for all. Each stage resizes it to its own size.
        where: 1 where it stays.
    """

    image: Float[Tensor, "b 3 h w"] = field(repr=False)
    where: Float[Tensor, "#b 1 h2 w2"] = field(repr=False)

    def row(self, i: int) -> "Kept":
        """Keeps row i, or the only row."""
        return Kept(row(self.image, i), row(self.where, i))

    def at(self, size: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
        """Image and map at a stage's size; a pixel that is partly free counts as free."""
        return fit(self.image, size).to(device), keep_at(self.where, size).to(device)


def keep_at(where: Float[Tensor, "b 1 h w"], size: tuple[int, int]) -> Float[Tensor, "b 1 h2 w2"]:
    """Resizes a map that is 1 where an image stays; what is partly free counts as free."""
    if where.shape[-2:] == size:
        return where
    return (F.interpolate(1 - where, size, mode="bilinear", antialias=True) <= 0).to(where)
