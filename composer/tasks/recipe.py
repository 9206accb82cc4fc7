"""Recipes, from which pictures can be drawn again: seed, settings, versions, and the representations themselves."""

import base64
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Float
from safetensors.torch import load
from torch import Tensor

from composer.cascade.cascade import Cascade
from composer.cascade.options import SampleOptions
from composer.cascade.parts import Parts
from composer.cascade.recipe import FORMAT, PRECISIONS, pack, versions
from composer.cascade.start import InitialNoise, NoisyImage, Start
from composer.diffusion.samplers import Progress
from composer.diffusion.strength import Strength, weigh
from composer.images.reading import MAX_PIXELS, File, PictureFile
from composer.images.sheet import read_recipe
from composer.storage.files import printable, shorten_error
from composer.storage.formats import check_edit, check_recipe
from composer.tasks.composition import Composition
from composer.tasks.editing import Frame, Original, extend

MAX_BYTES = 64_000_000
"""Size of the representations in a recipe, once unpacked; more is refused."""


def recipe(
    cascade: Cascade, composition: Composition, seed: int, options: SampleOptions | None = None
) -> dict[str, Any]:
    """Records how one picture was drawn, in plain JSON values; hashes, names and texts, never paths.

    Args:
        cascade: The model that drew it.
        composition: What it was drawn from, resolved and of one row.
        seed: Its seed.
        options: The options of `Cascade.sample`.
    """
    return cascade.origin(composition, [seed], options).recipe()


def changes_since(cascade: Cascade, found: Mapping[str, Any]) -> list[str]:
    """Lists what has changed since a recipe's picture was drawn, so that its values may differ; one phrase each."""
    written = found.get("versions")
    then = {**(written if isinstance(written, Mapping) else {}), "device": found.get("device")}
    now = {**versions(), "device": cascade.device.type}
    return [
        f"{name} {printable(str(then[name]))} then, {here} now"
        for name, here in now.items()
        if then.get(name) not in (None, here)
    ]


def unpack(text: str) -> Parts:
    """Reverses `pack`. The text is not trusted: it can contain tensors and nothing else.

    Raises:
        ValueError: It is damaged, or would unpack to more than `MAX_BYTES`.
    """
    try:
        expander = zlib.decompressobj()
        data = expander.decompress(base64.b64decode(text, validate=True), MAX_BYTES)
        if expander.unconsumed_tail:
            raise ValueError(f"they would take more than {MAX_BYTES} bytes")
        return Parts(load(data))
    except Exception as error:  # each of the three formats has errors of its own
        raise ValueError(f"the recipe's representations cannot be unpacked: {shorten_error(error)}") from error


@dataclass(frozen=True)
class Redo:
    """A parsed recipe: what to draw, and how.

    Attributes:
        composition: What it was drawn from.
        seed: Its seed.
        options: How it is sampled.
        precision: Inside the networks, one of `PRECISIONS`; None where the recipe is too old to say.
    """

    composition: Composition
    seed: int
    options: SampleOptions
    precision: str | None


def parse_recipe(cascade: Cascade, found: Mapping[str, Any], limited: bool = True) -> Redo:
    """Reads a recipe for the model that it names; those without a format number, too.

    Args:
        cascade: The model.
        found: The recipe.
        limited: Refuse what asks for more than `LIMITS`.

    Raises:
        ValueError: The recipe is another model's, incomplete, of a newer format, does not fit the model, or asks for
            too much.
    """
    _check_format(found)
    check_recipe(found)
    if (sha256 := found["model"]["sha256"]) != cascade.sha256:
        named = printable(repr(found["model"].get("name", "")))
        raise ValueError(
            f"the picture was drawn by the model {named} with SHA-256 {sha256[:12]}..., "
            f"this one is {cascade.sha256[:12]}...; give the former with --model"
        )
    precision, stages, size = found.get("precision"), dict(found["stages"]), found["size"]
    if precision is not None and precision not in PRECISIONS:
        raise ValueError(f"expected a precision of {', '.join(PRECISIONS)} in the recipe, found {printable(precision)}")
    if not stages:
        raise ValueError("the recipe names no stage that drew")
    options = SampleOptions(stages=stages, until=list(stages)[-1], size=None if size is None else tuple(size))
    tensors = _Tensors({key: value.to(cascade.device) for key, value in unpack(found["tensors"]).items()})
    composition = Composition(
        parts=tensors.parts(found["representations"]),
        wanted=tensors.parts(found["wanted"]),
        sources={printable(name): printable(source) for name, source in found["sources"].items()},
        strengths={name: tensors.strength(given) for name, given in found["strengths"].items()},
        away=None if found["away"] is None else tensors.parts(found["away"]),
        also=tuple((tensors.parts(keys), float(weight)) for keys, weight in found["also"]),
        start=tensors.start(found, cascade),
    )
    if limited:
        _check_limits(cascade, composition, options)
    _check_fit(cascade, composition)
    return Redo(composition, found["seed"], options, precision)


