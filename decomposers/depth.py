"""Depth of photographs by Depth Anything V2 or DPT, from transformers."""

import json

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from composer.decomposition import Batch, Decomposer, robust_normalise
from composer.names import Kind
from composer.storage.pretrained import locate, sealed


class DepthMaps(Decomposer):
    """Decomposers to (b 1 h w), relative inverse depth in [0, 1], near = 1."""

    kind = Kind.STRUCTURE

    def preview(self, value: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Grey, near bright."""
        return (value.clamp(0, 1) * 2 - 1).expand(-1, 3, -1, -1)

    def distance(self, wanted: Float[Tensor, "b 1 h w"], got: Float[Tensor, "b 1 h w"]) -> Float[Tensor, " b"]:
        """Mean absolute difference, as a share of the depth range."""
        return (wanted - got).abs().mean(dim=(1, 2, 3))


class Depth(DepthMaps):
    """Relative inverse depth by Depth Anything V2 (Yang et al. 2024) or DPT (Ranftl et al. 2021).

    The default weights, Small, are Apache-2.0; those of Base, Large and Giant are CC-BY-NC-4.0.

    Args:
        weights: Folder with ``config.json``, ``preprocessor_config.json`` and ``model.safetensors`` as transformers
            writes them: a path, or ``hub:owner/name@revision``.
        size: Shorter side, in pixels, of the network's input; rounded to its patches. Larger is finer and slower:
            the model was trained at 518, and 252 takes a fifth of the time.
    """

    code_licence = "Apache-2.0"
    weights_licence = "Apache-2.0 (Depth Anything V2 Small); others: see their model cards"
    weights_arguments = ("weights",)

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        weights: str = "hub:depth-anything/Depth-Anything-V2-Small-hf@5426e4f0f36572d16453bbda7a8389317b1bef99",
        size: int = 252,
    ):
        super().__init__()
        folder = locate(weights, wanted="weights of a depth network", who="Depth")
        for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
            locate(str(folder / name), wanted=name, who="Depth")
        statistics = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(statistics[f"image_{name}"]).view(3, 1, 1), persistent=False)

        from transformers import AutoModelForDepthEstimation

        with sealed(folder):
            network = AutoModelForDepthEstimation.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, trust_remote_code=False
            )
        self.network = network.eval().requires_grad_(False)
        config = network.config.to_dict()
        kind, estimates = config["model_type"], config.get("depth_estimation_type", "relative")
        if kind not in ("depth_anything", "dpt") or estimates != "relative":
            raise ValueError(
                f"Depth: expected a depth_anything or dpt network of relative depth, found {kind} ({estimates}) in "
                f"{folder}; use Depth-Anything-V2-Small or a DPT of MiDaS"
            )
        # DPT halves its grid of patches once and takes square images only.
        self.patch, self.square = (config["patch_size"], False) if kind != "dpt" else (2 * config["patch_size"], True)
        self.size = size

    def forward(self, batch: Batch) -> Float[Tensor, "b 1 h w"]:
        image = batch["image"]
        h, w = image.shape[-2:]
        x = F.interpolate(image.float(), self.input_size(h, w), mode="bicubic", antialias=True)
        x = (x.clamp(-1, 1) / 2 + 0.5 - self.mean) / self.std
        # In float32 always: stretching to the range makes what bfloat16 rounds visible, 1 to 2 % of the range in tests
        inverse = self.network(pixel_values=x).predicted_depth[:, None]
        # The network's own output size differs from its input's for some architectures.
        inverse = F.interpolate(inverse, (h, w), mode="bilinear", antialias=True)
        return robust_normalise(inverse).to(image.dtype)

    def input_size(self, h: int, w: int) -> tuple[int, int]:
        """The image's proportions with the shorter side near `size`, both sides multiples of the patch size."""
        if self.square:
            h = w = self.size
        scale = self.size / min(h, w) / self.patch
        return max(round(h * scale), 1) * self.patch, max(round(w * scale), 1) * self.patch
