"""From a batch of images to named representations."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from composer.devices import with_float64
from composer.names import Kind
from composer.storage.building import Buildable
from composer.storage.files import require_utf8

Batch = dict[str, Any]
"""A collated batch of a dataset. Keys that the core knows:

- ``image``: (b 3 h w) float32 in [-1, 1].
- ``source``: (b 3 H W) likewise, the same images with more pixels (see `Decomposition`); optional.
- ``caption``: list of b strings; ``""`` for an image without one.
- ``region``: (b 1 h w) float32, 1 where an edit may change the image.
- ``seed``: (b,) int64, one number per sample; present in training and validation. A random decomposer draws from it
  (see `draw`), and is deterministic without it.
- a tensor under a representation's name is used instead of extracting it.
- ``known``: name -> (b,) bool, the rows that have such a tensor, for names where only some do.
"""

Representations = dict[str, Tensor]
"""Name -> (b ...), one tensor, batch first. A missing name is absent for every row."""


class Decomposer(nn.Module, Buildable, ABC):
    """A frozen map from a batch to one representation. Device and dtype follow the input.

    Attributes:
        code_licence: Licence of the extraction code.
        weights_licence: Licence of the weights, as their authors state it.
        kind: What the representation says of an image. Tasks and evaluations choose conditions by it: `style_transfer`
            keeps one picture's layout and takes another's appearance. A condition without a kind takes part only if
            it is named.
        vocabulary: The words that it knows, of one that reads texts; None where they cannot be listed.
        boxed: Whether a row is slots (n d) that begin with a box, left, top, right and bottom in shares of the image,
            and end with 1 where they are filled: a crop of the image moves them.
        reducible: Whether its network may run in bfloat16, as measured by a test; see `Decomposition.reduce`. Not where
            rounding changes what is found, such as the scores of a detector near its threshold.
        compute_dtype: In which dtype its network runs under autocast; None is float32.
        at_source: Whether it reads images at the source's size, where a model has one (see `Decomposition`). Not what
            is about the very pixels that a model draws.
    """

    kind: Kind | None = None
    vocabulary: tuple[str, ...] | None = None
    at_source = True
    boxed = False
    reducible = False
    compute_dtype: torch.dtype | None = None
    code_licence = "Apache-2.0"
    weights_licence = "needs none"

    @abstractmethod
    def forward(self, batch: Batch) -> Tensor:
        """Extracts the representation, (b ...); row i depends only on row i of the batch."""

    @abstractmethod
    def preview(self, value: Tensor) -> Float[Tensor, "b 3 h w"]:
        """Draws a representation for people to look at, in [-1, 1]."""

    @abstractmethod
    def distance(self, wanted: Tensor, got: Tensor) -> Float[Tensor, " b"]:
        """Measures how far two representations are apart, per row; 0 where they agree. The unit is the subclass's."""

    def loss(self, wanted: Tensor, batch: Batch) -> Float[Tensor, " b"]:
        """Measures how far images are from a representation, per row, with a gradient to the images, for training.

        By default the distance of what `forward` extracts; not every decomposer has a gradient.
        """
        return self.distance(wanted, self(batch))

    def can_read(self, batch: Batch) -> bool:
        """Whether `batch` contains what `forward` needs; by default an image."""
        return "image" in batch

    def from_text(self, text: str) -> Tensor:
        """Makes the representation, one row, from text instead of an image, if the decomposer supports it.

        Raises:
            ValueError: It needs an image.
        """
        raise ValueError(f"{type(self).__name__} reads images: expected an image file, found {text!r}")

    def to_text(self, value: Tensor) -> str | None:
        """Writes the representation, one row, as a text that `from_text` reads; by default None: there is none."""
        return None

    def resize(self, value: Float[Tensor, "b c h w"], size: tuple[int, int]) -> Float[Tensor, "b c h2 w2"]:
        """Resizes a representation that is a map; by default bilinear, antialiased if it shrinks."""
        return F.interpolate(value, size, mode="bilinear", antialias=True)

    def interpolate(self, a: Tensor, b: Tensor, share: float) -> Tensor:
        """Interpolates between two representations, by a share in [0, 1], if the decomposer supports it.

        Raises:
            ValueError: It does not, or the two differ in shape.
        """
        raise ValueError(
            f"{type(self).__name__} cannot interpolate between two representations: keep one of them fixed"
        )

    def networks(self) -> tuple[nn.Module, ...]:
        """The modules with its weights, which may be shared, for counting them. By default the decomposer itself."""
        return (self,)

    def unread(self, text: str) -> tuple[str, ...]:
        """Lists the words of a text that are lost: unknown ones, and those beyond the length. By default none."""
        return ()

    def doubts(self, text: str) -> tuple[str, ...]:
        """Says what is probably a mistake in a text that can be read, a sentence each. By default nothing."""
        return ()


