"""The previous stage's image."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from composer.conditioning import Condition, Conditioning
from composer.networks.unet import sinusoids

from .spatial import Placed, convolutions


class LowRes(Condition):
    """The small image, enlarged and concatenated to the noisy one; joint dropout never drops it.

    Args:
        spatial_dim: Channels of the U-Net's map. 3 concatenates the image itself, as in the papers; more, if other
            local conditions share the map, adds two convolutions.
        offset: Where the image itself is put among the map's channels, without convolutions, see `Spatial`.
        resize: How it is enlarged: ``bilinear`` as in ADM and GLIDE, or ``bicubic`` (antialiased) as in Karlo.
        vector_dim: Width of the U-Net's embedding, to which the level of augmentation is added (Imagen, section 2.5);
            0 does not tell the network (unCLIP).
        width: Channels of the level's sinusoidal embedding.
    """

    always = True

    def __init__(
        self,
        spatial_dim: int = 3,
        vector_dim: int = 0,
        width: int = 128,
        offset: int | None = None,
        resize: Literal["bilinear", "bicubic"] = "bilinear",
    ):
        super().__init__(dropout=0.0)
        if resize not in ("bilinear", "bicubic"):
            raise ValueError(f"expected resize to be bilinear or bicubic, found {resize!r}")
        self.width, self.resize = width, resize
        self.encode: nn.Module = nn.Identity() if spatial_dim == 3 else convolutions(3, 16, spatial_dim)
        if offset is not None:
            self.encode = Placed(3, spatial_dim, offset)
        self.embed = (
            nn.Sequential(nn.Linear(width, vector_dim), nn.SiLU(), nn.Linear(vector_dim, vector_dim))
            if vector_dim
            else None
        )

    def forward(self, value: Float[Tensor, "b 4 h w"], keep: Bool[Tensor, " b"], size: tuple[int, int]) -> Conditioning:
        """Enlarges `value`, an image and its level of augmentation, to `size`; see `Condition.forward`."""
        image, level = value[:, :3], value[:, 3, 0, 0]
        if image.shape[-2:] != size:
            image = F.interpolate(image, size, mode=self.resize, antialias=self.resize == "bicubic")
        kept = keep[:, None, None, None]
        return Conditioning(
            spatial=torch.where(kept, self.encode(image), 0),
            origin=torch.where(kept, image, 0),
            vector=self._embed_level(level, keep),
        )

    def example(self, b: int, size: tuple[int, int]) -> Float[Tensor, "b 4 h w"]:
        """A grey image a quarter as wide and high, as in the papers' cascades, and not corrupted."""
        return torch.zeros(b, 4, size[0] // 4, size[1] // 4)

    def silence(self, channels: int | None = None) -> None:
        """Refuses: an upsampler is another model, not one with an added condition."""
        raise ValueError("low_res can't be added to a trained stage: start from an upsampler")

    def _embed_level(self, level: Float[Tensor, " b"], keep: Bool[Tensor, " b"]) -> Tensor | None:
        if self.embed is None:
            return None
        return torch.where(keep[:, None], self.embed(sinusoids(level, self.width)), 0)
