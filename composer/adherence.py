"""Adherence: take the result apart again, and see how well it agrees with what was asked.

For a condition, ``closed = 1 - d(asked, got) / d(asked, a random other image's)``, distances averaged over the sample
first: 1 is perfect, 0 is chance.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .cascade import Cascade
from .decomposition import Batch
from .parts import Parts

CROSS = tuple((local, other) for local in ("sketch", "depth") for other in ("palette", "semantics", "caption"))
"""Pairs whose first condition comes from one image and whose second from another."""

Row = dict[str, float]
"""``closed``, ``distance``, ``chance``, ``ceiling`` of one condition."""

Table = dict[str, Any]
"""``{"alone": {name: Row}, "all": {name: Row}, "cross": {"a+b": {name: Row}}, "mask": {"outside", "inside"}}``."""


def quantise(image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Images as a PNG would give them back: 8 bits a channel."""
    return (image.clamp(-1, 1) * 127.5 + 127.5).round() / 127.5 - 1


def distances(cascade: Cascade, wanted: Parts, images: Float[Tensor, "b 3 h w"]) -> dict[str, Tensor]:
    """How far images are from what was wanted of them, by condition, each (b,) in its decomposer's unit.

    Args:
        cascade: Whose readers take the images apart again.
        wanted: What `Cascade.read` gave for the source; of one row or b rows.
        images: Results, in [-1, 1].
    """
    return compare(cascade, wanted, cascade.read({"image": images}, wanted))


def compare(cascade: Cascade, wanted: Parts, got: Parts) -> dict[str, Tensor]:
    """How far representations are from what was wanted, by condition, each (b,) in its decomposer's unit.

    Args:
        cascade: Whose readers compare.
        wanted: As in `distances`.
        got: What `Cascade.read` gave for b images.
    """
    return {
        name: reader.distance(wanted[name].expand(len(got[name]), *wanted[name].shape[1:]), got[name])
        for name, reader in cascade.readers.named()
        if name in wanted and name in got
    }


