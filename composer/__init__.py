"""Composer for everyone: take images apart, recombine the parts, edit within a region.

These are the public names. What is not among them serves training (`composer.data`, `composer.training`) or the
command line, and lies one import away in the module that is named after it.
"""

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
