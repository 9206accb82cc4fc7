"""From a batch of images to named representations."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from composer.devices import with_float64
from composer.names import Kind
from composer.storage.building import Buildable
from composer.storage.files import require_utf8

Batch = dict[str, Any]
"""What a dataset yields, collated. Keys that the core knows:

- ``image``: (b 3 h w) float32 in [-1, 1].
- ``caption``: list of b strings; ``""`` where an image has none.
- ``region``: (b 1 h w) float32, 1 where an edit may change the image.
- ``seed``: (b,) int64, one number a sample; present while training and validating. A decomposer that draws at
  random draws from it (see `draw`) and takes its deterministic choice where it is absent.
- a tensor under a representation's own name takes the place of its extraction.
- ``known``: name -> (b,) bool, the rows that hold such a tensor, for names where only some do.
"""

Representations = dict[str, Tensor]
"""Name -> (b ...), one tensor, batch first. A missing name is absent for every row."""


class Decomposer(nn.Module, Buildable, ABC):
    """A frozen map from a batch to one representation. Device and dtype follow the input.

    Attributes:
        code_licence: Of the code that extracts.
        weights_licence: Of the weights that it needs, as their authors state it.
        kind: What the representation says of an image. Tasks and evaluations choose conditions by it: `style_transfer`
            keeps one picture's layout and takes another's appearance. A condition without a kind takes part in them
            where it is named.
    """

    kind: Kind | None = None
    code_licence = "Apache-2.0"
    weights_licence = "needs none"

    @abstractmethod
    def forward(self, batch: Batch) -> Tensor:
        """Extracts the representation, (b ...); row i depends on row i of the batch alone."""

    @abstractmethod
    def preview(self, value: Tensor) -> Float[Tensor, "b 3 h w"]:
        """Shows a representation as a person would look at it, in [-1, 1]."""

    @abstractmethod
    def distance(self, wanted: Tensor, got: Tensor) -> Float[Tensor, " b"]:
        """Says how far two representations are, row by row; 0 where they agree. The unit is the subclass's."""

    def loss(self, wanted: Tensor, batch: Batch) -> Float[Tensor, " b"]:
        """Says how far images are from a representation, row by row, for training: with a gradient to the images.

        The distance of what `forward` reads, unless a subclass knows better; not every one has a gradient.
        """
        return self.distance(wanted, self(batch))

    def can_read(self, batch: Batch) -> bool:
        """Whether `batch` holds what `forward` needs; an image, unless a subclass says otherwise."""
        return "image" in batch

    def from_text(self, text: str) -> Tensor:
        """Makes the representation, one row, of what a person wrote in place of an image, where that means something.

        Raises:
            ValueError: Only an image gives this representation.
        """
        raise ValueError(f"{type(self).__name__} reads images: expected an image file, found {text!r}")

    def interpolate(self, a: Tensor, b: Tensor, share: float) -> Tensor:
        """Goes `share` of the way from one representation to another, where there is something in between.

        Raises:
            ValueError: There is not, or the two differ in shape.
        """
        raise ValueError(f"nothing lies between two representations of {type(self).__name__}: hold one of them fixed")

    def networks(self) -> tuple[nn.Module, ...]:
        """The modules that hold its weights, for counting them; others may share them. Itself, unless overridden."""
        return (self,)

    def unread(self, text: str) -> tuple[str, ...]:
        """The words of a text that never reach the representation: unknown ones, and those beyond its length.

        None, unless a subclass that reads text says otherwise.
        """
        return ()


class Decomposition(nn.ModuleDict):
    """Named decomposers, run together: in eval mode, without gradients, outside autocast."""

    def __init__(self, decomposers: Mapping[str, Decomposer]):
        super().__init__(dict(decomposers))
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "Decomposition":
        """Stays in eval mode: a frozen detector's dropout and batch statistics never train."""
        return super().train(False)

    def named(self) -> Iterator[tuple[str, Decomposer]]:
        for name, decomposer in self.items():
            assert isinstance(decomposer, Decomposer)
            yield name, decomposer

    @torch.no_grad()
    def forward(self, batch: Batch, names: Collection[str] | None = None) -> Representations:
        """Extracts every representation that `batch` allows, or those of them that are named.

        A tensor that the batch already holds under a representation's name passes through unchanged. Where only some
        rows hold it, the others are extracted if they can be, and stay zero if not (see `known`).

        Raises:
            ValueError: A caption holds bytes that are no text.
        """
        for caption in batch.get("caption", ()):
            require_utf8(caption)
        device = batch["image"].device.type if "image" in batch else "cpu"
        with torch.autocast(device, enabled=False):
            return {
                name: _extract(name, decomposer, batch)
                for name, decomposer in self.named()
                if names is None or name in names
                if isinstance(batch.get(name), Tensor) or decomposer.can_read(batch)
            }

    def known(self, batch: Batch) -> dict[str, Bool[Tensor, " b"]]:
        """Which rows have a representation, for those names where some have none even after `forward`."""
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
    return column.index_put((~known,), others.to(column.dtype))


def _rows(batch: Batch, rows: Bool[Tensor, " b"]) -> Batch:
    """The chosen rows of what belongs to rows: tensors and lists."""
    chosen = rows.tolist()
    part: Batch = {key: value[rows] for key, value in batch.items() if isinstance(value, Tensor)}
    lists = {key: value for key, value in batch.items() if isinstance(value, list)}
    return part | {key: [x for x, keep in zip(value, chosen, strict=True) if keep] for key, value in lists.items()}


def draw(seed: Tensor, stream: int, high: int) -> Tensor:
    """Draws one integer in [0, high) a row, a pure function of (seed, stream): the same on any device, in any batch.

    A multiply-xorshift hash (the finaliser of SplitMix64, Steele et al. 2014) kept within 63 bits.

    Args:
        seed: (b,) int64 sample seeds.
        stream: Which draw this is; each use takes a number of its own.
        high: Number of outcomes.
    """
    mask = (1 << 63) - 1
    z = (seed + stream * 0x9E3779B97F4A7C15 % (1 << 62)) & mask
    for shift, factor in ((30, 0x3F58476D1CE4E5B9), (27, 0x14D049BB133111EB)):
        z = ((z ^ (z >> shift)) * factor) & mask
    return (z ^ (z >> 31)) % high


def robust_normalise(inverse: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 h w"]:
    """Stretches relative inverse depth to [0, 1], image by image; 0 everywhere where an image is flat.

    The 2% and 98% quantiles become 0 and 1 and what lies beyond is clamped, so that a few stray values don't squeeze
    the rest: predictors and true depth then agree up to the scale and shift that inverse depth is known to (MiDaS,
    Ranftl et al. 2020).

    Args:
        inverse: Inverse depth in any unit, larger = nearer; 0 for the sky.
    """
    rows = with_float64(inverse.flatten(1))  # torch.quantile computes a value's place in float64
    ends = torch.tensor([0.02, 0.98], device=rows.device, dtype=rows.dtype)
    found = torch.stack([torch.quantile(row, ends) for row in rows], 1).to(inverse.device)
    low, high = found[..., None, None, None]
    stretched: Tensor = (inverse - low) / (high - low).clamp(min=1e-12)
    return stretched.clamp(0, 1)
