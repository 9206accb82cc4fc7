"""Adherence: decomposes results again, and measures how well they match what was asked.

For a condition, ``closed = 1 - d(asked, got) / d(asked, a random other image's)``, distances averaged over the sample
first: 1 is perfect, 0 is chance.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from composer.cascade.cascade import Cascade
from composer.cascade.composition import Composition
from composer.cascade.options import SampleOptions
from composer.cascade.parts import Parts
from composer.cascade.start import Kept
from composer.decomposition import Batch
from composer.evaluation.samples import Sample
from composer.images.table import Table
from composer.names import Kind
from composer.prior import Prior
from composer.prior.interface import SEMANTICS
from composer.tasks.composition import of_kind


@dataclass(frozen=True)
class Score:
    """How well pictures follow one condition.

    Attributes:
        closed: ``1 - distance / chance``.
        distance: The mean from what was asked, in the reader's unit.
        chance: That of other images.
        ceiling: What the true images themselves close.
    """

    closed: float
    distance: float
    chance: float
    ceiling: float


@dataclass(frozen=True)
class MaskedScore:
    """How well edits within a region stay in it and follow another image's intensity.

    Attributes:
        outside: The largest change of any value outside the region, in [0, 2].
        inside: How much of the way from the image as it was (0) to the other's intensity within the region (1) the
            results go.
    """

    outside: float
    inside: float


@dataclass(frozen=True)
class Adherence:
    """What `Evaluation` measures.

    Attributes:
        alone: Score of each condition that is asked for alone.
        together: Of each when all are asked for at once; None where that was not measured.
        cross: Of both conditions of each cross pair, by ``a+b``; None where that was not measured.
        mask: Of edits within a region; None where that was not measured.
    """

    alone: dict[str, Score]
    together: dict[str, Score] | None = None
    cross: dict[str, dict[str, Score]] | None = None
    mask: MaskedScore | None = None

    def json(self) -> dict[str, Any]:
        """Plain JSON values by ``alone``, ``all``, ``cross`` and ``mask``, without what was not measured."""
        found = asdict(self)
        found = {"alone": found.pop("alone"), "all": found.pop("together"), **found}
        return {name: value for name, value in found.items() if value is not None}

    def table(self) -> Table:
        """What each condition closes, from 0 (chance) to 1 (perfect)."""
        rows = []
        for name, score in self.alone.items():
            every = "-" if self.together is None else f"{self.together[name].closed:.2f}"
            shares = (f"{score.closed:.2f}", every, f"{score.ceiling:.2f}")
            rows.append((name, *shares, f"{score.distance:.3f}", f"{score.chance:.3f}"))
        return Table(("condition", "alone", "all together", "ceiling", "distance alone", "chance"), rows)

    def markdown(self) -> str:
        """All that was measured, as Markdown."""
        blocks = [self.table().markdown()]
        if self.cross:
            rows = [(pair, *(f"{score.closed:.2f}" for score in two.values())) for pair, two in self.cross.items()]
            blocks.append(Table(("pair (one image's + another's)", "first", "second"), rows).markdown())
        if self.mask is not None:
            blocks.append(
                f"Edits within a region: largest change outside {self.mask.outside:g}; "
                f"intensity closed inside {self.mask.inside:.2f}.\n"
            )
        return "\n".join(blocks)


def quantise(image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Rounds images to 8 bits per channel, as a PNG does."""
    return (image.clamp(-1, 1) * 127.5 + 127.5).round() / 127.5 - 1


def with_prior(parts: Parts, prior: Prior | None, captions: Sequence[str], seeds: Sequence[int]) -> Parts:
    """Adds the semantics that a prior draws for captions, if captions are given and no semantics."""
    if prior is None or "caption" not in parts or SEMANTICS in parts:
        return parts
    return parts | {SEMANTICS: prior.sample(captions, seeds=seeds)}


@dataclass(frozen=True)
class DecomposedRows:
    """Consecutive rows of a sample, decomposed.

    Attributes:
        image: In [-1, 1].
        captions: Empty if the sample has none.
        parts: The model's representations.
        wanted: The same in the space of its readers.
        true: The readers' representations of the images alone, without captions.
        strangers: The same of an unrelated image, whose distance is what chance gives: that of the row before; the last
            row of the sample precedes its first.
    """

    image: Float[Tensor, "b 3 h w"]
    captions: list[str]
    parts: Parts
    wanted: Parts
    true: Parts
    strangers: Parts


