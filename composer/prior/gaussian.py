"""The best linear estimate of a noised embedding: what a diffusion prior with ``linear`` starts from."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from composer.prior.pca import take_over

BUFFERS = ("mean", "text_mean", "regression", "components", "variance", "rest_components", "rest_variance")


class Gaussian(nn.Module):
    """Embeddings as normally distributed, around a linear function of the text embedding; without text, more widely.

    Let m be the mean, and c_i the variance of z - m along its principal direction i. The best linear estimate of z from
    z + sigma noise is m, plus c_i / (c_i + sigma^2) times the residual z + sigma noise - m along each i; its squared
    error is c_i sigma^2 / (c_i + sigma^2). A network whose input is the residual in units of its standard deviation,
    and whose output is added in units of that error, has inputs and outputs of unit variance at every noise level and
    in every direction: the preconditioning of Karras et al. (2022, eq. 7), with a variance for each direction.

    Args:
        dim: Width of the embeddings.
    """

    mean: Tensor
    text_mean: Tensor
    regression: Tensor
    components: Tensor
    variance: Tensor
    rest_components: Tensor
    rest_variance: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim
        for name in BUFFERS:
            self.register_buffer(name, torch.zeros((dim,) if name.endswith(("mean", "variance")) else (dim, dim)))

    @property
    def fitted(self) -> bool:
        """Whether the statistics are known."""
        return bool((self.variance > 0).any())

    def adopt(self, found: Mapping[str, Tensor]) -> None:
        """Takes over the statistics of `composer.prior.pca.fit_pca`.

        Raises:
            ValueError: They are of embeddings of another width, or something else.
        """
        take_over(self, found, self.dim)

    def centre(self, text: Float[Tensor, "b d"], given: Bool[Tensor, " b"]) -> Float[Tensor, "b 1 d"]:
        """The mean of each row: given its text embedding, or that of all embeddings."""
        told = (text - self.text_mean) @ self.regression
        return (self.mean + torch.where(given[:, None], told, 0.0))[:, None]

    def read(
        self, z: Float[Tensor, "b k d"], sigma: Float[Tensor, "b k"], centre: Tensor, given: Bool[Tensor, " b"]
    ) -> Float[Tensor, "b k d"]:
        """Noised embeddings minus their mean, along the principal directions, in units of their standard deviation."""
        given, rest = given[:, None, None], z - centre
        turned = torch.where(given, rest @ self.rest_components.T, rest @ self.components.T)
        return turned * (self._variance(given) + sigma[..., None] ** 2).rsqrt()

    def estimate(
        self,
        seen: Float[Tensor, "b k d"],
        out: Float[Tensor, "b k d"],
        sigma: Float[Tensor, "b k"],
        centre: Tensor,
        given: Bool[Tensor, " b"],
    ) -> Float[Tensor, "b k d"]:
        """The estimate of the clean embedding, from the result of `read` and the network's output."""
        given, level = given[:, None, None], sigma[..., None]
        variance = self._variance(given)
        turned = variance.sqrt() * (variance.sqrt() * seen + level * out) * (variance + level**2).rsqrt()
        return centre + torch.where(given, turned @ self.rest_components, turned @ self.components)

    def error(self, sigma: Float[Tensor, "b k"], given: Bool[Tensor, " b"]) -> Float[Tensor, "b k"]:
        """The squared error of the best linear estimate, the mean over an embedding's numbers."""
        variance, level = self._variance(given[:, None, None]), sigma[..., None] ** 2
        return (variance * level / (variance + level)).mean(2)

    def _variance(self, given: Bool[Tensor, "b 1 1"]) -> Float[Tensor, "b 1 d"]:
        return torch.where(given, self.rest_variance, self.variance)