def from_recipe(cascade: Cascade, name: str, path: File) -> Composition:
    """Takes one representation from the recipe in a PNG, as it was drawn with; not its strength.

    Raises:
        ValueError: See `parse_recipe`, or it has no such representation.
    """
    asked = parse_recipe(cascade, read_recipe(path)).composition
    if name not in asked.parts:
        raise ValueError(f"the recipe in {path} has no {name}; it has {', '.join(asked.parts) or 'nothing'}")
    one = asked.pick(name)
    return Composition(parts=one.parts, wanted=one.wanted, sources=one.sources)


def check_model(found: Mapping[str, Any], sha256: str) -> None:
    """Checks that a recipe is of this model, of which only the hash need be known.

    Args:
        found: The recipe.
        sha256: The model's.

    Raises:
        ValueError: It is another model's, or names none.
    """
    model = found.get("model")
    named = model.get("sha256") if isinstance(model, Mapping) else None
    if not (isinstance(model, Mapping) and isinstance(named, str)):
        raise ValueError("the recipe is incomplete or of another version: it names no model")
    if named != sha256:
        raise ValueError(
            f"the picture was drawn by the model {printable(str(model.get('name'))[:80])!r} with SHA-256 "
            f"{printable(named[:12])}..., this one is {sha256[:12]}...; give the former with --model"
        )


def _check_format(found: Mapping[str, Any]) -> None:
    number = found.get("format", 0)
    if not isinstance(number, int) or not 0 <= number <= FORMAT:
        raise ValueError(
            f"expected a recipe of format {FORMAT} or lower, found {printable(str(number)[:40])}: a newer version of "
            "composer-diffusion wrote it; update yours"
        )


class _Tensors(dict[str, Tensor]):
    """A recipe's tensors, which its other fields name."""

    def find(self, key: str) -> Tensor:
        """A tensor of one row of finite numbers.

        Raises:
            ValueError: There is none of that name, or it is another.
        """
        if key not in self:
            raise ValueError(f"the recipe is incomplete: it names the tensor {printable(key)}, which it does not hold")
        value = self[key]
        if value.ndim < 2 or len(value) != 1 or value.is_complex() or not bool(value.isfinite().all()):
            raise ValueError(
                f"expected tensors of one row of finite numbers in the recipe, found one of shape {tuple(value.shape)}"
            )
        return value

    def parts(self, keys: Mapping[str, str]) -> Parts:
        return Parts({name: self.find(key) for name, key in keys.items()})

    def image(self, key: str, channels: int) -> Float[Tensor, "1 {channels} h w"]:
        """An image, or what is like one.

        Raises:
            ValueError: It is no such tensor.
        """
        value = self.find(key)
        if value.ndim != 4 or value.shape[1] != channels or not value.is_floating_point():
            raise ValueError(f"expected an image of {channels} channels in the recipe, found {tuple(value.shape)}")
        return value.float()

    def start(self, found: Mapping[str, Any], cascade: Cascade) -> Start | None:
        """Where the drawing begins."""
        noise, image = found["latent"], found["start"]
        if image is not None:
            return NoisyImage(self.image(image[0], 3), float(image[1]))
        if noise is None:
            return None
        return InitialNoise(self.image(noise, cascade.stages[0].noise_channels), cascade.identity)

    def strength(self, given: Mapping[str, Any]) -> Strength:
        low, high = given["interval"]
        region = None if given["region"] is None else self.image(given["region"], 1)
        return Strength(weight=float(given["weight"]), interval=(float(low), float(high)), region=region)


@dataclass(frozen=True)
class Limits:
    """Limits on what a recipe may ask for, unless the user allows more.

    Attributes:
        side: Of the picture, in pixels.
        terms: Of guidance: estimates that each step takes.
        work: Steps times terms times pixels, over all stages.
        soften: Pixels over which an edit fades in.
    """

    side: int = 2048
    terms: int = 32
    work: float = 1e8
    soften: int = 256


LIMITS = Limits()


def _limit(what: str, found: float, most: float) -> None:
    if found > most:
        raise ValueError(
            f"the recipe asks for {what}: {found:.6g}, more than {most:.6g}; if you trust it, --no-limits draws it"
        )


def _check_limits(cascade: Cascade, composition: Composition, options: SampleOptions) -> None:
    """Refuses what would take much longer, or much more memory, than any picture that people draw.

    Raises:
        ValueError: It asks for too much.
    """
    own = {stage.name: stage for stage in cascade.stages}
    drawing = [own[name] for name in options.stages if name in own]
    largest = options.size or (max((stage.size for stage in drawing), default=0),) * 2
    _limit("pixels of a side", max(largest), LIMITS.side)
    work = 0.0
    for stage in drawing:
        names = [name for name in composition.parts if name in stage.conditions]
        strengths = {name: given for name, given in composition.strengths.items() if name in names}
        sets = weigh(names, strengths, (stage.size, stage.size))
        terms = len(sets) + len(composition.also) + 1
        _limit("terms of guidance", terms, LIMITS.terms)
        how = stage.sampling.override(options.stages[stage.name], f"stage {stage.name}")
        scale = stage.size / drawing[-1].size
        work += how.calls * terms * math.prod(side * scale for side in largest)
    _limit("steps times terms times pixels", work, LIMITS.work)


