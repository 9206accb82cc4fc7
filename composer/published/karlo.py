"""Karlo (Lee et al. 2022), Kakao Brain's unCLIP: prior, decoder and upsampler, in their authors' layout."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from composer.networks.transformer import TransformerBlock
from composer.networks.unet import UNet
from composer.prior.diffusion import DiffusionPrior
from composer.published.engine import Row, Transform, at_position, interleave, pair, under
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
    unet,
)
from composer.published.unet import OPENAI, plan, transformer_rows, unet_rows

CLIP = "hub:timm/vit_large_patch14_clip_224.openai@main:open_clip_model.safetensors"
MODEL = "ViT-L-14-quickgelu"
LICENCE = "CreativeML OpenRAIL-M: commercial use is allowed, its list of harmful uses is not"
EMPTY = 3
"""Entries of the empty caption: start, end, sentence."""

TOKENS = 4
"""Tokens that an image embedding becomes."""

HEAD = 64
"""Channels of an attention head."""

AFTER = 4
"""Tokens of the prior's sequence after the words."""

STEPS = 7
"""Steps of the upsampler."""

LAST = 0.001
"""Time below which the upsampler's second network takes over: the schedule's first step, the last one of sampling."""

EXPERTS = {"high": "model_first_steps.", "low": "model_last_step."}
"""The upsampler's networks: ours -> prefix of theirs."""


def reader(name: str, needs: Needs, **arguments: Any) -> dict[str, Any]:
    """The specification of a decomposer that reads with Karlo's CLIP."""
    return decomposer(name, model=MODEL, weights=needs.clip or CLIP, **arguments)


def _configure(tensors: Tensors, size: int, needs: Needs, head: int = HEAD) -> dict[str, Any]:
    width, text = tensors["cf_param"].shape[0], tensors["text_seq_proj.0.weight"].shape[1]
    return configure_decoder(plan(tensors, OPENAI, head_dim=head), width, text, size, needs)


def configure_decoder(network: dict[str, Any], width: int, text: int, size: int, needs: Needs) -> dict[str, Any]:
    """The configuration of a model with the decoder alone.

    Args:
        network: The arguments of its U-Net.
        width: Of an image embedding.
        text: Width of an encoded word.
        size: Side of its images, in pixels.
        needs: What it needs besides.
    """
    ports = {"vector_dim": network["vector_dim"], "token_dim": network["token_dim"]}
    conditions = {
        "caption": condition("Text", in_dim=text, norm="after", null_length=EMPTY, **ports),
        "semantics": condition("Vector", in_dim=width, num_tokens=TOKENS, hidden=0, has_null=True, **ports),
    }
    decomposers = {"caption": reader("Caption", needs), "semantics": reader("Semantics", needs, scaled=False)}
    return configuration(size, denoiser(network, "SquaredCosine"), conditions, decomposers, guidance=4.0)


def empty_row(ours: str, needs: Needs) -> Row:
    """The row of the encoding that Karlo reads where there is no caption."""
    how = Transform("CLIP's encoding of the empty caption", lambda: empty_caption(reader("Caption", needs)))
    return Row(ours, (), how)


def decoder_rows(weights: nn.Module, needs: Needs) -> list[Row]:
    """The rows of what the decoder reads; without the U-Net's."""
    caption, semantics = "conditions.caption", "conditions.semantics"
    return [
        empty_row(f"{caption}.nothing", needs),
        *pair(f"{caption}.to_tokens.0", "text_seq_proj.0"),
        *pair(f"{caption}.to_tokens.1", "text_seq_proj.1"),
        *pair(f"{caption}.to_vector.0", "text_feat_proj"),
        Row(f"{semantics}.nothing", ("cf_param",)),
        *pair(f"{semantics}.to_vector.0", "clip_emb"),
        *pair(f"{semantics}.to_tokens.0", "clip_tok_proj", interleave(TOKENS)),
    ]


def _rows(weights: nn.Module, needs: Needs) -> list[Row]:
    network = weights.get_submodule("denoiser.network")
    assert isinstance(network, UNet)
    return [*unet_rows(network, OPENAI), *decoder_rows(weights, needs)]


def _configure_upsampler(tensors: Tensors, size: int, needs: Needs) -> dict[str, Any]:
    return configure_upsampler(tensors, size, lambda own: plan(own, OPENAI))


def configure_upsampler(tensors: Tensors, size: int, plan_of: Callable[[Tensors], dict[str, Any]]) -> dict[str, Any]:
    """The configuration of the upsampler, where `plan_of` reads the arguments of a `UNet` from its tensors."""
    networks = {}
    for name, prefix in EXPERTS.items():
        own = {key.removeprefix(prefix): x for key, x in tensors.items() if key.startswith(prefix)}
        networks[name] = unet(plan_of(own))
    network = {"class_path": "composer.networks.experts.Experts", "init_args": {**networks, "border": LAST}}
    conditions = {"low_res": condition("LowRes", spatial_dim=3, resize="bicubic")}
    return configuration(size, denoiser(network, "SquaredCosine"), conditions, {}, scale=4, steps=STEPS)


