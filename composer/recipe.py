"""What a picture carries so that it can be made again: seed, settings, versions, and the representations themselves."""

import base64
import hashlib
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from .cascade import Cascade
from .composition import Composition, merged
from .editing import Frame, Original, extend
from .files import name_of, printable
from .parts import Latent, Parts
from .samplers import Progress
from .strength import Strength

FORMAT = 2
"""Of the recipes that are written. Those before had no number; each number can do all that the ones below it can."""

PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What recipes call the precisions inside the networks."""

MAX_BYTES = 64_000_000
"""Size of the representations in a recipe, once unpacked; more is refused."""


def recipe(cascade: Cascade, composition: Composition, seed: int, how: Mapping[str, Any]) -> dict[str, Any]:
    """Writes down how one picture came about, in plain JSON values; hashes, names and texts, never paths.

    Args:
        cascade: The model that drew it.
        composition: What it was drawn from, settled and of one row.
        seed: Its seed.
        how: What `Cascade.sample` was told about stages, size and sampling.
    """
    told = merged(composition.sampling, how)
    size = told.pop("size", None)
    latent, start, away = composition.latent, composition.start, composition.away
    tensors: dict[str, Tensor] = {}  # each once, however often it is used

    def held(reps: Mapping[str, Tensor]) -> dict[str, str]:
        return {name: hold(value) for name, value in reps.items()}

    def hold(value: Tensor) -> str:
        own = value.detach().cpu().contiguous()
        key = hashlib.sha256(save({"": own})).hexdigest()[:16]
        tensors[key] = own
        return key

    def strength(given: Strength) -> dict[str, Any]:
        region = None if given.region is None else hold(given.region)
        return {"weight": given.weight, "interval": list(given.interval), "region": region}

    return {
        "format": FORMAT,
        "model": {"name": cascade.spec.get("name", ""), "sha256": cascade.sha256},
        "autoguidance": _weaker(cascade),
        "seed": seed,
        "stages": {name: asdict(setting) for name, setting in cascade.settings(**told).items()},
        "size": None if size is None else list(size),
        "sources": dict(composition.sources),
        "representations": held(composition.parts),
        "wanted": held(composition.wanted),
        "strengths": {name: strength(given) for name, given in composition.strengths.items()},
        "away": None if away is None else held(away),
        "also": [[held(parts), weight] for parts, weight in composition.also],
        "latent": None if latent is None else hold(latent.noise),
        "start": None if start is None else [hold(start[0]), start[1]],
        "tensors": pack(tensors),
        "precision": {dtype: name for name, dtype in PRECISIONS.items()}[cascade.precision],
        "device": cascade.device.type,
        "versions": _versions(),
    }


def _weaker(cascade: Cascade) -> dict[str, str] | None:
    weaker = cascade.weaker
    return None if weaker is None else {"name": weaker.spec.get("name", ""), "sha256": weaker.sha256}


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("composer-diffusion", "torch")}


def changes_since(cascade: Cascade, found: Mapping[str, Any]) -> list[str]:
    """What is not as it was when a recipe's picture was drawn, so that its values may differ; a phrase each."""
    versions = found.get("versions")
    then = {**(versions if isinstance(versions, Mapping) else {}), "device": found.get("device")}
    now = {**_versions(), "device": cascade.device.type}
    return [
        f"{name} {printable(str(then[name]))} then, {here} now"
        for name, here in now.items()
        if then.get(name) not in (None, here)
    ]


def pack(reps: Mapping[str, Tensor]) -> str:
    """Packs tensors to text, exactly."""
    return base64.b64encode(zlib.compress(save({k: v.cpu() for k, v in reps.items()}), 9)).decode()


