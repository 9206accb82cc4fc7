"""The best of several: results are decomposed again, and the one with the highest adherence is kept.

DALL-E reranks by CLIP (Ramesh et al. 2021, section 2.6); this reranks by all that was asked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from composer.cascade.asking import to_seeds
from composer.cascade.cascade import Cascade
from composer.cascade.images import Images
from composer.cascade.options import SampleOptions
from composer.cascade.parts import Parts
from composer.decomposition import Batch
from composer.diffusion.samplers import Progress
from composer.evaluation.adherence import quantise
from composer.evaluation.reading import Reading
from composer.tasks.composition import Composition

ROWS = 16
"""Pictures that are drawn at a time."""


@dataclass(frozen=True)
class Best:
    """The result of `best_of`, one row per seed.

    Attributes:
        images: The pictures.
        seeds: The seeds of the chosen candidates.
        compositions: What each was drawn from, resolved.
        scores: (b n) those of all candidates; empty where there was no choice.
        closed: What the choice measured of the images, as `Reading.closed` does; None where it measured none of them,
            or as they were before further stages drew on them.
    """

    images: Float[Images, "b 3 h w"]
    seeds: list[int]
    compositions: list[Composition]
    scores: Float[Tensor, "b n"]
    closed: Mapping[str, Float[Tensor, " b"]] | None = None


def best_of(
    cascade: Cascade,
    what: Composition | Mapping[str, Tensor | str] | None = None,
    seeds: Sequence[int] | int = 0,
    n: int = 8,
    weights: Mapping[str, float] | None = None,
    options: SampleOptions | None = None,
    progress: Progress | None = None,
    **conditions: Tensor | str,
) -> Best:
    """Draws n pictures per seed and keeps the one with the highest adherence: ``best_of(model, parts, n=8).images``.

    Candidates are drawn by the first stage alone; the chosen ones are drawn again, by all of them.

    Args:
        cascade: The model.
        what: What to draw, as in `Cascade.sample`.
        seeds: Seed s draws the candidates with seeds s n to s n + n - 1; a single candidate has the seed itself.
        n: Number of candidates.
        weights: Name -> how much a condition counts; 1 where it is not named.
        options: How to sample, as in `Cascade.sample`.
        progress: Wraps the steps.
        **conditions: Further representations, or words, by the name of their condition.

    Raises:
        KeyError: `weights` names what was not asked, or cannot be measured.
        ValueError: `n` is below 1, there are weights but no choice, nothing was asked that can be measured, or the
            candidates would be one picture n times, since they begin with one noise.
    """
    if not isinstance(cascade, Cascade):
        raise ValueError("expected a model, then what to draw: best_of(model, parts, n=8)")
    seeds, composition = to_seeds(seeds), cascade.ask(what, **conditions)
    if n < 1 or (n == 1 and weights):
        raise ValueError(f"expected the best of at least {2 if weights else 1}, found {n}")
    if n == 1:
        ready = composition.resolve(seeds)
        images = cascade.sample(ready, seeds, options, progress=progress)
        return Best(images.cpu(), list(seeds), [ready.row(i) for i in range(len(seeds))], torch.empty(len(seeds), 0))
    if cascade.ignores_seeds(composition, options):
        raise ValueError("all candidates would be the same picture, since they begin with the same noise")
    shares = _shares(cascade, composition.wanted, weights or {})
    whole = composition.options | options
    first = whole | _first_alone(cascade, whole)
    candidates = [seed * n + k for seed in seeds for k in range(n)]
    drawn: list[Tensor] = [
        cascade.sample(composition, candidates[start + i : start + min(i + ROWS, n)], first, progress=progress).cpu()
        for start in range(0, len(candidates), n)
        for i in range(0, n, ROWS)
    ]
    found = Reading(cascade, quantise(torch.cat(drawn))).closed(composition.wanted)
    scores = torch.stack([found[name] * share for name, share in shares.items()]).sum(0).view(len(seeds), n)
    kept = [i * n + int(row.argmax()) for i, row in enumerate(scores)]
    best = [candidates[i] for i in kept]
    chosen = best_of(cascade, composition, best, 1, None, options, progress)
    alone = first.until == (whole.until or cascade.stages[-1].name)
    measured = {name: value[kept] for name, value in found.items()} if alone else None
    return Best(chosen.images, best, chosen.compositions, scores, measured)


def _first_alone(cascade: Cascade, whole: SampleOptions) -> SampleOptions:
    """How the first stage draws its part of the whole, whose size is that of the last stage that runs."""
    first, size = cascade.stages[0], whole.size
    last = next((stage for stage in cascade.stages if stage.name == whole.until), cascade.stages[-1])
    part = None if size is None else (size[0] * first.size // last.size, size[1] * first.size // last.size)
    return SampleOptions(until=first.name, size=part)


def _shares(cascade: Cascade, wanted: Parts, weights: Mapping[str, float]) -> dict[str, float]:
    """The weight of each condition that can be measured; the weights sum to 1.

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
