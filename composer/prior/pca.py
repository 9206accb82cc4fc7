"""Principal components of image embeddings, and their quantisation."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from composer.devices import to_float64
from composer.prior.interface import to_sphere

DOT_QUANTILES = 1024
"""Quantiles by which the distribution of the dot products is stored."""


def fit_pca(semantics: Float[Tensor, "n d"], text: Float[Tensor, "n d"]) -> dict[str, Tensor]:
    """Computes the principal components of image embeddings, and how these embeddings agree with their captions'.

    Args:
        semantics: Image embeddings, one per image.
        text: Text embeddings of the same images' captions.

    Returns:
        ``mean`` (d,), ``components`` (d d), one per row, by decreasing variance; ``variance`` (d,); ``low`` and
        ``high`` (d,), the range of each component; ``dots``, quantiles of the cosine of image and text embedding;
        ``text_mean`` (d,) and ``regression`` (d d), for the best linear estimate mean + (text - text_mean) @
        regression, and ``rest_components`` and ``rest_variance`` of its residuals.

    Raises:
        ValueError: There are too few rows.
    """
    n, d = semantics.shape
    if n <= d:
        raise ValueError(f"expected more than {d} embeddings to find their {d} principal components, found {n}")
    wide, said = to_float64(semantics), to_float64(text)
    mean, text_mean = wide.mean(0), said.mean(0)
    centred, told = wide - mean, said - text_mean
    variance, components = _principal(centred)
    projected = centred @ components.T
    regression = torch.linalg.pinv(told.T @ told, rtol=1e-9, hermitian=True) @ (told.T @ centred)
    rest_variance, rest_components = _principal(centred - told @ regression)
    dots = to_float64((to_sphere(semantics) * to_sphere(text)).mean(1))
    found = {
        "mean": mean,
        "components": components,
        "variance": variance,
        "low": projected.amin(0),
        "high": projected.amax(0),
        "dots": _quantiles(dots, DOT_QUANTILES),
        "text_mean": text_mean,
        "regression": regression,
        "rest_components": rest_components,
        "rest_variance": rest_variance,
    }
    return {name: value.float() for name, value in found.items()}


def _principal(centred: Float[Tensor, "n d"]) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"]]:
    """Variances, decreasing, and components, one per row, signed so that the largest number is positive."""
    variance, components = torch.linalg.eigh(centred.T @ centred / len(centred))
    components = components.T.flip(0)
    return variance.flip(0).clamp(min=0), components * components.gather(1, components.abs().argmax(1, True)).sign()


def _quantiles(values: Float[Tensor, " n"], count: int) -> Float[Tensor, " m"]:
    """`count` + 1 quantiles, the ends among them; torch.quantile refuses large inputs."""
    ordered = values.sort().values
    position = torch.linspace(0, len(ordered) - 1, count + 1, dtype=torch.float64)
    low = position.long()
    return torch.lerp(ordered[low], ordered[(low + 1).clamp(max=len(ordered) - 1)], position - low)


def dimensions_for(variance: Float[Tensor, " d"], share: float) -> int:
    """How many leading components explain a share of the variance.

    Args:
        variance: Of each component, decreasing.
        share: In (0, 1], such as 0.99.
    """
    exact = to_float64(variance)
    kept = exact.cumsum(0) / exact.sum()
    return min(int((kept < share - 1e-12).sum()) + 1, len(variance))


def take_over(module: nn.Module, found: Mapping[str, Tensor], dim: int) -> None:
    """Fills a module's buffers with the statistics of `fit_pca`, of embeddings of width `dim`.

    Raises:
        ValueError: They are of embeddings of another width, or something else.
    """
    own = dict(module.named_buffers())
    check_found(found, {name: value.shape for name, value in own.items()}, dim)
    for name, value in own.items():
        value.copy_(found[name])


def check_found(found: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]], dim: int) -> None:
    """Checks that principal components were found on embeddings of width `dim`.

    Raises:
        ValueError: One of these is missing, or of another shape.
    """
    if wrong := [name for name, shape in shapes.items() if name not in found or found[name].shape != tuple(shape)]:
        raise ValueError(
            f"expected the principal components of embeddings of width {dim} (`composer pca` writes them); "
            f"{', '.join(wrong)} is missing or of another shape"
        )


class Codebook(nn.Module):
    """Quantises embeddings: one integer per principal component, whose range is divided into equal buckets.

    Args:
        dim: Width of the embeddings.
        dimensions: Leading components that are kept; 319 of 1024 in the paper.
        buckets: Buckets per component; 1,024 in the paper.
    """

    mean: Tensor
    components: Tensor
    low: Tensor
    high: Tensor
    dots: Tensor

    def __init__(self, dim: int, dimensions: int, buckets: int):
        super().__init__()
        if not 1 <= dimensions <= dim or buckets < 2:
            raise ValueError(f"expected 1 to {dim} dimensions and at least 2 buckets, found {dimensions} and {buckets}")
        self.dim, self.dimensions, self.buckets = dim, dimensions, buckets
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("components", torch.zeros(dimensions, dim))
        self.register_buffer("low", torch.zeros(dimensions))
        self.register_buffer("high", torch.zeros(dimensions))
        self.register_buffer("dots", torch.zeros(DOT_QUANTILES + 1))

    def adopt(self, found: Mapping[str, Tensor]) -> None:
        """Takes over the statistics of `fit_pca`.

        Raises:
            ValueError: They are of embeddings of another width, or something else.
        """
        rows = {"components", "low", "high"}
        cut = {name: value[: self.dimensions] if name in rows else value for name, value in found.items()}
        take_over(self, cut, self.dim)

    @property
    def fitted(self) -> bool:
        """Whether principal components are known."""
        return bool((self.high > self.low).all())

    def encode(self, semantics: Float[Tensor, "b d"]) -> Int[Tensor, "b k"]:
        """The bucket of each component; values outside the training's range get the first or the last bucket."""
        share = ((semantics.float() - self.mean) @ self.components.T - self.low) / (self.high - self.low)
        return (share * self.buckets).floor().long().clamp(0, self.buckets - 1)

    def decode(self, codes: Int[Tensor, "b k"]) -> Float[Tensor, "b d"]:
        """The embedding whose components are the middles of their buckets."""
        projected = torch.lerp(self.low, self.high, (codes + 0.5) / self.buckets)
        return projected @ self.components + self.mean

    def rank(self, dot: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """The share, in [0, 1), of the training's images whose cosine with their caption is smaller."""
        below = torch.searchsorted(self.dots, dot.float().contiguous(), right=True)
        return ((below - 1).clamp(min=0) / DOT_QUANTILES).clamp(max=1 - 1e-6)
