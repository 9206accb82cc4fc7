"""ADM, guided-diffusion (Dhariwal and Nichol 2021): ImageNet and LSUN, without captions."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from composer.networks.unet import UNet
from composer.published.engine import Row
from composer.published.family import Family, Needs, Tensors, condition, configuration, decomposer, denoiser
from composer.published.unet import OPENAI, plan, unet_rows


def _configure(
    tensors: Tensors, size: int, needs: Needs, noise: str, heads: Mapping[str, int], scale: int = 0
) -> dict[str, Any]:
    label = tensors.get("label_emb.weight")
    network = plan(tensors, OPENAI, **heads)
    conditions, decomposers = {}, {}
    if label is not None:
        conditions["label"] = condition("Label", classes=label.shape[0], vector_dim=label.shape[1])
        decomposers["label"] = decomposer("Label", classes=label.shape[0])
    if scale:
        conditions["low_res"] = condition("LowRes", spatial_dim=network["spatial_dim"])
    return configuration(size, denoiser(network, noise), conditions, decomposers, scale=scale)


def _rows(weights: nn.Module, needs: Needs, by_head: bool = True) -> list[Row]:
    network = weights.get_submodule("denoiser.network")
    assert isinstance(network, UNet)
    named = any(name == "conditions.label.embedding.weight" for name, _ in weights.named_parameters())
    label = [Row("conditions.label.embedding.weight", ("label_emb.weight",))] if named else []
    return [*unet_rows(network, replace(OPENAI, by_head=by_head)), *label]


def _family(
    size: int,
    files: dict[str, tuple[int, int]],
    noise: str = "Linear",
    labels: bool = True,
    scale: int = 0,
    by_head: bool = True,
    **heads: int,
) -> Family:
    what = f"{size // scale} to {size} px" if scale else f"{size} px"
    return Family(
        f"ADM: {what}, {'by ImageNet class' if labels else 'unconditional'}",
        'MIT; its model card: for research, "not intended to be commercially deployed"',
        files,
        ("input_blocks.0.0.weight", *(["label_emb.weight"] if labels else [])),
        partial(_configure, noise=noise, heads=heads or {"head_dim": 64}, scale=scale),
        partial(_rows, by_head=by_head),
        size=size,
        channels=6 if scale else 3,
    )


FAMILIES = {
    "adm-64": _family(64, {"64x64_diffusion.pt": (541, 295_904_454)}, "SquaredCosine", by_head=False),
    "adm-128": _family(128, {"128x128_diffusion.pt": (493, 421_529_606)}, heads=4),
    "adm-256": _family(256, {"256x256_diffusion.pt": (567, 553_838_086)}),
    "adm-256-uncond": _family(
        256,
        dict.fromkeys(
            (
                "256x256_diffusion_uncond.pt",
                "lsun_bedroom.pt",
                "lsun_cat.pt",
                "lsun_horse.pt",
                "lsun_horse_nodropout.pt",
            ),
            (566, 552814086),
        ),
        labels=False,
    ),
    "adm-512": _family(512, {"512x512_diffusion.pt": (645, 558_997_638)}),
    "adm-up256": _family(256, {"64_256_upsampler.pt": (567, 311_795_910)}, scale=4, heads=4),
    "adm-up512": _family(512, {"128_512_upsampler.pt": (537, 308_835_270)}, scale=4),
}
