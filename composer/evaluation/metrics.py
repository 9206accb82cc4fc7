"""Distribution metrics: how far generated images as a whole are from real ones, and each of them from its caption.

Fréchet distance (FID, Heusel et al. 2017, eq. 6), kernel distance (KID, Binkowski et al. 2018), CLIP score (Hessel
et al. 2021, section 3). Images are taken as their PNGs would give them back, and resized antialiased (Parmar et
al. 2022), so that neither a file format nor a resizing library is measured. Only numbers of the same features compare.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from composer.decomposition import Decomposer
from composer.evaluation.adherence import quantise
from composer.storage.pretrained import load_tensors, locate

if TYPE_CHECKING:
    from torchmetrics import Metric

Features = Callable[[Float[Tensor, "b 3 h w"]], Float[Tensor, "b d"]]
"""Reads images in [-1, 1]; row i depends on image i alone."""

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
"""The weights that FID is defined by, in torch-fidelity's layout, as its release v0.2.0 offers them."""


class Kid(NamedTuple):
    """A kernel distance.

    Attributes:
        value: Mean over the subsets. Unbiased: around 0 where the two distributions agree, and below it by chance.
        spread: Standard deviation over the subsets: of one of them, not of their mean.
    """

    value: float
    spread: float


def read_by(reader: Decomposer) -> Features:
    """Uses a decomposer as a feature extractor, such as `decomposers.Semantics`: CLIP's image embedding."""

    def features(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        value: Tensor = reader({"image": images})
        return value

    return features


def fid(real: Float[Tensor, "n 3 h w"], fake: Float[Tensor, "m 3 h2 w2"], features: Features) -> float:
    """Fréchet distance of two sets of images.

    It is biased by the number of images, upwards: compare at equal numbers, and with more images than features.

    Args:
        real: In [-1, 1].
        fake: In [-1, 1], of any size.
        features: What reads them, such as `Inception` or `read_by`.
    """
    return frechet_distance(embed(real, features), embed(fake, features))


def kid(
    real: Float[Tensor, "n 3 h w"],
    fake: Float[Tensor, "m 3 h2 w2"],
    features: Features,
    subsets: int = 100,
    subset_size: int | None = None,
    seed: int = 0,
) -> Kid:
    """Kernel distance of two sets of images; it is unbiased, so it also works for small samples.

    Where the fake images are made from the real ones (upsampled, say), the two are no independent draws: the estimate
    comes out too low, by much the same for every method. Compare methods with each other and with the true images' own
    distance, which is then below 0. Likewise for `tiles`, of which many come from one image.

    Args:
        real: In [-1, 1].
        fake: In [-1, 1], of any size.
        features: What reads them, such as `Inception` or `read_by`. A reader of small images sees no detail of large
            ones; it does in their `tiles`.
        subsets: See `kernel_distance`.
        subset_size: See `kernel_distance`.
        seed: See `kernel_distance`.
    """
    return kernel_distance(embed(real, features), embed(fake, features), subsets, subset_size, seed)


@torch.no_grad()
def embed(images: Float[Tensor, "b 3 h w"], features: Features, rows: int = 32) -> Float[Tensor, "b d"]:
    """Computes the features of images, rounded to 8 bits, batch by batch; in float64, on the CPU."""
    parts = [images[start : start + rows] for start in range(0, len(images), rows)]
    return torch.cat([features(quantise(part)).cpu().double() for part in parts])


def frechet_distance(real: Float[Tensor, "n d"], fake: Float[Tensor, "m d"]) -> float:
    """Fréchet distance of the Gaussians that have the features' means and covariances.

    |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2))  (Heusel et al. 2017, eq. 6)

    Raises:
        ValueError: There are fewer than 2 rows of either.
    """
    _check(real, fake)
    moments = _moments(real.shape[1])
    moments.update(real, real=True)
    moments.update(fake, real=False)
    return float(moments.compute())


def _moments(d: int) -> "Metric":
    """Sums of features and of their products, in float64, and the Fréchet distance that they give."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    return FrechetInceptionDistance(feature=_Given(d)).set_dtype(torch.float64)


def kernel_distance(
    real: Float[Tensor, "n d"],
    fake: Float[Tensor, "m d"],
    subsets: int = 100,
    subset_size: int | None = None,
    seed: int = 0,
) -> Kid:
    """Squared maximum mean discrepancy under the kernel (x.y / d + 1)^3, averaged over random subsets.

    Args:
        real: Features.
        fake: Features.
        subsets: How many are drawn.
        subset_size: Rows in each; None takes half of the smaller set, at most the paper's 1000. With all rows of two
            equal sets every subset is the same and the spread is 0.
        seed: Draws the subsets; no other generator is read or moved.

    Raises:
        ValueError: There are fewer rows than a subset has, or too few for one.
    """
    from torchmetrics.image.kid import poly_mmd

    _check(real, fake)
    least = min(len(real), len(fake))
    size = max(2, min(1000, least // 2)) if subset_size is None else subset_size
    if not 2 <= size <= least or subsets < 1:
        raise ValueError(f"expected subsets of 2 to {least} images, found {subsets} of {size}")
    generator, values = torch.Generator().manual_seed(seed), []
    for _ in range(subsets):
        a, b = (rows[torch.randperm(len(rows), generator=generator)[:size]].double() for rows in (real, fake))
        values.append(poly_mmd(a, b))
    found = torch.stack(values)
    return Kid(float(found.mean()), float(found.std(correction=0)))


class Comparison:
    """Compares two sets of images, batch by batch; no image is kept.

    For FID it keeps sums of the features and of their products, 8 d (d + 1) bytes per set (34 MB at Inception's 2048
    features). For KID it keeps the features, 4 n d bytes per set (246 MB at 30,000 images and 2048 features).

    Args:
        features: What reads the images.
        metrics: ``fid``, ``kid`` or both; other names are ignored.
        count: Images of each set.
    """

    def __init__(self, features: Features, metrics: Collection[str], count: int):
        self.features, self.fid, self.kid, self.count = features, "fid" in metrics, "kid" in metrics, count
        self.seen = self.width = 0

    def update(
        self, real: Float[Tensor, "b 3 h w"], fake: Float[Tensor, "b 3 h2 w2"], place: int | None = None
    ) -> None:
        """Adds as many images of one set as of the other.

        Args:
            real: In [-1, 1].
            fake: In [-1, 1].
            place: Of the first among all images of a set; None puts them behind those that came before.
        """
        read = embed(real, self.features), embed(fake, self.features)
        if not self.width:
            self._begin(read[0].shape[1])
        first = self.seen if place is None else place
        for kept, found, is_real in zip(self._kept, read, (True, False), strict=True):
            if self.fid:
                self._moments.update(found, real=is_real)
            if self.kid:
                kept[first : first + len(found)] = found
        self.seen += len(real)

    def _begin(self, width: int) -> None:
        self.width = width
        self._moments = _moments(width)
        self._kept = torch.zeros(2, self.count if self.kid else 0, width)

    def sums(self) -> dict[str, Tensor]:
        """What was added, as tensors; those of two comparisons of different places add up."""
        moments = {name: x for name, x in self._moments.metric_state.items() if isinstance(x, Tensor)}
        return moments | {"kept": self._kept}

    def take_sums(self, sums: Mapping[str, Tensor]) -> None:
        """Goes on from what `sums` gave."""
        kept = sums["kept"]
        self._begin(kept.shape[2])
        self._kept = kept
        self._moments.update(torch.zeros(0, self.width, dtype=torch.float64), real=True)  # it counts as updated
        for name in self._moments.metric_state:
            if name in sums:
                setattr(self._moments, name, sums[name])

    def compute(self) -> dict[str, Any]:
        """Returns ``fid``, ``kid`` (a `Kid` as a dict) and ``features``, their number, after all images were added."""
        found: dict[str, Any] = {"fid": float(self._moments.compute())} if self.fid else {}
        found |= {"kid": kernel_distance(*self._kept)._asdict()} if self.kid else {}
        return found | {"features": self.width}


def clip_score(
    images: Float[Tensor, "b 3 h w"], captions: Sequence[str], reader: Decomposer, rows: int = 32
) -> Float[Tensor, " b"]:
    """100 max(cos, 0) of each image's and its caption's CLIP embedding (Hessel et al. 2021; they scale by 2.5).

    Args:
        images: In [-1, 1].
        captions: One per image.
        reader: Reads images and captions into one space, its distance 1 - cos: `decomposers.Agreement`.
        rows: How many are read at a time.

    Raises:
        ValueError: The reader reads no images or no captions, or the numbers differ.
    """
    if len(images) != len(captions):
        raise ValueError(f"expected one caption per image, found {len(images)} images and {len(captions)} captions")
    if not (reader.can_read({"image": images[:1]}) and reader.can_read({"caption": captions[:1]})):
        raise ValueError(
            f"a CLIP score needs a reader of images and captions; {type(reader).__name__} is none, Agreement is"
        )
    scores = []
    for start in range(0, len(images), rows):
        part = slice(start, start + rows)
        wanted = reader({"caption": list(captions[part])})
        got = reader({"image": quantise(images[part])})
        scores.append(100 * (1 - reader.distance(wanted.to(got.device), got)).clamp(min=0).cpu())
    return torch.cat(scores)


def tiles(images: Float[Tensor, "b c h w"], size: int) -> Float[Tensor, "n c {size} {size}"]:
    """Cuts images into squares that do not overlap, so that a reader of small images sees the details of large ones.

    Raises:
        ValueError: The images' sides are no multiples of `size`.
    """
    b, c, h, w = images.shape
    if h % size or w % size:
        raise ValueError(f"expected sides that are multiples of {size}, found {h} x {w}")
    cut = images.reshape(b, c, h // size, size, w // size, size)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(-1, c, size, size)


class Inception(nn.Module):
    """Inception v3's 2048 pooled features, which FID and KID are defined on, as clean-fid reads them.

    Args:
        weights: The file ``weights-inception-2015-12-05-6726825d.pth`` of torch-fidelity's release v0.2.0 (Apache-2.0).

    Raises:
        FileNotFoundError: It is not there.
        ImportError: torch-fidelity, which brings the network, is not installed.
        ValueError: The file holds something else.
    """

    SIZE = 299

    def __init__(self, weights: str):
        super().__init__()
        path = locate(weights, wanted=f"{INCEPTION_FILE}, as torch-fidelity's release v0.2.0 has it", who="Inception")
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise ImportError("Inception's network comes with torch-fidelity: pip install torch-fidelity") from error
        load_tensors(path)  # refuses what is no file of tensors
        try:
            network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(path))
        except RuntimeError as error:
            raise ValueError(f"{path} does not have the layout of {INCEPTION_FILE}: {error}") from error
        # The layers alone, in their order: the network's own way in takes 8 bits after the resizing
        self.layers = nn.Sequential(*(layer for name, layer in network.named_children() if name != "fc"))
        self.eval().requires_grad_(False)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 2048"]:
        """Reads images in [-1, 1], resized by antialiased bicubic interpolation and not rounded again."""
        levels = (images.float() + 1) * 127.5
        if levels.shape[-2:] != (self.SIZE, self.SIZE):
            levels = F.interpolate(levels, (self.SIZE, self.SIZE), mode="bicubic", antialias=True)
        self.to(images.device)
        pooled: Tensor = self.layers((levels - 128) / 128)
        return pooled.flatten(1)


class _Given(nn.Module):
    """Hands features that are there already to torchmetrics."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        return features


def _check(real: Tensor, fake: Tensor) -> None:
    if min(len(real), len(fake)) < 2:
        raise ValueError(f"distributions are compared from at least 2 images each, found {len(real)} and {len(fake)}")