def _check_fit(cascade: Cascade, composition: Composition) -> None:
    """Runs the model's conditions on a recipe's representations, whose shapes are not trusted.

    Raises:
        ValueError: Something does not fit.
    """
    most = 4 * cascade.stages[0].size
    for parts in (composition.parts, composition.away or Parts(), *(parts for parts, _ in composition.also)):
        for name, value in parts.items():
            if value.ndim == 4 and max(value.shape[2:]) > most:
                raise ValueError(f"the recipe's {name} has {tuple(value.shape)} values: expected sides up to {most}")
            for stage in cascade.stages:
                try:
                    stage.check({name: value}, (stage.size, stage.size))
                except Exception as error:  # every layer has errors of its own
                    raise ValueError(f"the recipe's {name} does not fit this model: {shorten_error(error)}") from error


def draw_recipe(
    cascade: Cascade,
    found: Mapping[str, Any],
    progress: Progress | None = None,
    frame: Frame | None = None,
    limited: bool = True,
) -> Tensor:
    """Draws the picture of a recipe again, in the precision that the recipe names.

    Args:
        cascade: The model that the recipe names.
        found: The recipe.
        progress: Wraps the steps.
        frame: Where an edit happened, see `frame_of`.
        limited: Refuse what asks for more than `LIMITS`.

    Returns:
        (1 3 h w) in [-1, 1]; for an edit, what `Frame.paste` takes.

    Raises:
        ValueError: The recipe is another model's, was drawn away from another model, or is incomplete.
    """
    redo = parse_recipe(cascade, found, limited)
    if (then := found.get("autoguidance")) != (now := cascade.autoguidance):
        told = [
            printable(f"{one.get('name')!r} (SHA-256 {one.get('sha256', '')[:12]}...)") if one else "nothing"
            for one in (then, now)
        ]
        raise ValueError(
            f"the picture was drawn away from {told[0]}, here it would be from {told[1]}: give the former with "
            "--autoguidance, or leave the option out"
        )
    composition = redo.composition
    if frame is not None:
        composition = replace(composition, kept=frame.restrict(cascade, composition).kept)
    before = cascade.precision
    try:
        cascade.to(cascade.device, before if redo.precision is None else PRECISIONS[redo.precision])
        return cascade.sample(composition, redo.seed, redo.options, progress=progress)
    finally:
        cascade.to(cascade.device, before)


def with_edit(
    made: Mapping[str, Any], original: File, frame: Frame, soften: int, sides: Sequence[float] | None = None
) -> dict[str, Any]:
    """Adds the data of an edit to a recipe.

    Args:
        made: The recipe.
        original: The picture's file; its hash and its name are kept.
        frame: Where the edit happened.
        soften: Pixels over which it fades in.
        sides: What was added to the canvas first; None for nothing.
    """
    where, sides = pack({"region": frame.region > 0}), None if sides is None else list(sides)
    file = PictureFile.of(original)
    names = {"original": file.sha256, "name": printable(file.path.name)}
    return {**made, "edit": {**names, "region": where, "soften": soften, "sides": sides}}


def edited(found: Mapping[str, Any]) -> str:
    """The name of the picture that was edited; a phrase if the recipe is too old to say it."""
    edit = found.get("edit")
    name = edit.get("name") if isinstance(edit, Mapping) else None
    return "another picture" if name is None else printable(str(name))


def frame_of(found: Mapping[str, Any], original: File, limited: bool = True) -> tuple[Frame, int]:
    """Reads where a recipe's edit happened, and over how many pixels it fades in.

    Args:
        found: The recipe.
        original: The picture that was edited.
        limited: Refuse what asks for more than `LIMITS`.

    Raises:
        ValueError: The recipe is another picture's, no edit's, incomplete, of a newer format, or asks for too much.
    """
    _check_format(found)
    check_edit(found)
    edit = found["edit"]
    soften, sides = edit["soften"], edit["sides"]
    if limited:
        _limit("pixels over which the edit fades in", soften, LIMITS.soften)
    region = _Tensors({key: value.float() for key, value in unpack(edit["region"]).items()}).image("region", 1)
    file = PictureFile.of(original)
    if edit["original"] != file.sha256:
        raise ValueError(f"{original} is not the picture that was edited: its content has another hash")
    picture = Original.open(file)
    if sides is not None:
        if (pixels := _grown(picture, sides)) > MAX_PIXELS:
            raise ValueError(f"the recipe asks for a canvas of {pixels:.6g} pixels, more than {MAX_PIXELS}")
        picture, _ = extend(picture, tuple(sides))
    return Frame.around(picture, region), soften


def _grown(picture: Original, sides: Sequence[float]) -> float:
    """Pixels of a picture whose canvas grows by sides as `extend` takes them."""
    h, w = picture.image.shape[1:]
    scale = (w, h) if max(sides) <= 1 else (1, 1)
    return float((w + scale[0] * (sides[0] + sides[2])) * (h + scale[1] * (sides[1] + sides[3])))