class Decomposition(nn.ModuleDict):
    """Named decomposers, run together: in eval mode, without gradients, outside autocast.

    Args:
        decomposers: By the name of their condition.
        source: Shorter side, in pixels, at which they read images, whatever size a model draws: a small picture shows
            a detector or a CLIP less than the photograph that it was made of. They read the batch's ``source`` if it
            has one, else its ``image``, resized. None reads images as they are.
    """

    def __init__(self, decomposers: Mapping[str, Decomposer], source: int | None = None):
        super().__init__(dict(decomposers))
        self.source = source
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "Decomposition":
        """Stays in eval mode: dropout and batch statistics of a frozen detector must not change."""
        return super().train(False)

    def named(self) -> Iterator[tuple[str, Decomposer]]:
        for name, decomposer in self.items():
            assert isinstance(decomposer, Decomposer)
            yield name, decomposer

    def reduce(self, precision: torch.dtype | None) -> None:
        """Sets the precision of the networks that stay within tolerance in it; the others stay in float32."""
        for _, decomposer in self.named():
            decomposer.compute_dtype = precision if decomposer.reducible else None

    @torch.no_grad()
    def forward(self, batch: Batch, names: Collection[str] | None = None) -> Representations:
        """Extracts every representation for which `batch` has the inputs, or only the named ones.

        A tensor that the batch already has under a representation's name passes through unchanged. If only some rows
        have it, the others are extracted if possible, and are zero if not (see `known`).

        Raises:
            ValueError: A caption contains undecodable bytes.
        """
        for caption in batch.get("caption", ()):
            require_utf8(caption)
        device = batch["image"].device.type if "image" in batch else "cpu"
        with torch.autocast(device, enabled=False):
            large = self._at_source(batch)
            return {
                name: _extract(name, decomposer, large if decomposer.at_source else batch)
                for name, decomposer in self.named()
                if names is None or name in names
                if isinstance(batch.get(name), Tensor) or decomposer.can_read(batch)
            }

    def _at_source(self, batch: Batch) -> Batch:
        """The batch with the images that decomposers read."""
        image = batch.get("source", batch.get("image"))
        if self.source is None or not isinstance(image, Tensor):
            return batch
        h, w = image.shape[-2:]
        size = (round(h * self.source / min(h, w)), round(w * self.source / min(h, w)))
        if size != (h, w):
            image = F.interpolate(image, size, mode="bicubic", antialias=True).clamp(-1, 1)
        return {**batch, "image": image}

    def known(self, batch: Batch) -> dict[str, Bool[Tensor, " b"]]:
        """Name -> rows that have a representation, for names that some rows lack even after `forward`."""
        readable = {name for name, decomposer in self.named() if decomposer.can_read(batch)}
        return {name: rows for name, rows in batch.get("known", {}).items() if name not in readable}


def _extract(name: str, decomposer: Decomposer, batch: Batch) -> Tensor:
    column, known = batch.get(name), batch.get("known", {}).get(name)
    if not isinstance(column, Tensor):
        extracted: Tensor = decomposer(batch)
        return extracted
    if known is None or not decomposer.can_read(batch):
        return column
    others: Tensor = decomposer(_rows(batch, ~known))
    if column.ndim == 4 and others.shape[2:] != column.shape[2:]:
        others = decomposer.resize(others, (column.shape[2], column.shape[3]))
    return column.index_put((~known,), others.to(column.dtype))


def _rows(batch: Batch, rows: Bool[Tensor, " b"]) -> Batch:
    """Selects rows of all tensors and lists."""
    chosen = rows.tolist()
    part: Batch = {key: value[rows] for key, value in batch.items() if isinstance(value, Tensor)}
    lists = {key: value for key, value in batch.items() if isinstance(value, list)}
    return part | {key: [x for x, keep in zip(value, chosen, strict=True) if keep] for key, value in lists.items()}


def draw(seed: Tensor, stream: int, high: int) -> Tensor:
    """Draws one integer in [0, high) per row, a pure function of (seed, stream): the same on any device, in any batch.

    A multiply-xorshift hash (the finaliser of SplitMix64, Steele et al. 2014) kept within 63 bits.

    Args:
        seed: (b,) int64 sample seeds.
        stream: A number for each use of the function, so that their draws are independent.
        high: Number of outcomes.
    """
    mask = (1 << 63) - 1
    z = (seed + stream * 0x9E3779B97F4A7C15 % (1 << 62)) & mask
    for shift, factor in ((30, 0x3F58476D1CE4E5B9), (27, 0x14D049BB133111EB)):
        z = ((z ^ (z >> shift)) * factor) & mask
    return (z ^ (z >> 31)) % high


def nearest(x: Shaped[Tensor, "b c h w"], size: tuple[int, int]) -> Shaped[Tensor, "b c h2 w2"]:
    """Resizes by nearest neighbour, whatever the dtype; each pixel takes the value at its centre."""
    if x.shape[-2:] == size:
        return x
    row, column = (
        ((torch.arange(new, device=x.device) + 0.5) * (old / new)).long()
        for new, old in zip(size, x.shape[-2:], strict=True)
    )
    return x[:, :, row[:, None], column]


def robust_normalise(inverse: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 h w"]:
    """Stretches relative inverse depth to [0, 1], image by image; 0 everywhere if an image is flat.

    The 2% and 98% quantiles become 0 and 1 and values beyond are clamped, so that outliers don't compress
    the rest: predictors and true depth then agree up to the scale and shift that inverse depth is known to (MiDaS,
    Ranftl et al. 2020).

    Args:
        inverse: Inverse depth in any unit, larger = nearer; 0 for sky.
    """
    rows = with_float64(inverse.flatten(1))  # torch.quantile computes a value's place in float64
    ends = torch.tensor([0.02, 0.98], device=rows.device, dtype=rows.dtype)
    found = torch.stack([torch.quantile(row, ends) for row in rows], 1).to(inverse.device)
    low, high = found[..., None, None, None]
    stretched: Tensor = (inverse - low) / (high - low).clamp(min=1e-12)
    return stretched.clamp(0, 1)
