"""Alibaba's multi-stage text-to-image model: Composer's prior, base and upsamplers before its conditions."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from composer.networks.unet import UNet
from composer.prior.diffusion import DiffusionPrior
from composer.published.engine import Row, Transform, at_position, pair
from composer.published.family import (
    Family,
    Needs,
    Tensors,
    condition,
    configuration,
    decomposer,
    denoiser,
    empty_caption,
    prior_configuration,
)
from composer.published.unet import ALIBABA, plan, unet_rows

LICENCE = "of the weights unknown: ask their authors before you use them; the code is Apache-2.0"

BLOCK = {
    "attention_norm": "norm1",
    "qkv": "attn.to_qkv",
    "out": "attn.proj",
    "mlp_norm": "norm2",
    "mlp.0": "ffn.0",
    "mlp.2": "ffn.2",
}
"""The parts of a block of the prior's transformer: ours -> theirs."""


def _reader(name: str, needs: Needs) -> dict[str, Any]:
    return decomposer(name, **({} if needs.clip is None else {"weights": needs.clip}))


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
    decomposers = {"semantics": _reader("Semantics", needs)}
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


def _configure_prior(tensors: Tensors, size: int, needs: Needs, head: int = 64) -> dict[str, Any]:
    width, dim = tensors["text_embedding.0.weight"].shape
    arguments = {
        "dim": dim,
        "caption_dim": dim,
        "width": width,
        "layers": len({name.split(".")[1] for name in tensors if name.startswith("blocks.")}),
        "heads": max(1, width // head),
        "length": 0,
        "guidance": 3.0,
        "steps": 100,
        "hidden": width,
        "null_length": 1,
    }
    return prior_configuration(arguments, _reader("Caption", needs), _reader("Semantics", needs))


def _check_prior(tensors: Tensors, needs: Needs) -> None:
    if not torch.equal(tensors["attn_mask"].squeeze() != 0, torch.ones(4, 4).tril() != 0):
        raise ValueError("expected attn_mask to hide later tokens from earlier ones, found another mask")


def _prior_rows(weights: nn.Module, needs: Needs) -> list[Row]:
    """Positions become part of what makes the four tokens, which are always there."""
    assert isinstance(weights, DiffusionPrior)

    def nothing() -> Tensor:
        sentence = empty_caption(_reader("Caption", needs))[-1:]
        return torch.cat([sentence[:, : weights.dim], sentence[:, -1:]], 1)

    rows = [Row("captions.nothing", (), Transform("CLIP's embedding of the empty caption", nothing))]
    tokens = {"captions.text": "text", "embed_level": "time", "embed_noised": "vision"}
    for i, (ours, kind) in enumerate(tokens.items()):
        theirs = f"{kind}_embedding"
        rows += pair(f"{ours}.0", f"{theirs}.0")
        rows.append(Row(f"{ours}.2.weight", (f"{theirs}.2.weight",)))
        rows.append(Row(f"{ours}.2.bias", (f"{theirs}.2.bias", "pos_embedding"), at_position(i)))
    rows.append(Row("query", ("eos_embedding", "pos_embedding"), at_position(len(tokens))))
    for i in range(len(weights.transformer.blocks)):
        rows += [
            row
            for ours, theirs in BLOCK.items()
            for row in pair(f"transformer.blocks.{i}.{ours}", f"blocks.{i}.{theirs}")
        ]
    return [*rows, *pair("transformer.norm", "norm"), *pair("out", "head")]


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
    "alibaba-prior": Family(
        "Alibaba: captions to CLIP's image embeddings",
        LICENCE,
        {"prior": (307, 1_230_121_744)},
        ("eos_embedding", "pos_embedding", "vision_embedding.0.weight"),
        _configure_prior,
        _prior_rows,
        left={"attn_mask": "each token attends to itself and those before it: ours computes this mask"},
        check=_check_prior,
    ),
}
