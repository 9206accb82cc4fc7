"""How alike two images are, pixel by pixel."""

from jaxtyping import Float
from torch import Tensor


def psnr(found: Float[Tensor, "b 3 h w"], images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """The peak signal-to-noise ratio of each image, in dB.

    Args:
        found: In [-1, 1]; values beyond are clipped.
        images: The true ones, in [-1, 1].
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio

    ratio: Tensor = peak_signal_noise_ratio(found, images, data_range=(-1.0, 1.0), reduction="none", dim=(1, 2, 3))
    return ratio
