"""The interface of networks that a denoiser runs."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from composer.conditioning import Conditioning
from composer.storage.building import Buildable


class Network(nn.Module, Buildable, ABC):
    """Maps a noisy image, its noise level and a conditioning to what the denoiser trains it to predict.

    Attributes:
        channels: Channels of the image.
        stride: Height and width of the image must be multiples of it.
        vector_dim: Width of `Conditioning.vector`; this and the next three are 0 where the network reads no such port.
        token_dim: Channels of `Conditioning.tokens`.
        spatial_dim: Channels of `Conditioning.spatial`.
        object_dim: Channels of `Conditioning.objects`.
        checkpointing: Whether to save memory in training by recomputing activations in the backward pass.
    """

    channels: int = 3
    stride: int = 1
    vector_dim: int = 0
    token_dim: int = 0
    spatial_dim: int = 0
    object_dim: int = 0
    checkpointing: bool = False

    @abstractmethod
    def forward(
        self, x: Float[Tensor, "b c h w"], level: Float[Tensor, " b"], cond: Conditioning
    ) -> Float[Tensor, "b c h w"]:
        """Runs the network.

        Args:
            x: Noisy images, scaled to about unit variance by the denoiser.
            level: Noise level as a time, 0 (clean) to 1 (noise), see `Denoiser`.
            cond: The conditioning; ports that are None are absent.
        """

    def prepare(self, cond: Conditioning) -> Conditioning:
        """Precomputes what depends on `cond` alone, so that sampling steps do not repeat it."""
        return cond

    def object_layers(self) -> Sequence[nn.Module]:
        """The layers that read `Conditioning.objects` and can be added to a trained network."""
        return []

    def inner_convolutions(self) -> list[Tensor]:
        """The weights that Muon may train: convolutions whose inputs and outputs are not image channels."""
        return []
