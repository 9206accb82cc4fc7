"""Sketch by an edge detection network, DexiNed."""

import torch
from jaxtyping import Float
from torch import Tensor

from composer.decomposition import Batch
from composer.storage.pretrained import load_tensors, locate

from .sketch import Lines


class DexiNed(Lines):
    """Edges by DexiNed (Soria et al. 2020), as kornia builds it; the same representation as `Sketch`.

    It was trained at about 350 pixels and more; at 64 it finds little, and `Sketch` draws better lines.

    Args:
        weights: kornia's weights of DexiNed (``DexiNed_BIPED_10.pth``) or a safetensors copy: a path, or
            ``hub:owner/name@revision:file``.

    Raises:
        FileNotFoundError: The weights are missing.
        ValueError: They are not DexiNed's.
    """

    code_licence = "Apache-2.0 (kornia)"
    weights_licence = "MIT (DexiNed)"
    weights_arguments = ("weights",)

    mean: Tensor

    def __init__(self, weights: str):
        super().__init__()
        path = locate(weights, wanted="weights of DexiNed, DexiNed_BIPED_10.pth", who="DexiNed")
        from kornia.models.dexined import DexiNed as Network

        network = Network(pretrained=False)
        try:
            network.load_state_dict(load_tensors(path))
        except RuntimeError as error:
            raise ValueError(f"{path}: expected kornia's weights of DexiNed, found others: {error}") from error
        self.network = network.eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor([103.939, 116.779, 123.68]).view(3, 1, 1), persistent=False)

    def forward(self, batch: Batch) -> Float[Tensor, "b 1 h w"]:
        """Runs the network on BGR in 0 to 255 minus ImageNet's mean, as trained; applies a sigmoid."""
        image = batch["image"]
        logits: Tensor = self.network((image.float().flip(1) + 1) * 127.5 - self.mean)
        return logits.sigmoid().to(image.dtype)
