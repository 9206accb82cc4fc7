"""Alibaba's multi-stage text-to-image model: Composer's base and upsamplers before its conditions."""

from functools import partial
from typing import Any

import torch
from torch import nn

from composer.networks.unet import UNet
from composer.published.engine import Row, Transform, pair
from composer.published.family import Family, Needs, Tensors, condition, configuration, decomposer, denoiser
from composer.published.unet import ALIBABA, plan, unet_rows

LICENCE = "of the weights unknown: ask their authors before you use them; the code is Apache-2.0"


def _configure(tensors: Tensors, size: int, needs: Needs, noise: str, scale: int = 0, head: int = 64) -> dict[str, Any]:
    network = plan(tensors, ALIBABA, head_dim=head)
    hidden, width = tensors["y_embedding.0.weight"].shape
    tokens = tensors["context_embedding.2.weight"].shape[0] // network["token_dim"] if network["token_dim"] else 0
    conditions = {
        "semantics": condition(
            "Vector",
            in_dim=width,
            vector_dim=network["vector_dim"],
            token_dim=network["token_dim"],
            num_tokens=tokens,
            hidden=hidden,
            has_null=True,
        )
    }
    clip = {} if needs.clip is None else {"weights": needs.clip}
    decomposers = {"semantics": decomposer("Semantics", **clip)}
    if scale:
        conditions["low_res"] = condition("LowRes", spatial_dim=network["spatial_dim"])
    return configuration(size, denoiser(network, noise), conditions, decomposers, 1.0 if scale else 4.0, scale)


def _rows(weights: nn.Module, needs: Needs) -> list[Row]:
    network, semantics = weights.get_submodule("denoiser.network"), "conditions.semantics"
    assert isinstance(network, UNet)
    zeros = Transform("zeros, which stand for no image", lambda: torch.zeros_like(weights.get_parameter(nothing)))
    nothing = f"{semantics}.nothing"
    rows = [Row(nothing, (), zeros)]
    rows += [row for i in (0, 2) for row in pair(f"{semantics}.to_vector.{i}", f"y_embedding.{i}")]
    if network.token_dim:
        rows += [row for i in (0, 2) for row in pair(f"{semantics}.to_tokens.{i}", f"context_embedding.{i}")]
    return [*unet_rows(network, ALIBABA), *rows]


def _family(about: str, file: str, released: tuple[int, int], size: int, noise: str, scale: int = 0) -> Family:
    marks = ("y_embedding.0.weight", "encoder.0.weight", "head.2.weight")
    configure = partial(_configure, noise=noise, scale=scale)
    return Family(about, LICENCE, {file: released}, marks, configure, _rows, size)


FAMILIES = {
    "alibaba-decoder": _family(
        "Alibaba: CLIP's image embeddings to 64 px", "decoder", (592, 2_144_325_126), 64, "SquaredCosine"
    ),
    "alibaba-up256": _family("Alibaba: 64 to 256 px", "upsampler256", (480, 798_930_371), 256, "SquaredCosine", 4),
    "alibaba-up1024": _family("Alibaba: 256 to 1024 px", "upsampler1024", (474, 283_240_323), 1024, "Linear", 4),
}
