"""What a picture carries so that it can be made again: seed, settings, versions, and the representations themselves."""

import base64
import hashlib
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from .cascade import Cascade
from .composition import Composition, merged
from .editing import Frame, Original, extend
from .files import name_of
from .parts import Latent, Parts
from .samplers import Progress
from .strength import Strength

MAX_BYTES = 64_000_000
"""Size of the representations in a recipe, once unpacked; more is refused."""


def recipe(cascade: Cascade, composition: Composition, seed: int, how: Mapping[str, Any]) -> dict[str, Any]:
    """Writes down how one picture came about, in plain JSON values; hashes and texts, never paths.

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
        "model": {"name": cascade.spec.get("name", ""), "sha256": cascade.sha256},
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
        "versions": {name: version(name) for name in ("composer-diffusion", "torch")},
    }


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
    """

    composition: Composition
    seed: int
    how: dict[str, Any]


def read(cascade: Cascade, found: Mapping[str, Any]) -> Redo:
    """Reads a recipe for the model that it names.

    Raises:
        ValueError: The recipe is another model's, or not whole.
    """
    try:
        sha256, seed, stages = found["model"]["sha256"], int(found["seed"]), dict(found["stages"])
        how = {"stages": stages, "until": list(stages)[-1]}
        how |= {"size": None if found["size"] is None else (int(found["size"][0]), int(found["size"][1]))}
        tensors = {key: value.to(cascade.device) for key, value in unpack(found["tensors"]).items()}
        strengths = {name: _strength_of(given, tensors) for name, given in found["strengths"].items()}
        start = None if found["start"] is None else (tensors[found["start"][0]], float(found["start"][1]))
        composition = Composition(
            parts=_parts(found["representations"], tensors),
            wanted=_parts(found["wanted"], tensors),
            sources={str(name): str(source) for name, source in found["sources"].items()},
            strengths=strengths,
            away=None if found["away"] is None else _parts(found["away"], tensors),
            also=tuple((_parts(keys, tensors), float(weight)) for keys, weight in found["also"]),
            latent=None if found["latent"] is None else Latent(tensors[found["latent"]], cascade.identity),
            start=start,
        )
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"the recipe is not whole, or of another version: {error}") from error
    if sha256 != cascade.sha256:
        raise ValueError(
            f"the picture was drawn by the model {found['model'].get('name')!r} with SHA-256 {sha256[:12]}..., "
            f"this one is {cascade.sha256[:12]}...; give the former with --model"
        )
    return Redo(composition, seed, how)


def _parts(keys: Mapping[str, str], tensors: Mapping[str, Tensor]) -> Parts:
    return Parts({str(name): tensors[key] for name, key in keys.items()})


def _strength_of(given: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Strength:
    low, high = given["interval"]
    region = None if given["region"] is None else tensors[given["region"]]
    return Strength(weight=float(given["weight"]), interval=(float(low), float(high)), region=region)


def again(cascade: Cascade, found: Mapping[str, Any], progress: Progress | None = None) -> Tensor:
    """Draws the picture of a recipe that is no edit's again.

    Args:
        cascade: The model that the recipe names.
        found: The recipe.
        progress: Wraps the steps.

    Returns:
        (1 3 h w) in [-1, 1].

    Raises:
        ValueError: The recipe is another model's, or not whole.
    """
    redo = read(cascade, found)
    return redo.composition.draw(cascade, [redo.seed], progress=progress, **redo.how)


def with_edit(
    made: Mapping[str, Any], original: Path, frame: Frame, soften: int, sides: Sequence[float] | None = None
) -> dict[str, Any]:
    """Adds to a recipe what an edit consists of.

    Args:
        made: The recipe.
        original: The picture's file; its hash is kept.
        frame: Where the edit happened.
        soften: Pixels over which it fades in.
        sides: What was added to the canvas first; None for nothing.
    """
    where, sides = pack({"region": frame.region > 0}), None if sides is None else list(sides)
    edit = {"original": name_of(original.read_bytes()), "region": where, "soften": soften, "sides": sides}
    return {**made, "edit": edit}


def frame_of(found: Mapping[str, Any], original: Path) -> tuple[Frame, int]:
    """Reads where a recipe's edit happened, and over how many pixels it fades in.

    Args:
        found: The recipe.
        original: The picture that was edited.

    Raises:
        ValueError: The recipe is another picture's, no edit's, or not whole.
    """
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
