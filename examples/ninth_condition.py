"""A ninth condition, from outside the packages: how strong the colours are, place by place.

docs/architecture.md walks through it. The adapter that it trains with is `conditions.Spatial`, as it is; what is new is
this decomposer and one entry each under `conditions` and `decomposers` of ninth_condition.yaml.
"""

import torch
from torch import Tensor

from composer import Batch, Decomposer, Kind


class Saturation(Decomposer):
    """Saturation of the colours, (b 1 h w) in [0, 1]: 0 is grey, 1 is as strong as a colour gets (Smith 1978)."""

    kind = Kind.APPEARANCE

    def forward(self, batch: Batch) -> Tensor:
        """Reads `batch["image"]`."""
        unit: Tensor = (batch["image"] + 1) / 2
        high, low = unit.amax(1, keepdim=True), unit.amin(1, keepdim=True)
        return (high - low) / high.clamp(min=1e-3)

    def preview(self, value: Tensor) -> Tensor:
        """Shows strong colours bright."""
        return (value.clamp(0, 1) * 2 - 1).expand(-1, 3, -1, -1)

    def distance(self, wanted: Tensor, got: Tensor) -> Tensor:
        """Mean absolute difference, 0 to 1."""
        return (wanted - got).abs().mean((1, 2, 3))

    def interpolate(self, a: Tensor, b: Tensor, share: float) -> Tensor:
        """Goes linearly from one map to the other."""
        return torch.lerp(a, b, share)

    def from_text(self, text: str) -> Tensor:
        """Reads one number for the whole image, such as ``0.8``: a map of one pixel, which fits every size."""
        try:
            return torch.tensor(float(text)).clamp(0, 1).view(1, 1, 1, 1)
        except ValueError as error:
            raise ValueError(f"expected an image file or a saturation in 0 to 1, found {text!r}") from error
