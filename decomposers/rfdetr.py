"""Instances of photographs by RF-DETR, from transformers."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from composer.decomposition import Batch
from composer.storage.pretrained import locate, sealed, unconnected

from .instances import InstanceMaps, paint


class RFDETR(InstanceMaps):
    """Categories and instances by an RF-DETR segmentation network.

    Category ids are 1 + the network's labels; where detections overlap, the best score is in front.

    Reference: Robinson et al. 2025, "RF-DETR: Neural Architecture Search for Real-Time Detection Transformers".

    Args:
        weights: Folder with ``config.json`` and ``model.safetensors`` as transformers writes them: a path, or
            ``hub:owner/name@revision``.
        size: Side, in pixels, of the network's square input; rounded to its windows of patches.
        confidence: Detections of a lower score, in [0, 1], are dropped.
        most: Maximum detections per image.
    """

    code_licence = "Apache-2.0"
    weights_licence = "Apache-2.0 (Nano to Large); others: see their model cards"
    weights_arguments = ("weights",)

    mean: Tensor
    std: Tensor

    def __init__(self, weights: str, size: int = 432, confidence: float = 0.5, most: int = 100):
        super().__init__()
        folder = locate(weights, wanted="an RF-DETR segmentation network", who="RFDETR")
        for name in ("config.json", "model.safetensors"):
            locate(str(folder / name), wanted=name, who="RFDETR")

        from transformers import AutoConfig, RfDetrForInstanceSegmentation

        with unconnected():
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if config.model_type != "rf_detr":
            raise ValueError(f"RFDETR: expected an rf_detr network, found {config.model_type} in {folder}")
        with sealed(folder):
            network = RfDetrForInstanceSegmentation.from_pretrained(
                folder, config=config, local_files_only=True, use_safetensors=True, dtype=torch.float32
            )
        self.network = network.eval().requires_grad_(False)
        self.names = tuple(str(config.id2label[i]) for i in range(len(config.id2label)))
        window = config.backbone_config.patch_size * config.backbone_config.num_windows
        self.size = max(round(size / window), 1) * window
        self.confidence, self.most = confidence, most
        # Of ImageNet, as for all DINOv2 backbones.
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), persistent=False)

    def forward(self, batch: Batch) -> Float[Tensor, "b 2 h w"]:
        image = batch["image"]
        x = F.interpolate(image.float(), (self.size, self.size), mode="bilinear", antialias=True).clamp(-1, 1)
        output = self.network(pixel_values=(x / 2 + 0.5 - self.mean) / self.std)
        size = (image.shape[-2], image.shape[-1])
        rows = [self.detect(p, m, size) for p, m in zip(output.logits.sigmoid(), output.pred_masks, strict=True)]
        return torch.stack(rows).to(image.dtype)

    def detect(
        self, scores: Float[Tensor, "q k"], masks: Float[Tensor, "q p r"], size: tuple[int, int]
    ) -> Float[Tensor, "2 h w"]:
        """Turns one image's scores (queries by categories) and mask logits into a map of the given size."""
        score, which = scores.flatten().topk(min(self.most, scores.numel()))
        which = which[score > self.confidence]
        query, category = which // scores.shape[1], which % scores.shape[1]
        logits = F.interpolate(masks[query][:, None].float(), size, mode="bilinear")[:, 0]
        return paint(logits > 0, category + 1, size)
