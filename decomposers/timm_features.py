"""Image features by a network of timm."""

import math
import re
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from composer.cascade.parts import slerp
from composer.decomposition import Batch, Decomposer
from composer.mistakes import did_you_mean
from composer.names import Kind
from composer.storage.files import shorten_error
from composer.storage.pretrained import load_tensors, locate, sealed

from ._clip import barcode, cosine_distance


class TimmFeatures(Decomposer):
    """Pooled features of an image by any network of timm (DINOv2, ConvNeXt, ResNet, ...), scaled as `Semantics` is.

    They have unit length times sqrt(d), so each number is of order 1; `conditions.Vector` reads them. Images are
    resized, cropped and normalised as in timm's evaluation of `model`.

    Args:
        model: timm's name with its tag, such as ``vit_small_patch14_dinov2.lvd142m``: the tag determines the
            preprocessing and the number of classes.
        weights: timm's file of tensors for `model`: a path, or ``hub:timm/NAME@REVISION:model.safetensors``.

    Raises:
        FileNotFoundError: The weights are missing.
        ValueError: timm does not know `model`, the weights are of another model, or it pads images, which is not
            supported.
    """

    code_licence = "Apache-2.0 (timm)"
    weights_licence = "see their model cards: some are non-commercial"
    weights_arguments = ("weights",)
    kind = Kind.APPEARANCE

    mean: Tensor
    std: Tensor

    def __init__(self, model: str, weights: str):
        super().__init__()
        self.network = _load(model, weights)
        from timm.data import create_transform, resolve_model_data_config

        facts = resolve_model_data_config(self.network)
        if facts["crop_mode"] == "border":
            raise ValueError(f"TimmFeatures: {model} pads images, which is not supported; use another network")
        self._crop = create_transform(**facts, normalize=False)  # works on tensors, and keeps their range
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(facts[name]).view(3, 1, 1), persistent=False)

    def forward(self, batch: Batch) -> Float[Tensor, "b d"]:
        image = batch["image"]
        x = self._crop(image.float() / 2 + 0.5).clamp(0, 1)  # bicubic overshoots
        value = F.normalize(self.network((x - self.mean) / self.std), dim=1)
        return (value * math.sqrt(value.shape[1])).to(image.dtype)

    def preview(self, value: Float[Tensor, "b d"]) -> Float[Tensor, "b 3 h w"]:
        """Draws the numbers."""
        return barcode(value, "features: numbers only")

    def distance(self, wanted: Float[Tensor, "b d"], got: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        """1 - cosine, between 0 and 2."""
        return cosine_distance(wanted, got)

    def interpolate(self, a: Float[Tensor, "b d"], b: Float[Tensor, "b d"], share: float) -> Float[Tensor, "b d"]:
        """Along the great circle, as `Semantics` does."""
        return slerp(a, b, share)


def _load(model: str, weights: str) -> nn.Module:
    import timm

    if not re.fullmatch(r"[\w.-]+", model) or not timm.is_model(model):  # no hub name, no path
        hint = did_you_mean(model.partition(".")[0], timm.list_models())
        raise ValueError(f"TimmFeatures: timm knows no model {model!r}{hint}; timm.list_models() lists them")
    path = locate(weights, wanted=f"timm's weights of {model}, model.safetensors", who="TimmFeatures")
    if not path.is_file():
        raise ValueError(f"TimmFeatures: expected a file of tensors, model.safetensors, found a folder at {path}")
    source = {"state_dict": load_tensors(path), "url": None, "hf_hub_id": None}  # so that timm downloads nothing
    try:
        with sealed(path):
            # With its classifier, as stored: without one, timm would not notice other missing weights.
            network: Any = timm.create_model(model, pretrained=True, pretrained_cfg_overlay=source)
    except RuntimeError as error:
        raise ValueError(f"TimmFeatures: the weights in {path} are not {model}'s: {shorten_error(error)}") from error
    network.pretrained_cfg.pop("state_dict")  # timm keeps a copy
    network.reset_classifier(0)
    frozen: nn.Module = network.eval().requires_grad_(False)
    return frozen
