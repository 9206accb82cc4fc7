"""The interface of codecs: images to latents, on which a stage may work, and back."""

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor, nn

from composer.storage.building import Buildable


class Codec(nn.Module, Buildable, ABC):
    """Encodes images as latents, in which a stage draws, and decodes them (Rombach et al. 2022, section 3).

    Attributes:
        channels: Channels of the latents.
        factor: How many times smaller the latents' height and width are than the image's.
        scale: What latents are multiplied by, so that they have about unit variance.
        bounded: Whether latents lie in [-1, 1], so that a stage may clip its estimates to that range.
    """

    channels: int
    factor: int
    scale: float = 1.0
    bounded: bool = False

    @abstractmethod
    def encode(
        self, images: Float[Tensor, "b 3 h w"], noise: Float[Tensor, "b c h2 w2"] | None = None
    ) -> Float[Tensor, "b c h2 w2"]:
        """Encodes images.

        Args:
            images: In [-1, 1].
            noise: Standard normal, of the latents' shape, to sample latents where the codec gives a distribution;
                None takes its most likely latents.

        Returns:
            Latents, multiplied by `scale`.

        Raises:
            ValueError: Height or width is not a multiple of `factor`.
        """

    @abstractmethod
    def decode(self, latents: Float[Tensor, "b c h2 w2"]) -> Float[Tensor, "b 3 h w"]:
        """Decodes latents to images, in about [-1, 1]."""

    def decode_in_tiles(self, latents: Float[Tensor, "b c h2 w2"], tile: int) -> Float[Tensor, "b 3 h w"]:
        """Does what `decode` does, up to rounding, in less memory where the codec can.

        Args:
            latents: See `decode`.
            tile: Side of the tiles, in pixels.
        """
        return self.decode(latents)


class Pixels(Codec):
    """Latents that are the images themselves: the codec of a stage that works on pixels."""

    channels = 3
    factor = 1
    bounded = True

    def encode(
        self, images: Float[Tensor, "b 3 h w"], noise: Float[Tensor, "b 3 h w"] | None = None
    ) -> Float[Tensor, "b 3 h w"]:
        return images

    def decode(self, latents: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        return latents
