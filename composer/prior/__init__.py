"""Priors: they draw image embeddings that go with a caption (Ramesh et al. 2022, section 2.2)."""

from composer.data.embeddings import Embeddings
from composer.prior.autoregressive import AutoregressivePrior
from composer.prior.diffusion import DiffusionPrior
from composer.prior.interface import Prior

__all__ = ["AutoregressivePrior", "DiffusionPrior", "Embeddings", "Prior"]