Selection = tuple[Sequence[str], Sequence[str]]
"""The conditions that come from an image, and those that come from the one that it is paired with."""


class Evaluation:
    """Measures a model on a sample of images, batch by batch: memory does not grow with the sample.

    Args:
        cascade: The model.
        sample: Images of the first stage's size, captions, and what the dataset knows beyond.
        seed: Seeds the pictures and the pairing with other images.
        rows: How many images are read, and pictures drawn, at a time.
        progress: Called with the number of pictures that were just drawn.
        options: How `Cascade.sample` differs from the model's own; unless `until` says otherwise, only the first stage
            draws.
        prior: Draws the semantics of captions that are asked for without semantics.

    Raises:
        ValueError: There are too few images or rows.
    """

    def __init__(
        self,
        cascade: Cascade,
        sample: Sample,
        seed: int = 0,
        rows: int = 32,
        progress: Callable[[int], None] = lambda count: None,
        options: SampleOptions | None = None,
        prior: Prior | None = None,
    ):
        if sample.count < 2 or rows < 1:
            raise ValueError(
                "images are compared with other images: expected at least 2 of them, and at least 1 row at a time, "
                f"found {sample.count} and {rows}"
            )
        self.cascade, self.sample, self.rows, self.progress, self.prior = cascade, sample, rows, progress, prior
        self.options = SampleOptions(until=cascade.stages[0].name) | options
        self.seed = seed
        # A cyclic shift by a drawn amount pairs every image with another one
        self.shift = int(torch.randint(1, sample.count, (1,), generator=torch.Generator().manual_seed(seed)))

    def spans(self) -> Iterator[range]:
        """The indices of all rows, batch by batch."""
        for start in range(0, self.sample.count, self.rows):
            yield range(start, min(start + self.rows, self.sample.count))

    def seeds_of(self, span: range) -> list[int]:
        """The seeds of the pictures of some rows."""
        return [self.seed * 1_000_003 + i for i in span]

    def others(self, span: range) -> list[int]:
        """The indices of the rows that these are paired with."""
        return [(i - self.shift) % self.sample.count for i in span]

    def read(self, index: Sequence[int]) -> Batch:
        """Reads some rows of the sample, onto the model's device."""
        batch = self.sample.read(index)
        return {key: x.to(self.cascade.device) if isinstance(x, Tensor) else x for key, x in batch.items()}

    def block(self, index: Sequence[int]) -> DecomposedRows:
        """Decomposes some rows, and the row before each as its stranger."""
        own, before = self.read(index), self.read([(index[0] - 1) % self.sample.count])["image"]
        true = self.cascade.read({"image": quantise(torch.cat([before, own["image"]]))})
        return DecomposedRows(
            image=own["image"],
            captions=own.get("caption", []),
            parts=self.cascade.decompose(own),
            wanted=self.cascade.read(own),
            true=true.rows(slice(1, None)),
            strangers=true.rows(slice(-1)),
        )

    @cached_property
    def scored(self) -> list[str]:
        """The conditions that can be measured on this sample."""
        first = self.block(range(1))
        return [n for n, _ in self.cascade.readers.named() if n in first.wanted and n in first.true]

    def measure(self) -> Adherence:
        """Measures every condition alone, all together, the cross pairs, and edits within a region."""
        alone: list[Selection] = [([name], []) for name in self.scored]
        every: Selection = (self.scored, [])
        cross: list[Selection] = [([a], [b]) for a, b in self.pairs()]
        rows = self._measure([*alone, every, *cross])
        n = len(alone)
        paired = {f"{a}+{b}": row for (a, b), row in zip(self.pairs(), rows[n + 1 :], strict=True)}
        return Adherence(_joined(rows[:n]), rows[n], paired, self.measure_mask() if self.can_mask() else None)

    def measure_alone(self) -> Adherence:
        """Measures every condition alone; half the work of `measure`."""
        return Adherence(_joined(self._measure([([name], []) for name in self.scored])))

    def can_mask(self) -> bool:
        """Whether this model can be asked for edits within a region."""
        return {"mask", "intensity"} <= set(self.cascade.names) and "intensity" in self.scored

    def measure_mask(self) -> MaskedScore:
        """Redraws the middle of each image after another image's intensity."""
        distance = dict(self.cascade.readers.named())["intensity"].distance
        outside, totals = 0.0, torch.zeros(2, dtype=torch.float64)
        for span in self.spans():
            image, other = self.read(span)["image"], self.read(self.others(span))["image"]
            size = image.shape[-1]
            region = torch.zeros_like(image[:, :1])
            region[..., size // 4 : -size // 4, size // 4 : -size // 4] = 1
            goal = torch.where(region > 0, other, image)
            mask = self.cascade.decompose({"image": image, "region": region}).pick("mask")
            asked = mask | self.cascade.decompose({"image": goal}).pick("intensity")
            images = self.draw(Composition(parts=asked, away=mask, kept=Kept(image, 1 - region)), span)
            wanted, before, got = (self.cascade.read({"image": x})["intensity"] for x in (goal, image, images))
            totals += torch.stack([distance(wanted, x).cpu().double().sum() for x in (got, before)])
            outside = max(outside, float(((images - quantise(image)).abs() * (1 - region)).max()))
        return MaskedScore(outside, inside=1 - float(totals[0] / totals[1]))

    def pairs(self) -> list[tuple[str, str]]:
        """The cross pairs that this sample allows: one image's structure with another's appearance, or its text."""
        first = of_kind(self.cascade, Kind.STRUCTURE)
        second = reversed(of_kind(self.cascade, Kind.TEXT, Kind.APPEARANCE))
        return [(a, b) for a, b in product(first, second) if a in self.scored and b in self.scored]

    def count(self) -> int:
        """How many pictures `measure` draws."""
        return self.sample.count * (len(self.scored) + 1 + len(self.pairs()) + self.can_mask())

    def draw(self, what: Composition | Parts, span: range) -> Float[Tensor, "b 3 h w"]:
        """Draws the pictures of some rows, rounded as in a PNG.

        Args:
            what: What the pictures follow, one row per picture.
            span: The rows' numbers, which say the seeds.
        """
        edits = isinstance(what, Composition) and what.kept is not None
        options = replace(self.options, size=None) if edits else self.options  # an edit has the size of its image
        images = self.cascade.sample(what, self.seeds_of(span), options)
        self.progress(len(span))
        return quantise(images)

    def score(self, images: Float[Tensor, "b 3 h w"], names: Sequence[str], block: DecomposedRows) -> dict[str, Score]:
        """Scores pictures on some conditions.

        Args:
            images: One per row of the block.
            names: Conditions.
            block: What was asked of the pictures.
        """
        return {name: _score(far.mean(0)) for name, far in self._compare(images, names, block).items()}

    def _measure(self, asked: Sequence[Selection]) -> list[dict[str, Score]]:
        """Draws every row of the sample once for each of `asked`, and scores what was asked."""
        totals: list[dict[str, Tensor]] = [{} for _ in asked]
        for span in self.spans():
            own = self.block(span)
            other = self.block(self.others(span)) if any(second for _, second in asked) else own
            for (first, second), total in zip(asked, totals, strict=True):
                parts = own.parts.pick(*first) | other.parts.pick(*second)
                captions = other.captions if "caption" in second else own.captions
                images = self.draw(with_prior(parts, self.prior, captions, self.seeds_of(span)), span)
                found = self._compare(images, first, own) | self._compare(images, second, other)
                for name, far in found.items():
                    total[name] = total.get(name, 0) + far.sum(0)
        return [{name: _score(far / self.sample.count) for name, far in total.items()} for total in totals]

    def _compare(self, images: Tensor, names: Sequence[str], block: DecomposedRows) -> dict[str, Float[Tensor, "b 3"]]:
        """The distances of pictures, strangers and true images from what was asked, row by row."""
        if not names:
            return {}
        got, readers = self.cascade.read({"image": images}, names), dict(self.cascade.readers.named())
        return {
            name: torch.stack(
                [
                    readers[name].distance(block.wanted[name], seen[name]).cpu().double()
                    for seen in (got, block.strangers, block.true)
                ],
                dim=1,
            )
            for name in names
        }


def _joined(rows: Sequence[dict[str, Score]]) -> dict[str, Score]:
    return {name: row for part in rows for name, row in part.items()}


def _score(means: Float[Tensor, "3"]) -> Score:
    """The score of the mean distances that `Evaluation._compare` gives."""
    distance, chance, true = means.tolist()
    return Score(
        closed=1 - distance / chance if chance > 0 else 0.0,
        distance=distance,
        chance=chance,
        ceiling=1 - true / chance if chance > 0 else 0.0,
    )
