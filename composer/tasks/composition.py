"""Makes compositions from pictures and texts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from composer.cascade.cascade import Cascade
from composer.cascade.composition import Composition as Composition
from composer.cascade.parts import Parts
from composer.cascade.start import InitialNoise
from composer.cascade.taking import Picture, open_pictures
from composer.decomposition import Batch, Decomposer
from composer.diffusion.samplers import Progress
from composer.images.reading import File, PictureFile, resize
from composer.images.sheet import decomposed, png
from composer.names import Kind
from composer.storage.files import require_utf8


@dataclass(frozen=True)
class Source:
    """A picture, and what the model reads from it.

    Attributes:
        image: (1 3 h w) in [-1, 1], at the size of the model's first stage.
        has: All that the model reads from it.
    """

    image: Float[Tensor, "1 3 h w"] = field(repr=False)
    has: Composition
    _inversions: "list[_Inversion]" = field(init=False, repr=False, compare=False, default_factory=list)

    @classmethod
    def of(
        cls, cascade: Cascade, image: Float[Tensor, "3 h w"], caption: str = "", source: str = "an image"
    ) -> "Source":
        """Decomposes an image.

        Args:
            cascade: The model that reads it.
            image: In [-1, 1], square, of any size.
            caption: What it shows, if known.
            source: Where it came from, for recipes.
        """
        small, large = (
            resize(image, side)[None].to(cascade.device) for side in (cascade.stages[0].size, cascade.sight)
        )
        batch: Batch = {"image": small, "source": large} | ({"caption": [caption]} if caption else {})
        parts, wanted = cascade.decompose(batch), cascade.read(batch)
        sources = {name: caption if name == "caption" else source for name in parts}
        return cls(batch["image"], Composition(parts=parts, wanted=wanted, sources=sources))

    @classmethod
    def open(cls, cascade: Cascade, path: File, caption: str = "") -> "Source":
        """Decomposes an image file.

        Raises:
            Refused: The file is no picture that can be read.
        """
        file = PictureFile.of(path)
        return cls.of(cascade, open_pictures([file], cascade.sight)[0], caption, file.source)

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows: the picture, and a preview of each representation."""
        parts = self.has.parts
        if parts.shown_by is None:
            return None
        shown = Parts({name: value for name, value in parts.items() if name in parts.shown_by})
        return png(decomposed(self.image, parts.shown_by, shown))

    def pick(self, *names: str) -> Composition:
        """Takes the named representations.

        Raises:
            KeyError: The model reads no such thing from it.
        """
        return self.has.pick(*names)

    def invert(self, cascade: Cascade, parts: Parts, steps: int, progress: Progress | None = None) -> InitialNoise:
        """Finds the noise from which `parts` reproduce the picture, see `Cascade.invert`; results are cached."""
        how = (cascade.identity, cascade.precision, cascade.device, steps)
        for known in self._inversions:
            same = known.how == how and known.parts.keys() == parts.keys()
            if same and all(torch.equal(known.parts[name], value) for name, value in parts.items()):
                return known.noise
        noise = cascade.invert(self.image, parts, steps, progress)
        self._inversions.append(_Inversion(how, parts, noise))
        return noise


@dataclass(frozen=True)
class _Inversion:
    """Initial noise, and what it was found with: model, precision, device, steps, and the parts."""

    how: tuple[str, torch.dtype | None, torch.device, int]
    parts: Parts
    noise: InitialNoise


def from_words(cascade: Cascade, name: str, words: str) -> Composition:
    """Makes one representation from a text, such as a caption or ``"#aa3311 0.6, #eeddcc 0.4"``.

    Raises:
        KeyError: The model has no such condition.
        ValueError: It cannot be given by words, or not by these.
    """
    require(cascade, name)
    require_utf8(words)
    return _single(cascade, name, words, lambda by: by.from_text(words).to(cascade.device))


def from_file(cascade: Cascade, name: str, path: File) -> Composition:
    """Computes a single representation of an image file (`Source.open` computes all).

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
        parts=Parts.of({name: read(decomposer)}, cascade.decomposition),
        wanted=Parts({name: read(reader)}),
        sources={name: source},
    )


def preview(
    cascade: Cascade,
    what: Composition | Mapping[str, Tensor | str] | Source | Picture | Sequence[Picture] | None = None,
    **conditions: Tensor | str,
) -> Image.Image:
    """Draws a labelled preview of each representation that a model computes from pictures or texts.

    Args:
        cascade: The model.
        what: A picture or several, as `Cascade.decompose` takes them; a `Source`; or what `Cascade.sample` takes.
        **conditions: Further representations, or words, by the name of their condition.

    Raises:
        KeyError: The model has no such condition.
        ValueError: There is nothing to show, or something cannot be read.
        Refused: A file is no picture that can be read.
    """
    given: Any = what.has if isinstance(what, Source) else what
    if isinstance(given, Tensor | np.ndarray | File | Image.Image | Sequence):
        given = cascade.decompose(given)
    drawn = cascade.ask(given, **conditions).parts.preview()
    if drawn is None:
        raise ValueError('expected something to show: preview(model, "photo.png"), preview(model, palette="#aa3311")')
    return drawn


def require(cascade: Cascade, *names: str, task: str = "this") -> None:
    """Checks that a model has the conditions that a task needs.

    Raises:
        KeyError: Names the ones that are missing, and what the model has.
    """
    if missing := [name for name in names if name not in cascade.names]:
        raise KeyError(
            f"{task} needs {', '.join(missing)}, for which this model has no condition; it has "
            f"{', '.join(cascade.names) or 'none'}. Choose another model, or train one with them"
        )


def of_kind(cascade: Cascade, *kinds: Kind) -> list[str]:
    """The model's conditions of these kinds, in the order of the kinds."""
    by = dict(cascade.decomposition.named())
    return [name for kind in kinds for name in cascade.names if name in by and by[name].kind == kind]


def resolve_names(cascade: Cascade, names: Sequence[str], task: str = "this") -> list[str]:
    """Resolves names of conditions; a kind stands for all conditions of that kind that the model has.

    Args:
        cascade: The model.
        names: Names and kinds; a word that is both is the model's name, unless it is a `Kind` itself.
        task: The task, for the error.

    Raises:
        KeyError: The model has none of all these kinds.
    """
    known = set(Kind)
    kinds = [Kind(n) for n in names if isinstance(n, Kind) or (n in known and n not in cascade.names)]
    found = [name for name in names if name not in kinds]
    found += [name for name in of_kind(cascade, *kinds) if name not in found]
    if kinds and not found:
        require(cascade, " or ".join(kinds), task=task)
    return found


def interpolate(cascade: Cascade, a: Composition, b: Composition, share: float) -> Composition:
    """Interpolates between two compositions, in the representations that both have.

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
    noises = [end.start for end in (a, b) if isinstance(end.start, InitialNoise)]
    start = noises[0].interpolate(noises[1], share) if len(noises) == 2 else None
    return replace(a, parts=parts, wanted=wanted, sources=sources, start=start)
