"""Measures an autoencoder by its reconstructions."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from composer.evaluation.adherence import quantise
from composer.evaluation.metrics import Comparison, Features
from composer.evaluation.samples import Sample
from composer.images.similarity import psnr
from composer.images.table import Table
from composer.networks.stored import Stored


@dataclass(frozen=True)
class ReconstructionScore:
    """How near reconstructions are to their images.

    Attributes:
        images: Their number.
        psnr: The mean peak signal-to-noise ratio of an image, in dB, between pixels of 8 bits.
        kid: The kernel distance of both sets in the features.
        spread: The standard deviation of the kernel distance's subsets.
        examples: The first images and their reconstructions, (3 h w) each.
    """

    images: int
    psnr: float
    kid: float
    spread: float
    examples: list[tuple[Tensor, Tensor]] = field(default_factory=list, repr=False, compare=False)

    def json(self) -> dict[str, float]:
        """The numbers alone."""
        return {"images": self.images, "psnr": self.psnr, "kid": self.kid, "spread": self.spread}

    def markdown(self) -> str:
        rows = [("PSNR", f"{self.psnr:.2f} dB"), ("KID", f"{self.kid:.4f} (spread of a subset {self.spread:.4f})")]
        return f"{Table(('reconstructions', 'value'), rows).markdown()}\n{self.images} images.\n"


@torch.no_grad()
def measure_reconstructions(
    autoencoder: Stored,
    sample: Sample,
    features: Features,
    rows: int = 8,
    examples: int = 8,
    device: torch.device | str = "cpu",
    progress: Callable[[int], object] = lambda done: None,
) -> ReconstructionScore:
    """Encodes and decodes images, and compares.

    Args:
        autoencoder: Encodes them, as most likely latents or codes, and decodes.
        sample: The images.
        features: In which KID is measured.
        rows: Images at a time.
        examples: How many images to keep with their reconstructions.
        device: Where the autoencoder is.
        progress: Called with the number of images that were just measured.

    Raises:
        ValueError: The images' sides are not multiples of the autoencoder's factor.
    """
    comparison, ratios, kept = (
        Comparison(features, ["kid"], sample.count),
        list[Tensor](),
        list[tuple[Tensor, Tensor]](),
    )
    for start in range(0, sample.count, rows):
        images: Tensor = sample.read(range(start, min(start + rows, sample.count)))["image"].to(device)
        found = quantise(autoencoder.decode(autoencoder.encode(images)))
        ratios.append(psnr(found, images).cpu())
        comparison.update(images, found)
        kept += list(zip(images.cpu(), found.cpu(), strict=True))[: examples - len(kept)]
        progress(len(images))
    kid = comparison.compute()["kid"]
    return ReconstructionScore(sample.count, float(torch.cat(ratios).mean()), kid["value"], kid["spread"], kept)
