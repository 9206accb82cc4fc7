"""Composer for everyone: take images apart, recombine the parts, edit within a region.

These are the public names. What is not among them serves training (`composer.data`, `composer.training`) or the
command line, and lies one import away in the module that is named after it.

They are imported when they are first used, so that the command line can answer ``--help`` without loading torch.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

# Even for what is in its cache huggingface_hub asks its server whom to report as the user, unless this is set first
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from .cascade import Cascade
    from .composition import Composition, Source
    from .conditioning import Condition, Conditioning, ConditionSet, Keep
    from .decomposition import Batch, Decomposer, Decomposition, Representations, draw
    from .degradation import Degradation
    from .denoiser import Cosine, Denoiser, Linear, LogNormal, NoiseLevels
    from .editing import Original, edit, open_region
    from .gallery import save_png, sheet
    from .guidance import Term, guide, lock, threshold
    from .images import load_rgb, resize_and_crop
    from .parts import Latent, Parts
    from .prior import AutoregressivePrior, DiffusionPrior, Prior
    from .samplers import Denoise, ancestral, cosine_sigmas, dpmpp_2m, euler, heun, karras_sigmas, latents
    from .stage import Sampling, Stage
    from .strength import Strength
    from .unet import UNet

__all__ = [
    "AutoregressivePrior",
    "Batch",
    "Cascade",
    "Composition",
    "Condition",
    "ConditionSet",
    "Conditioning",
    "Cosine",
    "Decomposer",
    "Decomposition",
    "Degradation",
    "Denoise",
    "Denoiser",
    "DiffusionPrior",
    "Keep",
    "Latent",
    "Linear",
    "LogNormal",
    "NoiseLevels",
    "Original",
    "Parts",
    "Prior",
    "Representations",
    "Sampling",
    "Source",
    "Stage",
    "Strength",
    "Term",
    "UNet",
    "ancestral",
    "cosine_sigmas",
    "dpmpp_2m",
    "draw",
    "edit",
    "euler",
    "guide",
    "heun",
    "karras_sigmas",
    "latents",
    "load_rgb",
    "lock",
    "open_region",
    "resize_and_crop",
    "save_png",
    "sheet",
    "threshold",
]

_HOMES = {
    "cascade": ("Cascade",),
    "composition": ("Composition", "Source"),
    "conditioning": ("Condition", "Conditioning", "ConditionSet", "Keep"),
    "decomposition": ("Batch", "Decomposer", "Decomposition", "Representations", "draw"),
    "degradation": ("Degradation",),
    "denoiser": ("Cosine", "Denoiser", "Linear", "LogNormal", "NoiseLevels"),
    "editing": ("Original", "edit", "open_region"),
    "gallery": ("save_png", "sheet"),
    "guidance": ("Term", "guide", "lock", "threshold"),
    "images": ("load_rgb", "resize_and_crop"),
    "parts": ("Latent", "Parts"),
    "prior": ("AutoregressivePrior", "DiffusionPrior", "Prior"),
    "samplers": ("Denoise", "ancestral", "cosine_sigmas", "dpmpp_2m", "euler", "heun", "karras_sigmas", "latents"),
    "stage": ("Sampling", "Stage"),
    "strength": ("Strength",),
    "unet": ("UNet",),
}
"""Module -> the public names that it gives, as in the imports above."""


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used."""
    for module, names in _HOMES.items():
        if name in names:
            globals()[name] = value = getattr(importlib.import_module(f"{__name__}.{module}"), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
