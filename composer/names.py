"""Names that the command line needs before anything heavy is imported."""

from enum import StrEnum
from typing import Literal

SHIPPED = "scenes256"
"""The model that comes with the package."""

DIFFUSION_PRIOR, AUTOREGRESSIVE_PRIOR = "scenes_prior_diffusion", "scenes_prior_ar"
"""The priors that come with it; the second one contains the principal components of its CLIP's embeddings."""

DEVICES = ("cuda", "mps", "cpu")
"""The kinds of device that networks run on, the fastest first."""

SamplerName = Literal["euler", "heun", "dpmpp_2m", "ancestral"]
"""Functions of `composer.diffusion.samplers`."""

CLOSED = "closed: 1 is a perfect match, 0 is no better than chance"
"""Explains the figures of `evaluation.reading.Reading` to users."""


class Kind(StrEnum):
    """Which aspect of an image a representation describes; see `composer.Decomposer.kind`."""

    STRUCTURE = "structure"
    """Where edges and surfaces are, pixel by pixel: a sketch, depth."""

    SEGMENTATION = "segmentation"
    """Which things are where."""

    APPEARANCE = "appearance"
    """What the image shows and how it looks: semantics, colours."""

    TEXT = "text"
    """What its caption says."""

    LUMINANCE = "luminance"
    """The image itself, in grey."""

    MASK = "mask"
    """The pixels that an edit keeps."""


LAYOUT = (Kind.STRUCTURE, Kind.SEGMENTATION)
"""Kinds that say where things are; Composer calls such conditions local."""

LOCAL, GLOBAL = ("sketch", "depth", "instances"), ("semantics", "palette")
"""Names of the included models' conditions of `LAYOUT` and of `Kind.APPEARANCE`; a loaded model knows its own."""

LATENTS = "latents"
"""Name of the column with an image's latents, on which a stage with a codec trains."""

TEXT, SEMANTICS = "text", "semantics"
"""Names of what a prior's data must contain: captions as `decomposers.Caption` encodes them, and image embeddings."""
