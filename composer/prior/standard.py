"""Embeddings with mean 0 and standard deviation 1 in each of their numbers."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from composer.prior.pca import check_found


class Standard(nn.Module):
    """Standardises embeddings by a stored mean and standard deviation per number, as Karlo's prior does.

    Args:
        dim: Width of the embeddings.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.zeros(dim))

    @property
    def fitted(self) -> bool:
        """Whether mean and standard deviation are known."""
        return bool((self.std > 0).all())

    def adopt(self, found: Mapping[str, Tensor]) -> None:
        """Takes over what `composer.prior.pca.fit_pca` found.

        Raises:
            ValueError: It was found on embeddings of another width, or is something else.
        """
        d = self.dim
        check_found(found, {"mean": (d,), "variance": (d,), "components": (d, d)}, d)
        self.mean.copy_(found["mean"])
        self.std.copy_((found["variance"] @ found["components"].square()).sqrt())

    def forward(self, embedding: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Standardises embeddings."""
        return (embedding - self.mean) / self.std

    def inverse(self, standard: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """The embeddings of standardised ones."""
        return standard * self.std + self.mean
