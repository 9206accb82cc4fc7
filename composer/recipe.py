"""What a picture carries so that it can be made again: seed, settings, versions, and the representations themselves."""

import base64
import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from .cascade import Cascade
from .parts import Parts

MAX_BYTES = 64_000_000
"""Size of the representations in a recipe, once unpacked; more is refused."""


def recipe(
    cascade: Cascade,
    reps: Mapping[str, Tensor],
    row: int,
    seed: int,
    how: Mapping[str, Any],
    sources: Mapping[str, str],
) -> dict[str, Any]:
    """Writes down how one picture came about, in plain JSON values; hashes and texts, never paths.

    Args:
        cascade: The model that drew it.
        reps: What it was drawn from.
        row: Which row of `reps` (representations of one row serve all).
        seed: Its seed.
        how: What `Cascade.sample` was told about stages, size and sampling.
        sources: Where each representation came from: the SHA-256 of a file, or a person's words.
    """
    own = {name: value.contiguous() for name, value in Parts(reps).row(row).items()}
    size, told = how.get("size"), {key: value for key, value in how.items() if key != "size"}
    return {
        "model": {"name": cascade.spec.get("name", ""), "sha256": cascade.sha256},
        "seed": seed,
        "stages": {name: asdict(setting) for name, setting in cascade.settings(**told).items()},
        "size": None if size is None else list(size),
        "sources": dict(sources),
        "representations": pack(own),
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


def with_edit(made: Mapping[str, Any], original: Path, region: Tensor, options: Mapping[str, Any]) -> dict[str, Any]:
    """Adds to a recipe what an edit consists of.

    Args:
        made: The recipe.
        original: The picture's file; its hash is kept.
        region: (1 1 h w), 1 where the edit may change it.
        options: Further arguments of `composer.editing.edit`.
    """
    where = pack({"region": region > 0})
    return {**made, "edit": {"original": name_of(original.read_bytes()), "region": where, "options": dict(options)}}


def edit_of(
    cascade: Cascade, found: Mapping[str, Any], original: Path
) -> tuple[Parts, Tensor, list[int], dict[str, Any]]:
    """Reads an edit's recipe.

    Args:
        cascade: The model that the recipe names.
        found: The recipe.
        original: The picture that was edited.

    Returns:
        What `composer.editing.edit` takes: representations, region, seeds, and further arguments.

    Raises:
        ValueError: The recipe is another model's, another picture's, no edit's, or not whole.
    """
    reps, seed, how = _whole(cascade, found)
    try:
        sha256, region = found["edit"]["original"], unpack(found["edit"]["region"])["region"].float()
        options = {name: found["edit"]["options"][name] for name in ("keep", "soften")}
    except (KeyError, TypeError) as error:
        raise ValueError(f"the recipe is not that of an edit: {error}") from error
    if sha256 != name_of(original.read_bytes()):
        raise ValueError(f"{original} is not the picture that was edited: its content has another hash")
    return reps, region, [seed], options | how


def again(cascade: Cascade, found: Mapping[str, Any]) -> Tensor:
    """Draws a recipe's picture again.

    Args:
        cascade: The model that the recipe names.
        found: The recipe.

    Returns:
        (1 3 h w) in [-1, 1].

    Raises:
        ValueError: The recipe is another model's, or not whole.
    """
    reps, seed, how = _whole(cascade, found)
    return cascade.sample(reps, seeds=[seed], **how)


def _whole(cascade: Cascade, found: Mapping[str, Any]) -> tuple[Parts, int, dict[str, Any]]:
    try:
        sha256, seed, stages = found["model"]["sha256"], int(found["seed"]), dict(found["stages"])
        how = {"stages": stages, "until": list(stages)[-1]}
        how |= {"size": None if found["size"] is None else (int(found["size"][0]), int(found["size"][1]))}
        reps = unpack(found["representations"])
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"the recipe is not whole: {error}") from error
    if sha256 != cascade.sha256:
        raise ValueError(
            f"the picture was drawn by the model {found['model'].get('name')!r} with SHA-256 {sha256[:12]}..., "
            f"this one is {cascade.sha256[:12]}...; give the former with --model"
        )
    return reps, seed, how


def name_of(data: bytes) -> str:
    """The SHA-256 under which a recipe names a file's content."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
