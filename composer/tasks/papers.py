"""The tasks of Composer, DALL-E 2 and others, as functions from pictures and texts to compositions.

A task gives a `Composition` (or several, labelled); ``cascade.sample(composition, seeds)`` draws it, `editing.Frame`
restricts it to a region, `best_of` draws the best of several. Each works on any model that has the conditions it names,
and refuses others. Where the default is a `Kind`, that stands for all conditions that the model has of it.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from torch import Tensor

from composer.cascade.cascade import Cascade
from composer.cascade.options import SampleOptions
from composer.cascade.parts import Parts, slerp
from composer.cascade.start import NoisyImage
from composer.diffusion.samplers import Progress
from composer.names import GLOBAL as GLOBAL
from composer.names import LAYOUT, Kind
from composer.names import LOCAL as LOCAL
from composer.prior import Prior
from composer.tasks.composition import Composition, Source, from_words, interpolate, of_kind, require, resolve_names

INVERSION_STEPS = 50
"""Steps of an inversion and of the drawing that follows; on the included model they give an image back to 60 dB."""

RECONFIGURATION_GUIDANCE = 2.0
"""Guidance of a reconfiguration, from the old conditions to the new ones; much more oversaturates colours."""

INVERTED, TOWARDS = INVERSION_STEPS, RECONFIGURATION_GUIDANCE
"""Their names before 0.3."""

Labelled = list[tuple[str, Composition]]


def text_to_image(cascade: Cascade, caption: str, prior: Prior | None = None) -> Composition:
    """Draws what a caption says, alone or with semantics that a prior draws for each seed (Composer, section 2.2).

    Raises:
        KeyError: The model has no condition ``caption``, or no ``semantics`` for the prior.
    """
    asked = from_words(cascade, "caption", caption)
    if prior is None:
        return asked
    require(cascade, "semantics", task="a prior")
    sources = {**asked.sources, "semantics": f"prior {prior.spec.get('name', '')} {prior.sha256}"}

    def draw_parts(seeds: Sequence[int]) -> Parts:
        return Parts(semantics=prior.sample([caption], len(seeds), seeds))

    return replace(asked, sources=sources, draw_parts=draw_parts)


def combine(cascade: Cascade, asked: Composition, prompts: Sequence[tuple[str, float]]) -> Composition:
    """Adds captions to a composition: AND with a positive weight, NOT with a negative one (Liu et al. 2022, eq. 11).

    Args:
        cascade: The model.
        asked: What guidance leads to; its other representations hold for each of the captions too.
        prompts: Captions and their weights, which are those of guidance: 3 and -1 are usual.
    """
    also = tuple((asked.parts | from_words(cascade, "caption", words).parts, weight) for words, weight in prompts)
    says = {f"caption {weight:+g}": words for words, weight in prompts}
    return replace(asked, also=(*asked.also, *also), sources={**asked.sources, **says})


def variations(
    cascade: Cascade,
    source: Source,
    keep: Sequence[str] = ("semantics",),
    eta: float | None = None,
    steps: int = INVERSION_STEPS,
    progress: Progress | None = None,
) -> Composition:
    """Draws variations of a picture: the conditions that are kept stay, the rest is new (Composer, section 3.2).

    Args:
        cascade: The model.
        source: The picture.
        keep: Representations to keep.
        eta: None begins with the seeds' noise. A number in [0, 1] begins with the picture's own noise and adds fresh
            noise on the way: 0 gives the picture back, 1 varies it most (DALL-E 2, section 3.1).
        steps: Of the inversion and of the drawing that follows.
        progress: Wraps the steps of the inversion.

    Raises:
        ValueError: `eta` is not in [0, 1].
    """
    require(cascade, *keep, task="this variation")
    kept = source.pick(*keep)
    if eta is None:
        return kept
    if not 0 <= eta <= 1:
        raise ValueError(f"expected a share of fresh noise in [0, 1], found {eta}")
    noise = source.invert(cascade, kept.parts, steps, progress)
    how = SampleOptions(sampler="ancestral", eta=eta) if eta > 0 else SampleOptions(sampler="heun")
    return replace(kept, start=noise, options=replace(how, steps=steps, guidance=1.0))


def interpolations(
    cascade: Cascade,
    a: Source,
    b: Source,
    count: int = 5,
    between: Sequence[str] = (Kind.APPEARANCE,),
    keep: Sequence[str] = (),
    latents: bool = False,
    steps: int = INVERSION_STEPS,
    progress: Progress | None = None,
) -> Labelled:
    """Goes from one picture to another in evenly spaced steps (Composer, section 3.2; DALL-E 2, section 3.2).

    Args:
        cascade: The model.
        a: The first picture.
        b: The last one.
        count: Number of pictures.
        between: Representations to interpolate: semantics along the great circle, palettes linearly.
        keep: Representations of `a` that stay.
        latents: Whether to begin with the two pictures' own noises, interpolated, instead of the seeds' noise.
        steps: Of the inversions and of the drawing that follows them.
        progress: Wraps the steps of the inversions.

    Raises:
        ValueError: `count` is below 2, or a representation has nothing in between.
    """
    if count < 2 or not between:
        found = f"{count} and {', '.join(between) or 'nothing'}"
        raise ValueError(f"expected at least 2 pictures and something to interpolate, found {found}")
    between = resolve_names(cascade, between, "this interpolation")
    require(cascade, *between, *keep, task="this interpolation")
    kept = a.pick(*(name for name in keep if name not in between))
    ends = [source.pick(*between) for source in (a, b)]
    options = SampleOptions()
    if latents:
        under = [end.parts | kept.parts for end in ends]
        inverted = [s.invert(cascade, p, steps, progress) for s, p in zip((a, b), under, strict=True)]
        ends = [replace(end, start=noise) for end, noise in zip(ends, inverted, strict=True)]
        options = SampleOptions(sampler="heun", steps=steps, guidance=1.0)
    shares = [i / (count - 1) for i in range(count)]
    between_them = [(s, interpolate(cascade, ends[0], ends[1], s)) for s in shares]
    return [(f"{s:.2f}", replace(one | kept, options=options)) for s, one in between_them]


def reconfigure(
    cascade: Cascade,
    source: Source,
    changed: Composition,
    keep: Sequence[str] | None = None,
    steps: int = INVERSION_STEPS,
    progress: Progress | None = None,
) -> Composition:
    """Changes some representations of a picture and keeps the picture otherwise (Composer, section 3.4, eq. 3).

    The picture is inverted under what it is (c1) and drawn again under what it is to be (c2), from c1 towards c2 where
    guidance is above 1 (eq. 2).

    Args:
        cascade: The model.
        source: The picture.
        changed: What takes the place of its own: an edited sketch, another depth, other words.
        keep: Representations of the picture that stay; None keeps all the others that it has.
        steps: Of the inversion and of the drawing.
        progress: Wraps the steps of the inversion.
    """
    known = [name for name in source.has.parts if name not in of_kind(cascade, Kind.MASK)]
    asked = known if keep is None else resolve_names(cascade, keep, "this reconfiguration")
    staying = [name for name in asked if name not in changed.parts]
    require(cascade, *staying, task="this reconfiguration")
    kept = source.pick(*staying)
    before = kept | source.pick(*(name for name in changed.parts if name in known))
    noise = source.invert(cascade, before.parts, steps, progress)
    options = SampleOptions(sampler="heun", steps=steps, guidance=RECONFIGURATION_GUIDANCE)
    return replace(kept | changed, start=noise, away=before.parts, options=options)


def translate(
    cascade: Cascade,
    source: Source,
    caption: str,
    keep: Sequence[str] | None = LAYOUT,
    steps: int = INVERSION_STEPS,
    progress: Progress | None = None,
) -> Composition:
    """Makes a picture show what a caption says: image translation, a reconfiguration (Composer, section 3.4).

    The paper keeps all representations that there are, and so does `keep` None. Where they contradict the caption they
    win, with the included model altogether; hence only the picture's shapes are kept by default.
    """
    return reconfigure(cascade, source, from_words(cascade, "caption", caption), keep, steps, progress)


def pose_transfer(
    cascade: Cascade,
    source: Source,
    pose: Source,
    keep: Sequence[str] = (Kind.APPEARANCE,),
    take: Sequence[str] = (Kind.SEGMENTATION,),
    steps: int = INVERSION_STEPS,
    progress: Progress | None = None,
) -> Composition:
    """Gives a picture's objects the shapes of another picture's (Composer, section 3.4): a reconfiguration.

    Args:
        cascade: The model.
        source: What to show.
        pose: The picture whose shapes to take.
        keep: Representations of `source` that stay.
        take: Representations of `pose`.
        steps: Of the inversion and of the drawing.
        progress: Wraps the steps of the inversion.
    """
    keep, take = (resolve_names(cascade, names, "pose transfer") for names in (keep, take))
    require(cascade, *keep, *take, task="pose transfer")
    return reconfigure(cascade, source, pose.pick(*take), keep, steps, progress)


def colorize(
    cascade: Cascade, source: Source, palettes: Sequence[Composition], count: int = 1, keep: Sequence[str] = ()
) -> Labelled:
    """Recolours a picture: its intensity with other palettes (Composer, section 3.3).

    Args:
        cascade: The model.
        source: The picture.
        palettes: Compositions that hold a palette: a picture's, or colours by `from_words`.
        count: How many pictures from each palette to the next, that one not counted; above 1 interpolates.
        keep: Further representations of the picture that stay.
    """
    require(cascade, "intensity", "palette", *keep, task="colorization")
    only = [palette.pick("palette") for palette in palettes]
    kept = source.pick("intensity", *keep)
    pairs = [(a, b, i / count) for a, b in pairwise(only) for i in range(count)]
    steps = [(f"{share:.2f}" if count > 1 else "", interpolate(cascade, a, b, share)) for a, b, share in pairs]
    return [(label, kept | palette) for label, palette in [*steps, ("", only[-1])]]


def style_transfer(
    cascade: Cascade,
    content: Source,
    style: Source,
    strength: float = 1.0,
    keep: Sequence[str] = LAYOUT,
    take: Sequence[str] = (Kind.APPEARANCE,),
) -> Composition:
    """Draws a picture's content in another's style (Composer, section 3.3).

    Args:
        cascade: The model.
        content: The picture whose layout stays.
        style: The picture whose looks are taken.
        strength: How far to go from the looks of `content` (0) to those of `style` (1).
        keep: Representations of `content`.
        take: Representations that are interpolated towards those of `style`.
    """
    keep, take = (resolve_names(cascade, names, "style transfer") for names in (keep, take))
    require(cascade, *keep, *take, task="style transfer")
    return content.pick(*keep) | interpolate(cascade, content.pick(*take), style.pick(*take), strength)


def try_on(cascade: Cascade, wearer: Source, garment: Source, keep: Sequence[str] = ()) -> Composition:
    """Puts a picture's looks where another one's clothes are: restrict it to their region (Composer, section 3.4).

    Args:
        cascade: The model.
        wearer: Who wears it: the square around the region.
        garment: What to put on.
        keep: Representations of `wearer` that stay, such as the depth of its folds.
    """
    require(cascade, "mask", "semantics", *keep, task="try-on")
    return wearer.pick(*keep) | garment.pick(*of_kind(cascade, Kind.APPEARANCE))


def redraw(cascade: Cascade, source: Source, asked: Composition, time: float) -> Composition:
    """Starts from a picture with added noise instead of noise alone (SDEdit, Meng et al. 2022).

    Args:
        cascade: The model.
        source: The picture to start from, such as a rough drawing.
        asked: What to draw.
        time: How noisy: the cosine schedule's time in (0, 1]; the higher, the less of the picture stays.
    """
    return replace(asked, start=NoisyImage(source.image, time))


def text_difference(
    cascade: Cascade,
    source: Source,
    before: str,
    after: str,
    shares: Sequence[float],
    keep: Sequence[str] = (),
    steps: int = INVERSION_STEPS,
    progress: Progress | None = None,
) -> Labelled:
    """Turns a picture's semantics towards the difference of two captions (DALL-E 2, section 3.3).

    The initial noise is that of the picture; z_d = norm(z_after - z_before), and the semantics are
    slerp(z_i, z_d, share).

    Args:
        cascade: The model.
        source: The picture.
        before: What it shows.
        after: What it is to show.
        shares: How far to turn; 0 gives the picture back, 0.25 to 0.5 is usual.
        keep: Representations of the picture that stay.
        steps: Of the inversion and of the drawing that follows.
        progress: Wraps the steps of the inversion.

    Raises:
        ValueError: The two captions mean the same to CLIP.
    """
    require(cascade, "semantics", *keep, task="a text difference")
    texts = [from_words(cascade, "semantics", words).parts["semantics"] for words in (before, after)]
    difference = texts[1] - texts[0]
    z = source.pick("semantics").parts["semantics"]
    if difference.norm() < 1e-3 * z.norm():
        raise ValueError(f"expected two captions that differ, found {before!r} and {after!r}")
    towards = difference * (z.norm() / difference.norm())
    kept = source.pick(*keep).drop("semantics")
    noise = source.invert(cascade, kept.parts | {"semantics": z}, steps, progress)
    start = replace(kept, start=noise, options=SampleOptions(sampler="heun", steps=steps, guidance=1.0))
    says = f"{before!r} to {after!r}"
    return [(f"{s:g}", _with_semantics(start, slerp(z, towards, s), f"{says}, {s:g}")) for s in shares]


def truncated(
    cascade: Cascade,
    source: Source,
    mean: Tensor,
    components: Tensor,
    dimensions: Sequence[int],
    keep: Sequence[str] = (),
) -> Labelled:
    """Draws from only the first principal components of a picture's semantics (DALL-E 2, section 5, figure 7).

    Args:
        cascade: The model.
        source: The picture.
        mean: (d,) of image embeddings.
        components: (k d) orthonormal, the most important first.
        dimensions: How many components to keep, a picture each.
        keep: Representations of the picture that stay.

    Raises:
        ValueError: Embeddings of another width, or more components than there are.
    """
    require(cascade, "semantics", *keep, task="a reconstruction")
    z = source.pick("semantics").parts["semantics"]
    if z.shape[1] != len(mean) or not 0 <= min(dimensions) <= max(dimensions) <= len(components):
        raise ValueError(
            f"expected embeddings of width {len(mean)} and 0 to {len(components)} components, found width {z.shape[1]} "
            f"and {', '.join(map(str, dimensions))}"
        )
    mean, components, kept = mean.to(z), components.to(z), source.pick(*keep)
    shifted = (z - mean) @ components.T

    def first(k: int) -> Tensor:
        x = mean + shifted[:, :k] @ components[:k]
        scaled: Tensor = x * (z.norm() / x.norm().clamp(min=1e-6))  # as long as an embedding is
        return scaled

    return [(str(k), _with_semantics(kept, first(k), f"{k} components")) for k in dimensions]


def _with_semantics(kept: Composition, semantics: Tensor, source: str) -> Composition:
    parts = Parts(semantics=semantics)
    return kept | Composition(parts=parts, wanted=parts, sources={"semantics": source})