class Evaluation:
    """Measures a model on a sample of images.

    Args:
        cascade: The model.
        batch: The sample: images of the first stage's size, captions, and what the dataset knows beyond.
        seed: Seeds the pictures and the pairing with other images.
        rows: How many pictures are drawn at a time.
        progress: Called with the number of pictures that were just drawn.
        changes: How `Cascade.sample` differs from the model's own; unless `until` says otherwise, only the first stage
            draws.
    """

    def __init__(
        self,
        cascade: Cascade,
        batch: Batch,
        seed: int = 0,
        rows: int = 32,
        progress: Callable[[int], None] = lambda count: None,
        changes: Mapping[str, Any] | None = None,
    ):
        self.cascade, self.rows, self.progress = cascade, rows, progress
        self.changes = {"until": cascade.stages[0].name, **(changes or {})}
        self.image = batch["image"]
        if len(self.image) < 2:
            raise ValueError(f"adherence compares with other images: expected at least 2, found {len(self.image)}")
        self.seeds = [seed * 1_000_003 + i for i in range(len(self.image))]
        unseeded = {key: value for key, value in batch.items() if key != "seed"}
        self.parts = cascade.decompose(unseeded)
        self.wanted = cascade.read(unseeded)
        self.true = cascade.read({"image": quantise(self.image)})
        self.scored = [n for n, _ in cascade.readers.named() if n in self.wanted and n in self.true]
        # A cyclic shift by a drawn amount pairs every image with another one
        shift = int(torch.randint(1, len(self.image), (1,), generator=torch.Generator().manual_seed(seed)))
        self.other = torch.arange(len(self.image)).roll(shift)

    def table(self) -> Table:
        """Measures every condition alone, all together, the cross pairs, and edits within a region."""
        result: Table = self.singles()
        result["all"] = self.score(self.draw(self.parts.pick(*self.scored)), self.scored)
        result["cross"] = {}
        for first, second in self.pairs():
            parts = self.parts.pick(first) | self.parts.pick(second).rows(self.other.tolist())
            images = self.draw(parts)
            result["cross"][f"{first}+{second}"] = {
                **self.score(images, [first]),
                **self.score(images, [second], self.other),
            }
        return result | ({"mask": self.masked()} if self.can_mask() else {})

    def singles(self) -> Table:
        """Measures every condition alone; half the work of `table`."""
        return {"alone": {n: self.score(self.draw(self.parts.pick(n)), [n])[n] for n in self.scored}}

    def can_mask(self) -> bool:
        """Whether this model can be asked for edits within a region."""
        return {"mask", "intensity"} <= set(self.cascade.names) and "intensity" in self.scored

    def masked(self) -> Row:
        """Redraws the middle of each image after another image's intensity.

        Returns:
            ``outside``: the largest change of any value outside the region, in [0, 2]. ``inside``: how much of the way
            from the image as it was (0) to the other's intensity within the region (1) the results go.
        """
        size = self.image.shape[-1]
        region = torch.zeros(len(self.image), 1, size, size)
        region[..., size // 4 : -size // 4, size // 4 : -size // 4] = 1
        goal = torch.where(region > 0, self.image[self.other], self.image)
        mask = self.cascade.decompose({"image": self.image, "region": region}).pick("mask")
        asked = mask | self.cascade.decompose({"image": goal}).pick("intensity")
        images = self.draw(asked, away=mask, locked=(self.image, 1 - region))
        wanted, before, got = (self.cascade.read({"image": x})["intensity"] for x in (goal, self.image, images))
        distance = dict(self.cascade.readers.named())["intensity"].distance
        outside = (images - quantise(self.image)).abs() * (1 - region)
        inside = 1 - float(distance(wanted, got).mean() / distance(wanted, before).mean())
        return {"outside": float(outside.max()), "inside": inside}

    def pairs(self) -> list[tuple[str, str]]:
        """The cross pairs that this model and sample allow."""
        return [(a, b) for a, b in CROSS if a in self.scored and b in self.scored]

    def count(self) -> int:
        """How many pictures `table` draws."""
        return len(self.image) * (len(self.scored) + 1 + len(self.pairs()) + self.can_mask())

    def draw(
        self, parts: Parts, away: Parts | None = None, locked: tuple[Tensor, Tensor] | None = None
    ) -> Float[Tensor, "b 3 h w"]:
        """Draws one picture a row of `parts`, as a PNG would keep it.

        Args:
            parts: What the pictures follow.
            away: What guidance leads away from; None is nothing.
            locked: Image and keep map a row, as `Cascade.sample` takes them.
        """
        done = []
        for start in range(0, len(self.image), self.rows):
            span = slice(start, start + self.rows)
            held = None if locked is None else (locked[0][span], locked[1][span])
            led = None if away is None else away.rows(span)
            rows, seeds = parts.rows(span), self.seeds[span]
            done.append(self.cascade.sample(rows, seeds=seeds, away=led, locked=held, **self.changes).cpu())
            self.progress(len(done[-1]))
        return quantise(torch.cat(done))

    def score(self, images: Tensor, names: Sequence[str], index: Tensor | None = None) -> dict[str, Row]:
        """Scores pictures on some conditions.

        Args:
            images: One a row of the sample.
            names: Conditions.
            index: Which row's representation was asked of each picture; None is its own.
        """
        index = torch.arange(len(images)) if index is None else index
        wanted, stranger = self.wanted.pick(*names).rows(index.tolist()), index.roll(1)
        got, readers = self.cascade.read({"image": images}), dict(self.cascade.readers.named())
        rows = {}
        for name in names:
            distance = readers[name].distance
            mean = [
                float(distance(wanted[name], other).mean())
                for other in (got[name], self.true[name][stranger], self.true[name][index])
            ]
            rows[name] = {
                "closed": 1 - mean[0] / mean[1] if mean[1] > 0 else 0.0,
                "distance": mean[0],
                "chance": mean[1],
                "ceiling": 1 - mean[2] / mean[1] if mean[1] > 0 else 0.0,
            }
        return rows


def markdown(table: Table) -> str:
    """The table as Markdown: how much of the way from chance to perfect each condition closes."""
    lines = ["| condition | alone | all together | ceiling | distance alone | chance |", "|---|---|---|---|---|---|"]
    for name, row in table["alone"].items():
        every = f"{table['all'][name]['closed']:.2f}" if "all" in table else "-"
        lines.append(
            f"| {name} | {row['closed']:.2f} | {every} | {row['ceiling']:.2f} "
            f"| {row['distance']:.3f} | {row['chance']:.3f} |"
        )
    if table.get("cross"):
        lines += ["", "| pair (one image's + another's) | first | second |", "|---|---|---|"]
        for pair, rows in table["cross"].items():
            first, second = rows.values()
            lines.append(f"| {pair} | {first['closed']:.2f} | {second['closed']:.2f} |")
    if "mask" in table:
        outside, inside = table["mask"]["outside"], table["mask"]["inside"]
        lines += [
            "",
            f"Edits within a region: largest change outside {outside:g}; intensity closed inside {inside:.2f}.",
        ]
    return "\n".join(lines) + "\n"
