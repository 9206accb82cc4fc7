"""Trained adapters from representations to a U-Net's inputs; a few generic ones serve all representations."""

from .grounding import Grounding
from .instances import Instances
from .label import Label
from .low_res import LowRes
from .spatial import Spatial
from .text import Text
from .text_transformer import TextTransformer
from .vector import Vector

__all__ = ["Grounding", "Instances", "Label", "LowRes", "Spatial", "Text", "TextTransformer", "Vector"]
