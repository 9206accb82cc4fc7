"""The best of several: results are taken apart again, and the one that follows best is kept.

DALL-E reranks by CLIP (Ramesh et al. 2021, section 2.6); this reranks by all that was asked.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from composer.cascade.cascade import Cascade
from composer.cascade.parts import Parts
from composer.decomposition import Batch
from composer.diffusion.samplers import Progress
from composer.evaluation.adherence import compare, quantise
from composer.tasks.composition import Composition, merged

STRANGERS = 32
ROWS = 16
"""Pictures that are drawn at a time."""


@dataclass(frozen=True)
class Measured:
    """How near pictures come to what was asked of them in one condition.

    Attributes:
        distance: In its reader's unit; 0 is just what was asked.
        closed: How much of the way from strangers' (0) to what was asked (1) each picture goes.
    """

    distance: Float[Tensor, " b"]
    closed: Float[Tensor, " b"]


def closed(cascade: Cascade, wanted: Parts, images: Float[Tensor, "b 3 h w"]) -> dict[str, Float[Tensor, " b"]]:
    """How much of the way to what was asked images go, by condition; see `measure`.

    Args:
        cascade: Whose readers take the images apart.
        wanted: What was asked, as they read it; of one row or b rows.
        images: In [-1, 1].
    """
    got = cascade.read({"image": images.to(cascade.device)}, wanted)
    return {name: one.closed for name, one in measure(cascade, wanted, got).items()}


def measure(cascade: Cascade, wanted: Parts, got: Parts) -> dict[str, Measured]:
    """How near pictures come to what was asked of them, by condition, on the CPU.

    How much of the way is closed is 1 - d(asked, got) / d(asked, stranger), the latter a mean over Scenes of the split
    ``novel`` that the package renders: the same for every result, so that results compare.

    Args:
        cascade: Whose readers compare.
        wanted: What was asked, as they read it; of one row or b rows.
        got: What `Cascade.read` gave for b images.
    """
    far, found = compare(cascade, wanted, got), {}
    strange = _strangers_read(cascade, far) if far else Parts()
    for name, distance in far.items():
        reader = dict(cascade.readers.named())[name]
        chance = [reader.distance(row.expand_as(strange[name]), strange[name]).mean() for row in wanted[name]]
        shares = 1 - distance.cpu() / torch.stack(chance).cpu().clamp(min=1e-6)
        found[name] = Measured(distance.cpu(), shares)
    return found


_READ: WeakKeyDictionary[Cascade, Parts] = WeakKeyDictionary()


def _strangers_read(cascade: Cascade, names: Collection[str]) -> Parts:
    """What a model's readers make of the strangers; they are frozen, so that each reads them once."""
    known = _READ.setdefault(cascade, Parts())
    if missing := [name for name in names if name not in known]:
        strangers = _strangers(cascade.stages[0].size).to(cascade.device)
        known.update(cascade.read({"image": strangers}, missing))
    return Parts({name: known[name].to(cascade.device) for name in names})


@lru_cache(maxsize=2)
def _strangers(size: int) -> Float[Tensor, "n 3 h w"]:
    from composer.data.datasets import SceneImages

    scenes = SceneImages("novel", size, STRANGERS)
    return torch.stack([scenes.row(i, 0)["image"] for i in range(STRANGERS)])


@dataclass(frozen=True)
class Best:
    """What `best_of` found, a row a seed.

    Attributes:
        images: The pictures.
        seeds: Theirs, among the candidates'.
        compositions: What each was drawn from, settled.
        scores: (b n) those of all candidates; empty where there was no choice.
        closed: What the choice measured of the images, as `closed` does; None where it measured none of them, or as
            they were before further stages drew on them.
    """

    images: Float[Tensor, "b 3 h w"]
    seeds: list[int]
    compositions: list[Composition]
    scores: Float[Tensor, "b n"]
    closed: Mapping[str, Float[Tensor, " b"]] | None = None


