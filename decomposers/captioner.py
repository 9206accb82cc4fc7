"""Captions for images without one, by BLIP from transformers."""

import json
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from composer.storage.pretrained import locate, sealed


class Captioner(nn.Module):
    """Describes images in a sentence (BLIP, Li et al. 2022). For `composer.data.captions.caption_folder`.

    Not a decomposer: its output becomes the dataset's captions, which people can read and correct.

    Args:
        weights: Folder with ``config.json``, ``preprocessor_config.json``, the tokenizer's files and the weights, as
            transformers writes them: a path, or ``hub:owner/name@revision``. The default's licence is BSD-3-Clause.
        length: Maximum number of word pieces per caption.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        weights: str = "hub:Salesforce/blip-image-captioning-base@82a37760796d32b1411fe092ab5d4e227313294b",
        length: int = 40,
    ):
        super().__init__()
        folder = locate(weights, wanted="weights of a BLIP captioner", who="Captioner")
        for name in ("config.json", "preprocessor_config.json"):
            locate(str(folder / name), wanted=name, who="Captioner")
        statistics = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(statistics[f"image_{name}"]).view(3, 1, 1), persistent=False)

        from transformers import BertTokenizerFast, BlipForConditionalGeneration

        with sealed(folder):
            self.network: Any = BlipForConditionalGeneration.from_pretrained(folder, local_files_only=True)
            self.tokenizer: Any = BertTokenizerFast.from_pretrained(folder, local_files_only=True)
        self.network.eval().requires_grad_(False)
        self.length = length

    @torch.no_grad()
    def captions(self, image: Float[Tensor, "b 3 h w"]) -> list[str]:
        """Describes images in [-1, 1], by greedy decoding."""
        size = self.network.config.vision_config.image_size
        x = F.interpolate(image.float(), (size, size), mode="bicubic", antialias=True).clamp(-1, 1)
        x = ((x.to(self.mean.device) + 1) / 2 - self.mean) / self.std
        ids = self.network.generate(pixel_values=x, max_new_tokens=self.length, do_sample=False, num_beams=1)
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]
