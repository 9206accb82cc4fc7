"""What a picture is to be composed of: representations, how much each counts, and where the drawing begins."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from composer.cascade.cascade import Cascade
from composer.cascade.parts import Latent, Parts, row
from composer.decomposition import Batch, Decomposer
from composer.diffusion.samplers import Progress
from composer.diffusion.strength import Strength
from composer.images.reading import File, PictureFile, resize
from composer.storage.files import require_utf8

BY_NAME = ("parts", "wanted", "sources", "strengths")


@dataclass(frozen=True, kw_only=True)
class Composition:
    """Everything that says what to draw, but for the seeds. Compositions combine as parts do; the right side wins.

    Attributes:
        parts: Representations of one row (or of one row a seed).
        wanted: The same as the model's readers read them, which is what adherence compares.
        sources: Where each representation came from: a file's SHA-256 and name, or a person's words.
        strengths: How much, when and where single representations count.
        away: What guidance leads away from; None is nothing at all.
        also: Further representations and their weights, for AND and NOT; see `Cascade.sample`.
        latent: Noise to begin with, in place of the seeds'.
        start: An image to start from and the noise level it gets; see `Cascade.sample`.
        locked: An image and where it has to stay.
        sampling: What `Cascade.sample` has to be told besides; what the caller says wins.
        drawn: Makes parts of the seeds, one row each, such as semantics by a prior.
    """

    parts: Parts = field(default_factory=Parts)
    wanted: Parts = field(default_factory=Parts)
    sources: Mapping[str, str] = field(default_factory=dict)
    strengths: Mapping[str, Strength] = field(default_factory=dict)
    away: Parts | None = None
    also: tuple[tuple[Parts, float], ...] = ()
    latent: Latent | None = None
    start: tuple[Float[Tensor, "#b 3 h w"], float] | None = None
    locked: tuple[Tensor, Tensor] | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    drawn: Callable[[Sequence[int]], Parts] | None = None

    def pick(self, *names: str) -> "Composition":
        """Keeps the named representations.

        Raises:
            KeyError: One of them is not here.
        """
        self.parts.pick(*names)
        return self._named(lambda name: name in names)

    def drop(self, *names: str) -> "Composition":
        """Leaves out the named representations."""
        return self._named(lambda name: name not in names)

    def _named(self, keep: Callable[[str], bool]) -> "Composition":
        kept = {key: {n: v for n, v in getattr(self, key).items() if keep(n)} for key in BY_NAME}
        return self.but(**kept | {key: Parts(kept[key]) for key in ("parts", "wanted")})

    def __or__(self, other: "Composition") -> "Composition":
        """Both, name by name. A name that the right side gives counts as the right side says."""
        mine, theirs = self.drop(*other.parts), other
        joined: dict[str, Any] = {key: {**getattr(mine, key), **getattr(theirs, key)} for key in BY_NAME}
        joined |= {key: Parts(joined[key]) for key in ("parts", "wanted")}
        rest = [f.name for f in fields(self) if f.name not in (*BY_NAME, "sampling")]
        joined |= {key: getattr(theirs, key) for key in rest if getattr(theirs, key) not in (None, ())}
        return self.but(**joined, sampling={**self.sampling, **other.sampling})

    def but(self, **changes: Any) -> "Composition":
        """The same with some fields replaced."""
        return replace(self, **changes)

    def settled(self, seeds: Sequence[int]) -> "Composition":
        """The same with what depends on the seeds drawn, a row a seed."""
        return self if self.drawn is None else self.but(parts=self.parts | self.drawn(seeds), drawn=None)

    def row(self, i: int) -> "Composition":
        """Row i of one that is settled, for the picture of the i-th seed."""
        return self.but(
            parts=self.parts.row(i),
            wanted=self.wanted.row(i),
            away=None if self.away is None else self.away.row(i),
            also=tuple((parts.row(i), weight) for parts, weight in self.also),
            latent=None if self.latent is None else replace(self.latent, noise=row(self.latent.noise, i)),
            start=None if self.start is None else (row(self.start[0], i), self.start[1]),
            locked=None if self.locked is None else (row(self.locked[0], i), row(self.locked[1], i)),
        )

    def seedless(self, cascade: Cascade, changes: Mapping[str, Any]) -> bool:
        """Whether the first stage draws the same for every seed: from one latent, without fresh noise on the way."""
        told = merged(self.sampling, changes)
        how = cascade.settings(**{name: value for name, value in told.items() if name != "size"})
        first = how[cascade.stages[0].name]
        return (
            self.latent is not None and len(self.latent.noise) == 1 and not (first.sampler == "ancestral" and first.eta)
        )

    def draw(self, cascade: Cascade, seeds: Sequence[int], **changes: Any) -> Float[Tensor, "b 3 h w"]:
        """Draws a picture a seed; `changes` are those of `Cascade.sample`."""
        ready = self.settled(seeds)
        told = {name: getattr(ready, name) for name in ("away", "also", "strengths", "latent", "start", "locked")}
        return cascade.sample(ready.parts, seeds=seeds, **told, **merged(self.sampling, changes))


def merged(own: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """What a composition wants of sampling, and what the caller says instead."""
    return {**own, **{name: value for name, value in changes.items() if value is not None}}


@dataclass(frozen=True)
class Source:
    """A picture to take from.

    Attributes:
        image: (1 3 h w) in [-1, 1], at the size of the model's first stage.
        has: All that the model reads from it.
    """

    image: Float[Tensor, "1 3 h w"]
    has: Composition
    _inversions: "list[_Inversion]" = field(init=False, repr=False, compare=False, default_factory=list)

    @classmethod
    def of(
        cls, cascade: Cascade, image: Float[Tensor, "3 h w"], caption: str = "", source: str = "an image"
    ) -> "Source":
        """Takes an image apart.

        Args:
            cascade: The model that reads it.
            image: In [-1, 1], square, of any size.
            caption: What it shows, if known.
            source: What a recipe says of where it came from.
        """
        small = resize(image, cascade.stages[0].size)
        batch: Batch = {"image": small[None].to(cascade.device)} | ({"caption": [caption]} if caption else {})
        parts, wanted = cascade.decompose(batch), cascade.read(batch)
        sources = {name: caption if name == "caption" else source for name in parts}
        return cls(batch["image"], Composition(parts=parts, wanted=wanted, sources=sources))

    @classmethod
    def open(cls, cascade: Cascade, path: File, caption: str = "") -> "Source":
        """Takes an image's file apart.

        Raises:
            Refused: The file is no picture that can be read.
        """
        file = PictureFile.of(path)
        return cls.of(cascade, cascade.open(file)[0], caption, file.source)

    def pick(self, *names: str) -> Composition:
        """Takes the named representations.

        Raises:
            KeyError: The model reads no such thing from it.
        """
        return self.has.pick(*names)

    def invert(self, cascade: Cascade, parts: Parts, steps: int, progress: Progress | None = None) -> Latent:
        """Finds the latent from which `parts` give the picture back, see `Cascade.invert`; each is found once."""
        how = (cascade.identity, cascade.precision, cascade.device, steps)
        for known in self._inversions:
            same = known.how == how and known.parts.keys() == parts.keys()
            if same and all(torch.equal(known.parts[name], value) for name, value in parts.items()):
                return known.latent
        latent = cascade.invert(self.image, parts, steps, progress)
        self._inversions.append(_Inversion(how, parts, latent))
        return latent


@dataclass(frozen=True)
class _Inversion:
    """A latent, and what it was found with: model, precision, device, steps, and the parts."""

    how: tuple[str, torch.dtype | None, torch.device, int]
    parts: Parts
    latent: Latent


def said(cascade: Cascade, name: str, words: str) -> Composition:
    """Makes one representation of words, such as a caption or ``"#aa3311 0.6, #eeddcc 0.4"``.

    Raises:
        KeyError: The model has no such condition.
        ValueError: It is not given by words, or these do not say it.
    """
    require(cascade, name)
    require_utf8(words)
    return _single(cascade, name, words, lambda by: by.from_text(words).to(cascade.device))


def shown(cascade: Cascade, name: str, path: File) -> Composition:
    """Reads one representation from an image's file, and no other one (`Source.open` reads all).

    Raises:
        KeyError: The model has no such condition.
        ValueError: It is not read from images.
        Refused: The file is no picture that can be read.
    """
    require(cascade, name)
    file = PictureFile.of(path)
    batch: Batch = {"image": cascade.open(file)}
    if not dict(cascade.decomposition.named())[name].can_read(batch):
        raise ValueError(f"--{name} is not read from images: found {path}")
    return _single(cascade, name, file.source, lambda by: by(batch))


@torch.no_grad()
def _single(cascade: Cascade, name: str, source: str, read: Callable[[Decomposer], Tensor]) -> Composition:
    """One representation, and the same as the model's reader of that name has it."""
    decomposer, reader = dict(cascade.decomposition.named())[name], dict(cascade.readers.named())[name]
    return Composition(
        parts=Parts({name: read(decomposer)}), wanted=Parts({name: read(reader)}), sources={name: source}
    )