def best_of(
    cascade: Cascade,
    composition: Composition,
    seeds: Sequence[int],
    n: int = 1,
    weights: Mapping[str, float] | None = None,
    progress: Progress | None = None,
    **changes: Any,
) -> Best:
    """Draws n pictures for each seed and keeps the one that adheres best.

    Candidates are drawn by the first stage alone; the chosen ones are drawn again, by all of them.

    Args:
        cascade: The model.
        composition: What to draw.
        seeds: Seed s has the candidates s n to s n + n - 1; of one candidate it is the seed itself.
        n: Number of candidates.
        weights: Name -> how much a condition counts; 1 where it is not named.
        progress: Wraps the steps.
        **changes: Those of `Cascade.sample`.

    Raises:
        KeyError: `weights` names what was not asked, or cannot be measured.
        ValueError: `n` is below 1, there are weights but no choice, nothing was asked that can be measured, or the
            candidates would be one picture n times, since they begin with one latent.
    """
    if n < 1 or (n == 1 and weights):
        raise ValueError(f"expected the best of at least {2 if weights else 1}, found {n}")
    if n == 1:
        ready = composition.settled(seeds)
        images = ready.draw(cascade, seeds, progress=progress, **changes)
        return Best(images.cpu(), list(seeds), [ready.row(i) for i in range(len(seeds))], torch.empty(len(seeds), 0))
    if composition.seedless(cascade, changes):
        raise ValueError("all candidates would be the same picture, for they begin with one latent: no best of several")
    shares = _shares(cascade, composition.wanted, weights or {})
    told = merged(composition.sampling, changes)
    how = {**changes, **_first_alone(cascade, told)}
    candidates = [seed * n + k for seed in seeds for k in range(n)]
    drawn = [
        composition.draw(cascade, candidates[start + i : start + min(i + ROWS, n)], progress=progress, **how).cpu()
        for start in range(0, len(candidates), n)
        for i in range(0, n, ROWS)
    ]
    found = closed(cascade, composition.wanted, quantise(torch.cat(drawn)))
    scores = torch.stack([found[name] * share for name, share in shares.items()]).sum(0).view(len(seeds), n)
    kept = [i * n + int(row.argmax()) for i, row in enumerate(scores)]
    best = [candidates[i] for i in kept]
    chosen = best_of(cascade, composition, best, 1, None, progress, **changes)
    whole = how["until"] == told.get("until", cascade.stages[-1].name)
    measured = {name: value[kept] for name, value in found.items()} if whole else None
    return Best(chosen.images, best, chosen.compositions, scores, measured)


def _first_alone(cascade: Cascade, told: Mapping[str, Any]) -> dict[str, Any]:
    """How the first stage draws its part of what is told: the size is that of the last stage that runs."""
    named = {stage.name: stage for stage in cascade.stages}
    first, size = cascade.stages[0], told.get("size")
    last = named.get(told.get("until", ""), cascade.stages[-1])
    part = {} if size is None else {"size": tuple(n * first.size // last.size for n in size)}
    return {"until": first.name, **part}


def _shares(cascade: Cascade, wanted: Parts, weights: Mapping[str, float]) -> dict[str, float]:
    """What each condition that can be measured counts; the shares sum to 1.

    Raises:
        KeyError: `weights` names what was not asked, or cannot be measured.
        ValueError: Nothing was asked that can be measured, or a weight is below 0, or none above.
    """
    readable: Batch = {"image": torch.zeros(1, 3, 1, 1)}
    measured = [name for name, reader in cascade.readers.named() if name in wanted and reader.can_read(readable)]
    if unknown := sorted(weights.keys() - set(measured)):
        raise KeyError(
            f"no {', '.join(unknown)} among what was asked and can be measured: {', '.join(measured) or 'nothing'}"
        )
    shares = {name: weights.get(name, 1.0) for name in measured}
    total = sum(shares.values())
    if total <= 0 or min(shares.values()) < 0:
        raise ValueError("nothing to choose by: ask for a condition that can be measured, with a weight above 0")
    return {name: share / total for name, share in shares.items()}