def _upsampler_rows(weights: nn.Module, needs: Needs) -> list[Row]:
    return upsampler_rows(weights, lambda network, ours: unet_rows(network, OPENAI, ours))


def upsampler_rows(weights: nn.Module, rows_of: Callable[[UNet, str], list[Row]]) -> list[Row]:
    """The rows of both networks, where `rows_of` gives a U-Net's with a prefix of our names."""
    rows = []
    for name, prefix in EXPERTS.items():
        network = weights.get_submodule(f"denoiser.network.{name}")
        assert isinstance(network, UNet)
        rows += under(prefix, rows_of(network, f"denoiser.network.{name}."))
    return rows


def _configure_prior(tensors: Tensors, size: int, needs: Needs) -> dict[str, Any]:
    layers = len({name.split(".")[2] for name in tensors if name.startswith("transformer.resblocks.")})
    sentence, words = tensors["text_emb_proj.weight"], tensors["text_enc_proj.weight"]
    return configure_prior(sentence, words, tensors["positional_embedding"], layers, needs)


def configure_prior(sentence: Tensor, words: Tensor, positions: Tensor, layers: int, needs: Needs) -> dict[str, Any]:
    """The configuration of the prior.

    Args:
        sentence: Weight of the text embedding's projection.
        words: That of the words' projection.
        positions: The table of positions, (1 n width).
        layers: Number of blocks.
        needs: What it needs besides.
    """
    width, dim = sentence.shape
    arguments = {
        "dim": dim,
        "caption_dim": words.shape[1],
        "width": width,
        "layers": layers,
        "heads": max(1, width // HEAD),
        "length": positions.shape[1] - AFTER,
        "guidance": 4.0,
        "steps": 25,
        "scaled": False,
        "null_length": EMPTY,
        "standardised": True,
        "clamp": 10.0,
    }
    return prior_configuration(arguments, reader("Caption", needs), reader("Semantics", needs, scaled=False))


def prior_rows(weights: nn.Module, needs: Needs) -> list[Row]:
    """The rows of the prior.

    Positions of the last four tokens, which are always there, become part of what makes these tokens.
    """
    assert isinstance(weights, DiffusionPrior)
    positions, words = "positional_embedding", weights.captions.length
    length = Transform(f"the first {words}", lambda x: x[0, :words])
    blocks = [block for block in weights.transformer.blocks if isinstance(block, TransformerBlock)]
    return [
        empty_row("captions.nothing", needs),
        Row("captions.position", (positions,), length),
        *pair("captions.word", "text_enc_proj"),
        Row("captions.text.weight", ("text_emb_proj.weight",)),
        Row("captions.text.bias", ("text_emb_proj.bias", positions), at_position(words)),
        *pair("embed_level.0", "time_embed.0"),
        Row("embed_level.2.weight", ("time_embed.2.weight",)),
        Row("embed_level.2.bias", ("time_embed.2.bias", positions), at_position(words + 1)),
        Row("embed_noised.weight", ("clip_img_proj.weight",)),
        Row("embed_noised.bias", ("clip_img_proj.bias", positions), at_position(words + 2)),
        Row("query", ("prd_emb", positions), at_position(words + 3)),
        *transformer_rows(len(blocks), blocks[0].heads, "transformer.blocks"),
        *pair("transformer.norm", "final_ln"),
        *pair("out", "out_proj"),
        Row("standard.mean", ("stats.0",)),
        Row("standard.std", ("stats.1",)),
    ]


FAMILIES = {
    "karlo-decoder": Family(
        "Karlo: captions and CLIP's image embeddings to 64 px",
        LICENCE,
        {"decoder-ckpt-step=01000000-of-01000000.ckpt": (595, 893_318_086)},
        ("cf_param", "clip_emb.weight", "text_seq_proj.0.weight", "input_blocks.0.0.weight"),
        _configure,
        _rows,
        prefix="model.",
    ),
    "karlo-up256": Family(
        "Karlo: 64 to 256 px, by one network and, in the last step, another",
        LICENCE,
        {"improved-sr-ckpt-step=1.2M.ckpt": (816, 1_383_159_046)},
        tuple(f"{prefix}input_blocks.0.0.weight" for prefix in EXPERTS.values()),
        _configure_upsampler,
        _upsampler_rows,
        size=256,
    ),
    "karlo-prior": Family(
        "Karlo: captions to CLIP's image embeddings",
        LICENCE,
        {"prior-ckpt-step=01000000-of-01000000.ckpt with ViT-L-14_stats.th": (258, 1_022_030_080)},
        ("prd_emb", "text_enc_proj.weight", "clip_img_proj.weight", "positional_embedding"),
        _configure_prior,
        prior_rows,
        prefix="model.",
        parts={"": "the prior", "stats.": "ViT-L-14_stats.th, mean and standard deviation of CLIP's image embeddings"},
    ),
}
