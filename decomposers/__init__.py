"""Decomposers: an image or caption in, one representation out; frozen, batched, one public class per file."""

from .agreement import Agreement as Agreement
from .canny import Canny as Canny
from .caption import Caption as Caption
from .captioner import Captioner as Captioner
from .depth import Depth as Depth
from .dexined import DexiNed as DexiNed
from .intensity import Intensity as Intensity
from .label import Label as Label
from .latents import Latents as Latents
from .mask import Mask as Mask
from .objects import Objects as Objects
from .palette import Palette as Palette
from .reader import SceneDepth as SceneDepth
from .reader import SceneInstances as SceneInstances
from .rfdetr import RFDETR as RFDETR
from .scene_objects import SceneObjects as SceneObjects
from .semantics import Semantics as Semantics
from .sketch import Sketch as Sketch
from .t5 import T5 as T5
from .timm_features import TimmFeatures as TimmFeatures
from .tokens import Tokens as Tokens
from .yolo import YOLO as YOLO
