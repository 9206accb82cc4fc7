"""What a picture carries so that it can be made again: seed, settings, versions, and the representations themselves."""

import base64
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
    reps, wanted = composition.parts, composition.wanted
    other = {n: v for n, v in wanted.items() if n not in reps or not torch.equal(v.cpu(), reps[n].cpu())}
    latent, start, away = composition.latent, composition.start, composition.away
    return {
        "model": {"name": cascade.spec.get("name", ""), "sha256": cascade.sha256},
        "seed": seed,
        "stages": {name: asdict(setting) for name, setting in cascade.settings(**told).items()},
        "size": None if size is None else list(size),
        "sources": dict(composition.sources),
        "representations": pack(reps),
        "wanted": pack(other),
        "read": sorted(wanted),
        "strengths": {name: _strength(strength) for name, strength in composition.strengths.items()},
        "away": None if away is None else pack(away),
        "also": [[pack(parts), weight] for parts, weight in composition.also],
        "latent": None if latent is None else pack({"noise": latent.noise}),
        "start": None if start is None else [pack({"image": start[0]}), start[1]],
        "versions": {name: version(name) for name in ("composer-diffusion", "torch")},
    }


def _strength(strength: Strength) -> dict[str, Any]:
    region = None if strength.region is None else pack({"region": strength.region})
    return {"weight": strength.weight, "interval": list(strength.interval), "region": region}


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
        parts = unpack(found["representations"])
        wanted = {name: parts[name] for name in found["read"] if name in parts} | unpack(found["wanted"])
        strengths = {name: _strength_of(given) for name, given in found["strengths"].items()}
        away = None if found["away"] is None else unpack(found["away"])
        also = tuple((unpack(packed), float(weight)) for packed, weight in found["also"])
        noise = None if found["latent"] is None else unpack(found["latent"])["noise"]
        start = None if found["start"] is None else (unpack(found["start"][0])["image"], float(found["start"][1]))
        sources = {str(name): str(source) for name, source in found["sources"].items()}
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"the recipe is not whole: {error}") from error
    if sha256 != cascade.sha256:
        raise ValueError(
            f"the picture was drawn by the model {found['model'].get('name')!r} with SHA-256 {sha256[:12]}..., "
            f"this one is {cascade.sha256[:12]}...; give the former with --model"
        )
    composition = Composition(
        parts=parts,
        wanted=Parts(wanted),
        sources=sources,
        strengths=strengths,
        away=away,
        also=also,
        latent=None if noise is None else Latent(noise, cascade.identity),
        start=start,
    )
    return Redo(composition, seed, how)


def _strength_of(given: Mapping[str, Any]) -> Strength:
    low, high = given["interval"]
    region = None if given["region"] is None else unpack(given["region"])["region"]
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
