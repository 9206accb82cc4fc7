"""The KL autoencoders of latent diffusion and Stable Diffusion (Rombach et al. 2022), in diffusers' layout."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import nn

from composer.networks.autoencoder import Autoencoder
from composer.networks.stored import specification
from composer.published.engine import JOIN, Row, pair
from composer.published.family import Family, Needs, Tensors

RENAMED = {
    f"attentions.0.{old}.": f"attentions.0.{new}."
    for old, new in {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}.items()
}
"""The middle's attention, before diffusers 0.18."""


def _configure(tensors: Tensors, size: int, needs: Needs, scale: float, groups: int = 32) -> dict[str, Any]:
    def of_each(prefix: str) -> list[str]:
        return sorted({name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)}, key=int)

    levels = [f"encoder.down_blocks.{i}.resnets" for i in of_each("encoder.down_blocks.")]
    widths = [tensors[f"{level}.0.conv1.weight"].shape[0] for level in levels]
    if wrong := [c for c in widths if c % widths[0]]:
        raise ValueError(f"expected widths in multiples of the first, {widths[0]}, found {wrong[0]}")
    made = specification(
        Autoencoder,
        channels=tensors["decoder.conv_in.weight"].shape[1],
        width=widths[0],
        multipliers=[c // widths[0] for c in widths],
        blocks=len(of_each(f"{levels[0]}.")),
        groups=groups,
        scale=scale,
    )
    return {"autoencoders": [made]}


def _rows(weights: nn.Module, needs: Needs) -> list[Row]:
    assert isinstance(weights, Autoencoder)
    made = [*pair("to_moments", "quant_conv"), *pair("from_latents", "post_quant_conv")]
    for half, levels, resize, sampler in (
        ("encoder", "down_blocks", "halvings", "downsamplers"),
        ("decoder", "up_blocks", "doublings", "upsamplers"),
    ):
        made += pair(f"{half}.first", f"{half}.conv_in")
        made += [*pair(f"{half}.last.0", f"{half}.conv_norm_out"), *pair(f"{half}.last.2", f"{half}.conv_out")]
        made += _middle(f"{half}.middle", f"{half}.mid_block")
        for i, level in enumerate(weights.get_submodule(f"{half}.levels").children()):
            theirs = f"{half}.{levels}.{i}"
            for j, block in enumerate(level.children()):
                made += _block(f"{half}.levels.{i}.{j}", f"{theirs}.resnets.{j}", isinstance(block.skip, nn.Conv2d))
            if i < len(weights.multipliers) - 1:
                made += pair(f"{half}.{resize}.{i}", f"{theirs}.{sampler}.0.conv")
    return made


def _middle(ours: str, theirs: str) -> Iterator[Row]:
    for i, j in enumerate((0, 2)):
        yield from _block(f"{ours}.{j}", f"{theirs}.resnets.{i}", skips=False)
    attention = f"{theirs}.attentions.0"
    yield from pair(f"{ours}.1.norm", f"{attention}.group_norm")
    yield from pair(f"{ours}.1.out", f"{attention}.to_out.0")
    for kind in ("weight", "bias"):
        yield Row(f"{ours}.1.qkv.{kind}", tuple(f"{attention}.to_{part}.{kind}" for part in "qkv"), JOIN)


def _block(ours: str, theirs: str, skips: bool) -> Iterator[Row]:
    for layer in ("norm1", "norm2", "conv1", "conv2"):
        yield from pair(f"{ours}.{layer}", f"{theirs}.{layer}")
    if skips:
        yield from pair(f"{ours}.skip", f"{theirs}.conv_shortcut")


def _family(about: str, licence: str, released: dict[str, tuple[int, int]], scale: float) -> Family:
    marks = ("encoder.down_blocks.0.resnets.0.conv1.weight", "decoder.conv_in.weight", "quant_conv.weight")
    return Family(about, licence, released, marks, partial(_configure, scale=scale), _rows, renamed=RENAMED)


FAMILIES = {
    "autoencoder-kl": _family(
        "Stable Diffusion's and latent diffusion's autoencoder: images to latents, and back",
        "Stable Diffusion 1 and 2: CreativeML OpenRAIL-M; sd-vae-ft-mse: MIT; latent diffusion: Apache-2.0",
        {"diffusion_pytorch_model.safetensors": (248, 83_653_863)},
        scale=0.18215,
    ),
    "autoencoder-kl-sdxl": _family(
        "Stable Diffusion XL's autoencoder: images to latents, and back",
        "MIT or CreativeML OpenRAIL++-M, as the file's page says",
        {"diffusion_pytorch_model.safetensors": (248, 83_653_863)},
        scale=0.13025,
    ),
}
