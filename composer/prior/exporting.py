"""Makes a prior's folder from its training's checkpoint."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from composer.cascade.assembling import carry_weights
from composer.prior.interface import SEMANTICS, TEXT, Prior
from composer.storage.building import build
from composer.storage.files import replacing_all
from composer.storage.folder import PRIOR_FILE
from composer.storage.formats import check_prior
from composer.storage.loading import load_strictly, require_fit
from composer.storage.pretrained import fetching, noting_files


def export_prior(
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    out: Path,
    name: str,
    card: str,
    dtype: torch.dtype,
    sampling: Mapping[str, Any],
    plugins: Sequence[str],
    within: Collection[Path] | None = None,
    network: bool = False,
) -> dict[str, Any]:
    """Writes a prior's folder from its training's checkpoint.

    Args:
        config: The ``model`` and ``data`` sections that travel with a checkpoint.
        weights: The averaged weights, under ``prior.``.
        out: The prior's folder.
        name: The prior's name.
        card: The card, Markdown.
        dtype: Precision of the weights on disk.
        sampling: ``guidance`` and ``steps``, if they should differ from the training's configuration.
        plugins: Modules that the user trusts.
        within: See `carry_weights`.
        network: See `Prior.load`.

    Returns:
        The prior's configuration.

    Raises:
        ValueError: This prior lacks an option of `sampling`, or weights and configuration do not fit.
    """
    if foreign := sorted(sampling.keys() - {"guidance", "steps"}):
        raise ValueError(f"a prior has no {', '.join(foreign)}; it has guidance and, if by diffusion, steps")
    decomposers = config["data"]["decomposers"]
    if missing := {TEXT, SEMANTICS} - decomposers.keys():
        raise ValueError(f"the checkpoint is not of a prior: its configuration has no decomposer {', '.join(missing)}")
    trained = config["model"]["init_args"]["prior"]
    trained = {"file": PRIOR_FILE, **trained, "init_args": {**(trained.get("init_args") or {}), **sampling}}
    made = {"name": name, "priors": [trained], "decomposers": {key: decomposers[key] for key in (TEXT, SEMANTICS)}}
    if config["data"].get("source") is not None:
        made["source"] = config["data"]["source"]
    check_prior(made)
    own = {key.removeprefix("prior."): value for key, value in weights.items()}
    with fetching(network), noting_files() as read:
        require_fit(lambda: build(trained, Prior, plugins), own, str(out))
        prior = Prior.from_spec(made, plugins)
    load_strictly(prior, own, str(out))
    prior.check_ready()
    with replacing_all(out) as new:
        prior.spec = carry_weights(made, new, plugins, read, within)
        prior.save(new, card, dtype)
    return prior.spec
