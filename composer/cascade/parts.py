"""Named representations that combine, and interpolation."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from composer.decomposition import Representations
from composer.devices import to_float64


class Parts(Representations):
    """Representations that combine: ``a.pick("sketch", "depth") | b.pick("palette")``. The right side wins."""

    def pick(self, *names: str) -> "Parts":
        """Keeps the named representations.

        Raises:
            KeyError: One of them is not here.
        """
        missing = sorted(set(names) - self.keys())
        if missing:
            raise KeyError(f"no {', '.join(missing)} among these parts; they hold {', '.join(sorted(self))}")
        return Parts({name: self[name] for name in names})

    def drop(self, *names: str) -> "Parts":
        """Leaves out the named representations."""
        return Parts({name: value for name, value in self.items() if name not in names})

    def rows(self, index: Sequence[int] | slice) -> "Parts":
        """Keeps some rows of each representation."""
        return Parts({name: value[index] for name, value in self.items()})

    def row(self, i: int) -> "Parts":
        """Keeps row i, of representations of a single row that one."""
        return Parts({name: row(value, i) for name, value in self.items()})

    def __or__(self, other: Mapping[str, Tensor]) -> "Parts":  # type: ignore[override]
        return Parts({**self, **other})


def row(value: Shaped[Tensor, "b *d"], i: int) -> Shaped[Tensor, "1 *d"]:
    """Row i, of a single row that one."""
    return value[i : i + 1] if len(value) > 1 else value


def slerp(a: Float[Tensor, "b *d"], b: Float[Tensor, "b *d"], share: float) -> Float[Tensor, "b *d"]:
    """Interpolates spherically, row by row: directions along the great circle, lengths evenly.

    Args:
        a: Where `share` is 0.
        b: Where `share` is 1; of the same shape.
        share: How far to go; beyond 0 and 1 it leads on along the circle.

    Raises:
        ValueError: The shapes differ.

    Reference:
        Shoemake 1985. Rows that point the same way are interpolated linearly, which is the limit; so are opposite ones,
        for which no great circle is the right one.
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
