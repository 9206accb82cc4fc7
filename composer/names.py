"""Names that the command line needs before anything heavy is imported."""

from typing import Literal

SHIPPED = "scenes256"
"""The model that comes with the package."""

DIFFUSION_PRIOR, AUTOREGRESSIVE_PRIOR = "scenes_prior_diffusion", "scenes_prior_ar"
"""The priors that come with it; the second one knows the principal components of its CLIP's embeddings."""

DEVICES = ("cuda", "mps", "cpu")
"""The kinds of device that networks run on, the fastest first."""

SamplerName = Literal["euler", "heun", "dpmpp_2m", "ancestral"]
"""Functions of `composer.diffusion.samplers`."""

CLOSED = "closed: 1 is exactly what was asked, 0 no nearer to it than other pictures are by chance"
"""What the figures that `evaluation.reading.Reading` gives mean, for people."""

LOCAL = ("sketch", "depth", "instances")
"""Conditions that say where things are."""

GLOBAL = ("semantics", "palette")
"""Conditions that say what things are, and how they look."""

TEXT, SEMANTICS = "text", "semantics"
"""Names of what a prior's data has to give: captions as `decomposers.Caption` encodes them, and image embeddings."""
