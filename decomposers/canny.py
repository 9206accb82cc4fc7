"""Sketch by Canny's edge detector, through OpenCV: an optional extra."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from composer.decomposition import Batch

from .sketch import Lines


class Canny(Lines):
    """Edges by OpenCV's Canny (1986), one pixel wide, 0 or 1; the same representation as `Sketch`.

    Thresholds apply to the gradient: the sum of the Sobel filters' absolute values in the channel that changes most,
    with values from 0 to 255. It runs on the CPU, image by image, and has no gradient.

    Args:
        low: An edge continues while the gradient is above this.
        high: An edge starts where the gradient is above this. Higher thresholds draw fewer edges.

    Raises:
        ImportError: OpenCV is not installed.
        ValueError: Not 0 <= `low` <= `high`.
    """

    code_licence = "Apache-2.0 (OpenCV)"

    def __init__(self, low: float = 100, high: float = 200):
        super().__init__()
        if not 0 <= low <= high:
            raise ValueError(f"Canny: expected 0 <= low <= high, found a low of {low} and a high of {high}")
        try:
            import cv2  # noqa: F401
        except ModuleNotFoundError as error:
            raise ImportError(
                "Canny needs OpenCV, which is missing; install the extra: pip install 'composer-diffusion[opencv]', or "
                "use Sketch"
            ) from error
        self.low, self.high = low, high

    def forward(self, batch: Batch) -> Float[Tensor, "b 1 h w"]:
        import cv2

        image = batch["image"]
        levels = ((image.detach().float().cpu() + 1) * 127.5).round().clamp(0, 255).byte()
        pictures = levels.permute(0, 2, 3, 1).contiguous().numpy()
        edges = np.stack([cv2.Canny(picture, self.low, self.high) for picture in pictures])
        return torch.from_numpy(edges)[:, None].to(image) / 255
