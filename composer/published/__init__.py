"""Weights that others published, as models of ours: GLIDE, ADM, Karlo, Alibaba's multi-stage model."""

from composer.published.diffusers_layout import export_diffusers as export_diffusers
from composer.published.family import Needs as Needs
from composer.published.importing import FAMILIES as FAMILIES
from composer.published.importing import Published as Published
from composer.published.importing import import_model as import_model
