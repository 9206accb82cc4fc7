"""GLIDE (Nichol et al. 2021), the filtered models that OpenAI released."""

from functools import partial
from typing import Any

from torch import nn

from composer.decomposition import Decomposer
from composer.networks.transformer import TransformerBlock
from composer.networks.unet import UNet
from composer.published.engine import Row, pair
from composer.published.family import Family, Needs, Tensors, condition, configuration, decomposer, denoiser
from composer.published.unet import OPENAI, plan, transformer_rows, unet_rows
from composer.storage.building import build

HEAD = 64
"""Channels of an attention head, in the U-Net and in the text transformer."""


def _configure(
    tensors: Tensors, size: int, needs: Needs, mask: bool = False, scale: int = 0, head: int = HEAD
) -> dict[str, Any]:
    network = plan(tensors, OPENAI, head_dim=head, dropout=0.1)
    words, width = tensors["token_embedding.weight"].shape
    layers = len({name.split(".")[2] for name in tensors if name.startswith("transformer.resblocks.")})
    length, maps = tensors["positional_embedding"].shape[0], network["spatial_dim"]
    conditions = {
        "caption": condition(
            "TextTransformer",
            vocabulary_size=words,
            width=width,
            layers=layers,
            heads=max(1, width // head),
            vector_dim=network["vector_dim"],
            token_dim=width,
            length=length,
            skip_padding=False,
            project=False,
            has_null=True,
            dropout=0.2,
        )
    }
    decomposers = {"caption": decomposer("Tokens", length=length, merges=needs.merges)}
    if mask:
        conditions["mask"] = condition("Spatial", in_channels=4, spatial_dim=maps, offset=0)
        decomposers["mask"] = decomposer("Mask")
    if scale:
        conditions["low_res"] = condition("LowRes", spatial_dim=maps, offset=4 if mask else 0)
    made = denoiser(network, "Linear" if scale else "SquaredCosine")
    readers = {} if needs.clip is None else {"caption": decomposer("Agreement", weights=needs.clip)}
    return configuration(size, made, conditions, decomposers, 1.0 if scale else 3.0, scale, readers)


def _check(tensors: Tensors, needs: Needs) -> None:
    """Counts the pieces that the merges make."""
    made = build(decomposer("Tokens", merges=needs.merges), Decomposer)
    found, expected = getattr(made, "vocabulary_size", 0), tensors["token_embedding.weight"].shape[0]
    if found != expected:
        raise ValueError(f"expected merges that make {expected} pieces, found {found} in {needs.merges}")


def _rows(weights: nn.Module, needs: Needs) -> list[Row]:
    network, text = weights.get_submodule("denoiser.network"), weights.get_submodule("conditions.caption")
    assert isinstance(network, UNet)
    blocks = [block for block in text.modules() if isinstance(block, TransformerBlock)]
    ours = "conditions.caption"
    return [
        *unet_rows(network, OPENAI),
        Row(f"{ours}.embedding.weight", ("token_embedding.weight",)),
        Row(f"{ours}.position", ("positional_embedding",)),
        Row(f"{ours}.padding", ("padding_embedding",)),
        *transformer_rows(len(blocks), blocks[0].heads, f"{ours}.blocks"),
        *pair(f"{ours}.norm", "final_ln"),
        *pair(f"{ours}.to_vector", "transformer_proj"),
    ]


def _family(about: str, file: str, released: tuple[int, int], channels: int, scale: int = 0) -> Family:
    return Family(
        about,
        'MIT; its model card: filtered data without people, "we do not currently recommend it for commercial use"',
        {file: released},
        ("padding_embedding", "token_embedding.weight", "transformer_proj.weight", "input_blocks.0.0.weight"),
        partial(_configure, mask=channels in (7, 10), scale=scale),
        _rows,
        size=256 if scale else 64,
        channels=channels,
        check=_check,
    )


FAMILIES = {
    "glide-base": _family("GLIDE: captions to 64 px", "base.pt", (783, 385_030_726), 3),
    "glide-up": _family("GLIDE: 64 to 256 px, with the caption", "upsample.pt", (797, 398_361_286), 6, 4),
    "glide-inpaint": _family("GLIDE: a region of 64 px", "base_inpaint.pt", (783, 385_037_638), 7),
    "glide-up-inpaint": _family("GLIDE: a region, 64 to 256 px", "upsample_inpaint.pt", (797, 398_368_198), 10, 4),
}