def require(cascade: Cascade, *names: str, task: str = "this") -> None:
    """Refuses a task that the model lacks conditions for.

    Raises:
        KeyError: Names the ones that are missing, and what the model has.
    """
    if missing := [name for name in names if name not in cascade.names]:
        raise KeyError(
            f"{task} needs {', '.join(missing)}, for which this model has no condition; it has "
            f"{', '.join(cascade.names) or 'none'}. Choose another model, or train one with them"
        )


def interpolate(cascade: Cascade, a: Composition, b: Composition, share: float) -> Composition:
    """Goes `share` of the way from one composition to another, in the representations that both have.

    Raises:
        ValueError: One of them has a representation that the other lacks, or one with nothing in between.
    """
    if a.parts.keys() != b.parts.keys():
        raise ValueError(
            "expected the same representations at both ends, "
            f"found {', '.join(a.parts) or 'none'} and {', '.join(b.parts) or 'none'}"
        )
    by, readers = dict(cascade.decomposition.named()), dict(cascade.readers.named())
    parts = Parts({n: by[n].interpolate(a.parts[n], b.parts[n], share) for n in a.parts})
    wanted = Parts({n: readers[n].interpolate(a.wanted[n], b.wanted[n], share) for n in a.wanted if n in b.wanted})
    sources = {n: f"{1 - share:.3g} {a.sources.get(n)} + {share:.3g} {b.sources.get(n)}" for n in parts}
    latent = a.latent and b.latent and a.latent.interpolate(b.latent, share)
    return a.but(parts=parts, wanted=wanted, sources=sources, latent=latent)
