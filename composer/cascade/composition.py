"""Compositions: the conditions of a picture, how much each counts, and where sampling starts."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from composer.cascade.options import SampleOptions
from composer.cascade.parts import Parts, describe
from composer.cascade.start import Kept, Start
from composer.diffusion.strength import Strength
from composer.images.sheet import png

BY_NAME = ("parts", "wanted", "sources", "strengths")


@dataclass(frozen=True, kw_only=True, repr=False)
class Composition:
    """Everything that says what to draw, except the seeds. Compositions combine as parts do; the right side wins.

    Attributes:
        parts: Representations to follow, of one row or of one row per seed.
        wanted: The same in the space of the model's readers, to measure adherence by.
        sources: Where each representation came from: a file's SHA-256 and name, or a text.
        strengths: How much, when and where single representations count; one without a strength counts fully.
        away: What guidance leads away from (c1 of two-sided guidance, Composer eq. 2); None is the estimate without
            conditions.
        also: Further representations and their weights, each against what guidance leads away from: a positive weight
            asks for them as well (AND), a negative one for something else (NOT; Liu et al. 2022, eq. 11).
        start: Where sampling starts; None is noise drawn from the seeds.
        kept: The part of an image that has to stay.
        options: How to sample; options of the caller win.
        draw_parts: Draws parts from the seeds, one row per seed, such as semantics by a prior.

    Raises:
        ValueError: A strength is no `Strength`, or the start no `Start`.
    """

    parts: Parts = field(default_factory=Parts)
    wanted: Parts = field(default_factory=Parts)
    sources: Mapping[str, str] = field(default_factory=dict)
    strengths: Mapping[str, Strength] = field(default_factory=dict)
    away: Parts | None = None
    also: tuple[tuple[Parts, float], ...] = ()
    start: Start | None = None
    kept: Kept | None = None
    options: SampleOptions = field(default_factory=SampleOptions)
    draw_parts: Callable[[Sequence[int]], Parts] | None = None

    def __post_init__(self) -> None:
        parts: Any = self.parts
        if not isinstance(parts, Parts):
            object.__setattr__(self, "parts", Parts(parts))
        for name, given in dict[str, Any](self.strengths).items():
            if not isinstance(given, Strength):
                raise ValueError(f"expected a strength of {name} such as Strength(0.5), found {given!r}")
        start: Any = self.start
        if not isinstance(start, Start | None):
            raise ValueError(
                "expected a start such as NoisyImage(image, 0.7), SmallImage(image) or model.invert(...), found "
                f"{type(start).__name__}"
            )

    def __repr__(self) -> str:
        parts = [f"{self._label(name)}: {self._source(name) or describe(self.parts[name])}" for name in self.parts]
        told = [f"away from {', '.join(self.away) or 'nothing'}"] if self.away is not None else []
        told += [f"{weight:+g} {', '.join(other)}" for other, weight in self.also]
        told += [f"starts at {self.start!r}"] if self.start is not None else []
        told += [f"keeps {self.kept!r}"] if self.kept is not None else []
        told += [f"{name}={value!r}" for name, value in self.options.to_dict().items()]
        told += ["parts drawn for each seed"] if self.draw_parts is not None else []
        return f"Composition({'; '.join([', '.join(parts) or 'nothing', *told])})"

    def _label(self, name: str) -> str:
        return f"{name} at {self.strengths[name].weight:g}" if name in self.strengths else name

    def _source(self, name: str) -> str:
        """The text or the file that a representation came from, without the file's hash."""
        return re.sub("^sha256:[0-9a-f]+ ?", "", self.sources.get(name, ""))

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows: a preview of each representation, with its strength."""
        shown = self.parts.preview({name: self._label(name) for name in self.parts})
        return None if shown is None else png(shown)

    def pick(self, *names: str) -> "Composition":
        """Keeps the named representations.

        Raises:
            KeyError: One of them is missing.
        """
        self.parts.pick(*names)
        return self._filter(lambda name: name in names)

    def drop(self, *names: str) -> "Composition":
        """Leaves out the named representations."""
        return self._filter(lambda name: name not in names)

    def _filter(self, keep: Callable[[str], bool]) -> "Composition":
        def kept(values: Mapping[str, Any]) -> dict[str, Any]:
            return {name: value for name, value in values.items() if keep(name)}

        parts = Parts.of(kept(self.parts), self.parts.shown_by)
        wanted = Parts(kept(self.wanted))
        return replace(self, parts=parts, wanted=wanted, sources=kept(self.sources), strengths=kept(self.strengths))

    def __or__(self, other: "Composition") -> "Composition":
        """Both, name by name; the right side wins, with its strength and source."""
        mine = self.drop(*other.parts)
        given = [f.name for f in fields(self) if f.name not in (*BY_NAME, "options")]
        rest = {name: getattr(other, name) for name in given if getattr(other, name) not in (None, ())}
        return replace(
            self,
            parts=mine.parts | other.parts,
            wanted=mine.wanted | other.wanted,
            sources={**mine.sources, **other.sources},
            strengths={**mine.strengths, **other.strengths},
            options=self.options | other.options,
            **rest,
        )

    def resolve(self, seeds: Sequence[int]) -> "Composition":
        """Draws what depends on the seeds, one row per seed."""
        return (
            self
            if self.draw_parts is None
            else replace(self, parts=self.parts | self.draw_parts(seeds), draw_parts=None)
        )

    def row(self, i: int) -> "Composition":
        """Row i of a resolved composition, for the picture of the i-th seed."""
        return replace(
            self,
            parts=self.parts.row(i),
            wanted=self.wanted.row(i),
            away=self.away and self.away.row(i),
            also=tuple((parts.row(i), weight) for parts, weight in self.also),
            start=self.start and self.start.row(i),
            kept=self.kept and self.kept.row(i),
        )
