"""Makes an autoencoder's folder from its training's checkpoint."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from composer.networks.stored import Stored
from composer.storage.building import build
from composer.storage.formats import check_run
from composer.storage.loading import load_strictly, require_fit

LATENT_MOMENTS = "latent_moments"
"""Name, in a checkpoint, of the mean and the mean square of a training's latents, of which `scale` is made."""


def export_autoencoder(
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    out: Path,
    name: str,
    card: str,
    dtype: torch.dtype,
    plugins: Sequence[str] = (),
) -> Stored:
    """Writes an autoencoder's folder from its training's checkpoint.

    Args:
        config: The ``model`` and ``data`` sections that travel with a checkpoint.
        weights: The averaged weights, under ``autoencoder.``, and `LATENT_MOMENTS` where latents have a scale.
        out: The autoencoder's folder.
        name: Its name.
        card: The card, Markdown.
        dtype: Precision of the weights on disk.
        plugins: Modules that the user trusts.

    Returns:
        The autoencoder.

    Raises:
        ValueError: Weights and configuration do not fit.
    """
    check_run(config)
    spec = config["model"]["init_args"]["autoencoder"]
    if LATENT_MOMENTS in weights:
        mean, square = weights[LATENT_MOMENTS].tolist()
        deviation = max(square - mean**2, 1e-12) ** 0.5
        spec = {**spec, "init_args": {**(spec.get("init_args") or {}), "scale": 1 / deviation}}
    own = {key.removeprefix("autoencoder."): x for key, x in weights.items() if key.startswith("autoencoder.")}
    require_fit(lambda: build(spec, Stored, plugins), own, str(out))
    made = build(spec, Stored, plugins)
    load_strictly(made, own, str(out))
    made.save(out, card, name, dtype)
    return made
