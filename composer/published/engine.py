"""Renames and reorders published weights: rows of ours, theirs and a transform; strict on both sides."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from composer.storage.files import printable


@dataclass(frozen=True)
class Transform:
    """How tensors of theirs become one of ours.

    Attributes:
        about: What it does, for the report; empty for a plain copy.
        apply: Takes their tensors, in the row's order.
        undo: Takes ours and the number of theirs, and gives theirs, or the first of them where the others are made of
            other rows; None where nothing needs it.
    """

    about: str
    apply: Callable[..., Tensor]
    undo: Callable[[Tensor, int], Sequence[Tensor]] | None = None


COPY = Transform("", lambda x: x, lambda x, _: [x])
TO_LINEAR = Transform("1x1 convolution to linear layer", lambda x: x.flatten(1) if x.ndim > 1 else x)


def regroup(heads: int, parts: int) -> Transform:
    """Rows of queries, keys, values (or of the last two) of each head together -> all queries, all keys, all values."""

    def apply(x: Tensor) -> Tensor:
        rows = x.reshape(heads, parts, -1, *x.shape[1:]).transpose(0, 1).flatten(0, 2)
        return rows.flatten(1) if rows.ndim > 1 else rows

    return Transform(f"{parts} parts of {heads} heads, each part together", apply)


def interleave(count: int) -> Transform:
    """Rows of a projection to `count` tokens, channel by channel -> token by token."""

    def apply(x: Tensor) -> Tensor:
        return x.reshape(-1, count, *x.shape[1:]).transpose(0, 1).flatten(0, 1)

    def undo(x: Tensor, _: int) -> list[Tensor]:
        return [x.reshape(count, -1, *x.shape[1:]).transpose(0, 1).flatten(0, 1)]

    return Transform(f"{count} tokens, each together", apply, undo)


def at_position(index: int) -> Transform:
    """A layer's bias, or a token, and a table of positions -> both in one, for a token that always has this position.

    Args:
        index: The token's place in the sequence.
    """
    return Transform(
        f"added to position {index}", lambda x, positions: x.flatten() + positions.squeeze(0)[index], lambda x, _: [x]
    )


JOIN = Transform(
    "joined",
    lambda *parts: torch.cat([x.flatten(1) if x.ndim > 2 else x for x in parts]),
    lambda x, count: x.chunk(count),
)


@dataclass(frozen=True)
class Row:
    """One tensor of ours.

    Attributes:
        ours: Its name.
        theirs: Names of what it is made of; none where it comes from elsewhere.
        how: How it is made.
    """

    ours: str
    theirs: tuple[str, ...]
    how: Transform = COPY


def pair(ours: str, theirs: str, how: Transform = COPY) -> list[Row]:
    """The rows of a layer's weight and bias."""
    return [Row(f"{ours}.{kind}", (f"{theirs}.{kind}",), how) for kind in ("weight", "bias")]


def under(prefix: str, rows: Sequence[Row]) -> list[Row]:
    """The same rows, where all names of theirs have a prefix."""
    return [Row(row.ours, tuple(prefix + name for name in row.theirs), row.how) for row in rows]


@dataclass
class Converted:
    """Weights in our layout.

    Attributes:
        tensors: Name -> tensor.
        report: For each tensor of ours: its name, theirs, what was done, and its shape.
        left: Names of theirs that are not needed -> why.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    report: list[dict[str, Any]] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)


def convert(
    rows: Sequence[Row],
    theirs: Mapping[str, Tensor],
    ours: Mapping[str, Tensor],
    left: Mapping[str, str] | None = None,
) -> Converted:
    """Converts weights; each tensor of theirs and of ours has to be accounted for.

    Args:
        rows: How each tensor of ours is made.
        theirs: The published weights, also on the meta device.
        ours: A network's `state_dict`, of which only names and shapes are read.
        left: Names of theirs that are not needed -> why.

    Raises:
        ValueError: Something is missing, left over, or of another shape; the first of each is named.
    """
    left = {name: why for name, why in (left or {}).items() if name in theirs}
    named = {name for row in rows for name in row.theirs}
    _require("missing in the file", sorted(named - theirs.keys()))
    _require("unknown in the file", sorted(theirs.keys() - named - left.keys()))
    _require("without a source", sorted(ours.keys() ^ {row.ours for row in rows}))
    done = Converted(left=dict(left))
    for row in rows:
        try:
            parts = [theirs[name] for name in row.theirs]
            known = parts or not any(x.is_meta for x in theirs.values())  # names and shapes alone need no other files
            made = row.how.apply(*parts) if known else ours[row.ours]
        except RuntimeError:  # a shape that does not divide
            made = torch.empty(0)
        if made.shape != ours[row.ours].shape:
            found = ", ".join(f"{name} {tuple(theirs[name].shape)}" for name in row.theirs)
            raise ValueError(f"expected what makes {row.ours} of shape {tuple(ours[row.ours].shape)}, found {found}")
        done.tensors[row.ours] = made
        done.report.append(
            {"ours": row.ours, "theirs": list(row.theirs), "how": row.how.about, "shape": list(made.shape)}
        )
    return done


def revert(rows: Sequence[Row], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Makes weights in a published layout of ours: the reverse of `convert`, as far as theirs hold them.

    Args:
        rows: How each tensor of ours is made.
        ours: A network's weights.

    Raises:
        ValueError: A tensor of ours has no place, or is made in a way that has no reverse.
    """
    _require("without a place", sorted(ours.keys() ^ {row.ours for row in rows}))
    _require("made in a way that has no reverse", [row.ours for row in rows if row.theirs and row.how.undo is None])
    made: dict[str, Tensor] = {}
    for row in rows:
        if row.theirs and row.how.undo is not None:
            made |= zip(row.theirs, row.how.undo(ours[row.ours], len(row.theirs)), strict=False)
    _require("not made of anything", sorted({name for row in rows for name in row.theirs} - made.keys()))
    return made


def _require(what: str, names: Sequence[str]) -> None:
    if names:
        raise ValueError(f"{len(names)} tensors are {what}, the first of them {printable(names[0][:100])}")
