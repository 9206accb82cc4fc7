"""The layout of diffusers' `PriorTransformer`, Karlo's prior: read and written."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from composer.networks.transformer import TransformerBlock
from composer.prior.diffusion import DiffusionPrior
from composer.prior.interface import Prior
from composer.published.engine import JOIN, Row, Transform, revert
from composer.published.family import Family, Needs, Tensors
from composer.published.karlo import AFTER, LICENCE, configure_prior, prior_rows

NAMES = {
    "transformer.resblocks": "transformer_blocks",
    "attn.c_proj": "attn1.to_out.0",
    "mlp.c_fc": "ff.net.0.proj",
    "mlp.c_proj": "ff.net.2",
    "ln_1": "norm1",
    "ln_2": "norm3",
    "text_enc_proj": "encoder_hidden_states_proj",
    "text_emb_proj": "embedding_proj",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "clip_img_proj": "proj_in",
    "prd_emb": "prd_embedding",
    "final_ln": "norm_out",
    "out_proj": "proj_to_clip_embeddings",
    "stats.0": "clip_mean",
    "stats.1": "clip_std",
}
"""Parts of the authors' names -> diffusers'."""

SHAPES: dict[str, Callable[[Tensor, int], list[Tensor]]] = {
    "captions.position": lambda x, _: [F.pad(x, (0, 0, 0, AFTER))[None]],  # the others are in what makes their tokens
    "query": lambda x, _: [x[None, None]],
    "standard.mean": lambda x, _: [x[None]],
    "standard.std": lambda x, _: [x[None]],
}
"""Tensors of ours that have another shape in diffusers' layout -> how they get it."""

FLAT = Transform("one row, as a vector", lambda x: x.squeeze(0))


def _configure(tensors: Tensors, size: int, needs: Needs) -> dict[str, Any]:
    layers = len({name.split(".")[1] for name in tensors if name.startswith("transformer_blocks.")})
    sentence, words = tensors["embedding_proj.weight"], tensors["encoder_hidden_states_proj.weight"]
    return configure_prior(sentence, words, tensors["positional_embedding"], layers, needs)


def _rows(weights: nn.Module, needs: Needs) -> list[Row]:
    rows = []
    for row in prior_rows(weights, needs):
        name, kind = _renamed(row.theirs[0]) if row.theirs else "", row.ours.rpartition(".")[2]
        if ".attn.c_qkv." in name:
            block = name.partition(".attn.")[0]
            parts = tuple(f"{block}.attn1.{part}.{kind}" for part in ("to_q", "to_k", "to_v"))
            rows.append(Row(row.ours, parts, JOIN))
            continue
        how = FLAT if row.ours.startswith("standard.") else row.how
        how = replace(how, undo=SHAPES.get(row.ours, how.undo))
        rows.append(Row(row.ours, (name, *row.theirs[1:]) if name else (), how))
    return rows


def _renamed(name: str) -> str:
    for authors, diffusers in NAMES.items():
        name = name.replace(authors, diffusers)
    return name


def prior_part(prior: Prior) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and the weights of a `PriorTransformer`.

    Raises:
        ValueError: diffusers has no class for this prior.
    """
    as_karlo = (
        isinstance(prior, DiffusionPrior)
        and prior.standard is not None
        and prior.captions.word is not None
        and prior.captions.null > 0
        and isinstance(prior.embed_noised, nn.Linear)
        and prior.captions.caption_dim == prior.dim
    )
    if not as_karlo:
        raise ValueError(
            "diffusers has no class for this prior: expected one as Karlo's, by diffusion over standardised "
            "embeddings, with words as wide as they are, one layer for each, and an encoding that stands for no caption"
        )
    assert isinstance(prior, DiffusionPrior)
    blocks, width = prior.transformer.blocks, prior.query.shape[0]
    first = blocks[0]
    assert isinstance(first, TransformerBlock)
    settings = {
        "_class_name": "PriorTransformer",
        "num_attention_heads": first.heads,
        "attention_head_dim": width // first.heads,
        "num_layers": len(blocks),
        "embedding_dim": prior.dim,
        "num_embeddings": prior.captions.length,
        "additional_embeddings": AFTER,
    }
    return settings, revert(_rows(prior, Needs()), prior.state_dict())


FAMILIES = {
    "karlo-prior-diffusers": Family(
        "Karlo: captions to CLIP's image embeddings, from a file in diffusers' layout",
        LICENCE,
        {"karlo-v1-alpha's prior": (338, 1_022_030_080)},
        ("prd_embedding", "encoder_hidden_states_proj.weight", "proj_in.weight", "clip_mean"),
        _configure,
        _rows,
    ),
}