def unpack(text: str) -> Parts:
    """Takes `pack` back. The text is a stranger's: it can hold tensors and nothing else.

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
        raise ValueError(f"the recipe's representations cannot be unpacked: {error}") from error


@dataclass(frozen=True)
class Redo:
    """A recipe, read: what to draw, and how.

    Attributes:
        composition: What it was drawn from.
        seed: Its seed.
        how: What `Cascade.sample` is told about stages and size.
        precision: Inside the networks, one of `PRECISIONS`; None where the recipe is too old to say.
    """

    composition: Composition
    seed: int
    how: dict[str, Any]
    precision: str | None


def read(cascade: Cascade, found: Mapping[str, Any]) -> Redo:
    """Reads a recipe for the model that it names; those without a format number, too.

    Raises:
        ValueError: The recipe is another model's, not whole, or of a newer format.
    """
    _check_format(found)
    try:
        seed, stages = int(found["seed"]), dict(found["stages"])
        how = {"stages": stages, "until": list(stages)[-1]}
        how |= {"size": None if found["size"] is None else (int(found["size"][0]), int(found["size"][1]))}
        tensors = {key: value.to(cascade.device) for key, value in unpack(found["tensors"]).items()}
        strengths = {name: _strength_of(given, tensors) for name, given in found["strengths"].items()}
        start = None if found["start"] is None else (tensors[found["start"][0]], float(found["start"][1]))
        composition = Composition(
            parts=_parts(found["representations"], tensors),
            wanted=_parts(found["wanted"], tensors),
            sources={str(name): printable(str(source)) for name, source in found["sources"].items()},
            strengths=strengths,
            away=None if found["away"] is None else _parts(found["away"], tensors),
            also=tuple((_parts(keys, tensors), float(weight)) for keys, weight in found["also"]),
            latent=None if found["latent"] is None else Latent(tensors[found["latent"]], cascade.identity),
            start=start,
        )
        precision = None if found.get("precision") is None else str(found["precision"])
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"the recipe is not whole, or of another version: {error}") from error
    check_model(found, cascade.sha256)
    if precision is not None and precision not in PRECISIONS:
        raise ValueError(f"expected a precision of {', '.join(PRECISIONS)} in the recipe, found {printable(precision)}")
    return Redo(composition, seed, how, precision)


def check_model(found: Mapping[str, Any], sha256: str) -> None:
    """Makes sure that a recipe is that of a model, of which no more than its hash need be known.

    Args:
        found: The recipe.
        sha256: The model's.

    Raises:
        ValueError: It is another model's, or names none.
    """
    model = found.get("model")
    named = model.get("sha256") if isinstance(model, Mapping) else None
    if not (isinstance(model, Mapping) and isinstance(named, str)):
        raise ValueError("the recipe is not whole, or of another version: it names no model")
    if named != sha256:
        raise ValueError(
            f"the picture was drawn by the model {printable(str(model.get('name'))[:80])!r} with SHA-256 "
            f"{printable(named[:12])}..., this one is {sha256[:12]}...; give the former with --model"
        )


def _check_format(found: Mapping[str, Any]) -> None:
    number = found.get("format", 0)
    if not isinstance(number, int) or number > FORMAT:
        raise ValueError(
            f"expected a recipe of format {FORMAT} or lower, found {printable(str(number))}: a newer version of "
            "composer-diffusion wrote it; update yours"
        )


def _parts(keys: Mapping[str, str], tensors: Mapping[str, Tensor]) -> Parts:
    return Parts({str(name): tensors[key] for name, key in keys.items()})


def _strength_of(given: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Strength:
    low, high = given["interval"]
    region = None if given["region"] is None else tensors[given["region"]]
    return Strength(weight=float(given["weight"]), interval=(float(low), float(high)), region=region)


def again(
    cascade: Cascade, found: Mapping[str, Any], progress: Progress | None = None, frame: Frame | None = None
) -> Tensor:
    """Draws the picture of a recipe again, in the precision that the recipe names.

    Args:
        cascade: The model that the recipe names.
        found: The recipe.
        progress: Wraps the steps.
        frame: Where an edit happened, see `frame_of`.

    Returns:
        (1 3 h w) in [-1, 1], of an edit what `Frame.paste` takes.

    Raises:
        ValueError: The recipe is another model's, was drawn away from another model, or is not whole.
    """
    redo = read(cascade, found)
    if (then := found.get("autoguidance")) != (now := _weaker(cascade)):
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
        composition = composition.but(locked=frame.restrict(cascade, composition).locked)
    before = cascade.precision
    try:
        cascade.to(cascade.device, before if redo.precision is None else PRECISIONS[redo.precision])
        return composition.draw(cascade, [redo.seed], progress=progress, **redo.how)
    finally:
        cascade.to(cascade.device, before)


def with_edit(
    made: Mapping[str, Any], original: Path, frame: Frame, soften: int, sides: Sequence[float] | None = None
) -> dict[str, Any]:
    """Adds to a recipe what an edit consists of.

    Args:
        made: The recipe.
        original: The picture's file; its hash and its name are kept.
        frame: Where the edit happened.
        soften: Pixels over which it fades in.
        sides: What was added to the canvas first; None for nothing.
    """
    where, sides = pack({"region": frame.region > 0}), None if sides is None else list(sides)
    names = {"original": name_of(original.read_bytes()), "name": printable(original.name)}
    return {**made, "edit": {**names, "region": where, "soften": soften, "sides": sides}}


def edited(found: Mapping[str, Any]) -> str:
    """The name of the picture that was edited; a phrase where the recipe is too old to know it."""
    edit = found.get("edit")
    name = edit.get("name") if isinstance(edit, Mapping) else None
    return "another picture" if name is None else printable(str(name))


def frame_of(found: Mapping[str, Any], original: Path) -> tuple[Frame, int]:
    """Reads where a recipe's edit happened, and over how many pixels it fades in.

    Args:
        found: The recipe.
        original: The picture that was edited.

    Raises:
        ValueError: The recipe is another picture's, no edit's, not whole, or of a newer format.
    """
    _check_format(found)
    try:
        sha256, region = found["edit"]["original"], unpack(found["edit"]["region"])["region"].float()
        soften, sides = int(found["edit"]["soften"]), found["edit"]["sides"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"the recipe is not that of an edit: {error}") from error
    if sha256 != name_of(original.read_bytes()):
        raise ValueError(f"{original} is not the picture that was edited: its content has another hash")
    picture = Original.open(original)
    if sides is not None:
        picture, _ = extend(picture, tuple(sides))
    return Frame.around(picture, region), soften
