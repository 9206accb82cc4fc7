"""Named representations that combine, and interpolation."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Shaped
from PIL import Image
from torch import Tensor

from composer.decomposition import Decomposition, Representations
from composer.devices import to_float64
from composer.images.sheet import png, previews, sheet
from composer.mistakes import did_you_mean

ROWS, SIDE = 8, 128
"""In a notebook: the largest number of images whose parts are shown, and the side of each preview in pixels."""


class Parts(Representations):
    """Representations that combine: ``a.pick("sketch", "depth") | b.pick("palette")``. The right side wins.

    Attributes:
        shown_by: The decomposers that show them in a notebook; None if unknown, or if the sides of ``|`` came from
            different models.
    """

    shown_by: Decomposition | None = None

    @classmethod
    def of(cls, values: Mapping[str, Tensor], shown_by: Decomposition | None) -> "Parts":
        """Parts that notebooks can display."""
        made = cls(values)
        made.shown_by = shown_by
        return made

    def pick(self, *names: str) -> "Parts":
        """Keeps the named representations.

        Raises:
            KeyError: One of them is missing.
        """
        missing = sorted(set(names) - self.keys())
        if missing:
            near = did_you_mean(missing[0], self)
            raise KeyError(f"no {', '.join(missing)} among these parts{near}; they hold {', '.join(sorted(self))}")
        return Parts.of({name: self[name] for name in names}, self.shown_by)

    def drop(self, *names: str) -> "Parts":
        """Leaves out the named representations."""
        return Parts.of({name: value for name, value in self.items() if name not in names}, self.shown_by)

    def rows(self, index: Sequence[int] | slice) -> "Parts":
        """Keeps some rows of each representation."""
        return Parts.of({name: value[index] for name, value in self.items()}, self.shown_by)

    def row(self, i: int) -> "Parts":
        """Keeps row i, or the only row of representations that have one."""
        return Parts.of({name: row(value, i) for name, value in self.items()}, self.shown_by)

    def __or__(self, other: Mapping[str, Tensor]) -> "Parts":  # type: ignore[override]
        known = [by for by in (self.shown_by, getattr(other, "shown_by", None)) if by is not None]
        return Parts.of({**self, **other}, known[0] if known and known[0] is known[-1] else None)

    def __reduce__(self) -> tuple[type, tuple[dict[str, Tensor]]]:
        return Parts, (dict(self),)  # copies and files hold the values alone, no networks

    def __repr__(self) -> str:
        return f"Parts({', '.join(f'{name}: {describe(value)}' for name, value in self.items())})"

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows: a preview of each representation, a row per image."""
        shown = self.preview()
        return None if shown is None else png(shown)

    def preview(self, labels: Mapping[str, str] | None = None) -> Image.Image | None:
        """Draws previews of the representations, one row per image, at most `ROWS`.

        Args:
            labels: Name -> heading of its column; by default the name itself.

        Returns:
            None if no decomposer is known, or there is nothing to show.
        """
        by = dict(() if self.shown_by is None else self.shown_by.named())
        tensors = {name: value[:ROWS] for name, value in self.items() if name in by and isinstance(value, Tensor)}
        if not tensors or self.shown_by is None:
            return None
        columns = previews(self.shown_by, tensors, SIDE)
        count = max(map(len, columns.values()))
        rows = [[column[min(i, len(column) - 1)] for column in columns.values()] for i in range(count)]
        return sheet(rows, columns=[(labels or {}).get(name, name) for name in columns])


def describe(value: Tensor | str) -> str:
    """Describes a representation: its shape, or the words that give it."""
    return repr(value) if isinstance(value, str) else " x ".join(map(str, value.shape))


def row(value: Shaped[Tensor, "b *d"], i: int) -> Shaped[Tensor, "1 *d"]:
    """Row i, or the only row."""
    return value[i : i + 1] if len(value) > 1 else value


def slerp(a: Float[Tensor, "b *d"], b: Float[Tensor, "b *d"], share: float) -> Float[Tensor, "b *d"]:
    """Interpolates spherically, row by row: directions along the great circle, lengths linearly.

    Args:
        a: Where `share` is 0.
        b: Where `share` is 1; of the same shape.
        share: Position between the two; outside [0, 1] it extrapolates along the circle.

    Raises:
        ValueError: The shapes differ.

    Reference:
        Shoemake 1985. Rows of the same direction are interpolated linearly, which is the limit; so are opposite ones,
        between which the great circle is not unique.
    """
    check_shapes(a, b)
    x, y = to_float64(a.flatten(1)), to_float64(b.flatten(1))
    length_x, length_y = x.norm(dim=1, keepdim=True), y.norm(dim=1, keepdim=True)
    x, y = x / length_x.clamp(min=1e-12), y / length_y.clamp(min=1e-12)
    angle = (x * y).sum(1, keepdim=True).clamp(-1, 1).acos()
    near = angle.sin() < 1e-6
    sine = torch.where(near, 1.0, angle.sin())
    left = torch.where(near, 1 - share, ((1 - share) * angle).sin() / sine)
    right = torch.where(near, share, (share * angle).sin() / sine)
    between: Tensor = (left * x + right * y) * torch.lerp(length_x, length_y, share)
    return between.view_as(a).to(a)


def lerp(a: Float[Tensor, "b *d"], b: Float[Tensor, "b *d"], share: float) -> Float[Tensor, "b *d"]:
    """Interpolates linearly.

    Raises:
        ValueError: The shapes differ.
    """
    check_shapes(a, b)
    return torch.lerp(a, b, share)


def check_shapes(a: Tensor, b: Tensor) -> None:
    """Refuses to interpolate between different shapes."""
    if a.shape != b.shape:
        raise ValueError(
            f"expected two of the same shape to interpolate between, found {tuple(a.shape)} and {tuple(b.shape)}"
        )
