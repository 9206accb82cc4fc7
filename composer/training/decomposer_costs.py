"""What the decomposers of a training cost: their parameters, the bytes of their weights, their FLOPs per image."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from composer.decomposition import Batch, Decomposer, Decomposition
from composer.storage.building import Spec, build
from composer.storage.pretrained import NotFetched, offline
from composer.training.dry_run import count_flops

LARGEST_RUN = 4_000_000_000
"""Bytes of weights beyond which a decomposer is not run: they take longer to load than its FLOPs are worth."""


@dataclass(frozen=True)
class DecomposerCost:
    """What one decomposer costs.

    Attributes:
        parameters: Of its networks, trained by others; None if they were not counted.
        weights: Bytes that its networks take on the device, which it may share with other decomposers; None likewise.
        flops: Of matrix products and convolutions, for one image and one caption of full length; None likewise.
        remark: Why something was not counted; empty if all was.
    """

    parameters: int | None = None
    weights: int | None = None
    flops: int | None = None
    remark: str = ""


def measure_decomposers(
    specs: Mapping[str, Spec], side: int, plugins: Collection[str] = ()
) -> tuple[dict[str, DecomposerCost], int]:
    """Builds each decomposer whose weights are on this machine and runs it once, on the CPU; downloads nothing.

    Args:
        specs: Name -> how the decomposer is built.
        side: Side of the images that it reads, in pixels.
        plugins: Modules that the user trusts.

    Returns:
        What each costs; and the bytes of the weights of all that were counted, shared ones once.
    """
    costs: dict[str, DecomposerCost] = {}
    tensors: dict[int, Tensor] = {}  # kept until all are measured, so that no two have the same id
    for name, spec in specs.items():
        try:
            with offline():
                decomposer = build(spec, Decomposer, plugins)
                own = _tensors(decomposer)
                costs[name] = _measure(name, decomposer, own, side)
            tensors |= own
        except NotFetched:
            costs[name] = DecomposerCost(remark="not counted: weights are fetched on first use")
        except Exception as error:  # whatever keeps it from running is what the report is to say
            costs[name] = DecomposerCost(remark=f"not counted: {error}")
    return costs, sum(tensor.nbytes for tensor in tensors.values())


def _tensors(decomposer: Decomposer) -> dict[int, Tensor]:
    return {id(t): t for net in decomposer.networks() for t in (*net.parameters(), *net.buffers())}


def _measure(name: str, decomposer: Decomposer, tensors: Mapping[int, Tensor], side: int) -> DecomposerCost:
    parameters = sum(t.numel() for t in tensors.values() if isinstance(t, torch.nn.Parameter))
    weights = sum(t.nbytes for t in tensors.values())
    if weights > LARGEST_RUN:
        return DecomposerCost(parameters, weights, remark="FLOPs not counted: too large to be run for that")
    batch: Batch = {"image": torch.zeros(1, 3, side, side), "seed": torch.zeros(1, dtype=torch.long)}
    with count_flops() as counter:
        Decomposition({name: decomposer})(batch | {"caption": [" ".join(["picture"] * 512)]})
    return DecomposerCost(parameters, weights, counter.get_total_flops())
