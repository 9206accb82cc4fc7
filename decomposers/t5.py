"""Captions as the word encodings of a frozen T5."""

import json
import pickle
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from composer.decomposition import Batch, Decomposer
from composer.names import Kind
from composer.storage.pretrained import locate, sealed, unconnected

from ._clip import barcode, cosine_distance
from .tokens import captions_device, lost_words

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class T5(Decomposer):
    """T5's encodings of a caption's word pieces (Raffel et al. 2020), as in Imagen (section 2.1).

    Imagen used XXL, 4.8 billion parameters; the larger, the better its images followed the text (appendix D.1). The
    encoder is frozen, so encodings can be computed once: ``composer cache`` writes them beside the images. It is loaded
    when the first caption is encoded, so a training with cached encodings never loads it.

    A caption that is too long is cut, keeping the end token; an empty one is all zeros. Captions are padded to the
    longest of their batch, which changes their encodings only by rounding.

    Args:
        weights: Folder with ``config.json``, the tokenizer's files and the weights as transformers writes them, of any
            size, the whole T5 or its encoder alone: a path, or ``hub:owner/name@revision``. The default, v1.1 Large,
            has 341 million parameters in its encoder and encodings of width 1024; Base has 768, XL 2048, XXL 4096.
        length: Word pieces per caption, including the end token. 77 in DeepFloyd IF.
        precision: Of the weights and of the computation. bf16 rather than float16, as T5 exceeds float16's range.
    """

    kind = Kind.TEXT
    code_licence = "Apache-2.0 (transformers)"
    weights_licence = "Apache-2.0 (T5 v1.1)"
    weights_arguments = ("weights",)

    def __init__(
        self,
        weights: str = "hub:google/t5-v1_1-large@a98b0fcd0b8137ded40cdf0c0cf0ee884e7c9726",
        length: int = 77,
        precision: Literal["bf16", "fp32"] = "bf16",
    ):
        super().__init__()
        if length < 2:
            raise ValueError(f"a caption needs at least one piece and the end token, found length={length}")
        if precision not in DTYPES:
            raise ValueError(f"expected the precision bf16 or fp32, found {precision!r}")
        self._folder = locate(weights, wanted="weights of a T5", who="T5")
        config = locate(str(self._folder / "config.json"), wanted="config.json", who="T5")
        kind = json.loads(config.read_text(encoding="utf-8")).get("model_type")
        if kind != "t5":
            raise ValueError(f"T5: expected a t5 in {self._folder}, found {kind}")
        self.length, self.precision = length, precision

        from transformers import T5TokenizerFast

        with unconnected():
            self._tokenizer: Any = T5TokenizerFast.from_pretrained(self._folder, local_files_only=True)

    def can_read(self, batch: Batch) -> bool:
        return "caption" in batch

    @torch.no_grad()
    def forward(self, batch: Batch) -> Float[Tensor, "b n d"]:
        """Encodes the captions.

        Returns:
            One encoding per word piece, after the encoder's last norm, in float32; the last channel is 1 for real
            pieces. Padding is 0.
        """
        device = captions_device(batch)
        network = _load(self._folder, DTYPES[self.precision]).to(device)  # shared, and no submodule: it is not saved
        read = self._tokenizer(
            batch["caption"], padding=True, truncation=True, max_length=self.length, return_tensors="pt"
        )
        with torch.autocast(device.type, enabled=False):
            out = network(read["input_ids"].to(device), attention_mask=read["attention_mask"].to(device))
        said = torch.tensor([[bool(caption.strip())] for caption in batch["caption"]])
        real = (read["attention_mask"].bool() & said).to(device)[..., None]
        value = torch.cat([torch.where(real, out.last_hidden_state.float(), 0), real.float()], 2)
        return F.pad(value, (0, 0, 0, self.length - value.shape[1]))

    def from_text(self, text: str) -> Float[Tensor, "b n d"]:
        """Encodes a caption."""
        value: Tensor = self({"caption": [text]})
        return value

    def networks(self) -> tuple[nn.Module, ...]:
        """The encoder on the meta device: XXL's 10 GB of weights are too much to load just for counting."""
        from transformers import AutoConfig, T5EncoderModel

        with unconnected():
            config = AutoConfig.from_pretrained(self._folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            return (T5EncoderModel(config).to(DTYPES[self.precision]),)

    def unread(self, text: str) -> tuple[str, ...]:
        """Lists words with an unknown piece, and words beyond the length."""
        encode = partial(self._tokenizer.encode, add_special_tokens=False)
        return lost_words(text, self.length - 1, encode, lambda piece: piece != self._tokenizer.unk_token_id)

    def preview(self, value: Float[Tensor, "b n d"]) -> Float[Tensor, "b 3 h w"]:
        """Draws the encodings' numbers, one line per word piece."""
        words = [row[row[:, -1] > 0.5, :-1] for row in value]
        lines = [row if len(row) else row.new_zeros(1, row.shape[1]) for row in words]
        return torch.cat([barcode(row[None], "t5: numbers only") for row in lines])

    def distance(self, wanted: Float[Tensor, "b n d"], got: Float[Tensor, "b n d"]) -> Float[Tensor, " b"]:
        """1 - cosine of the words' mean encodings, between 0 and 2; 1 if one of the two captions is empty."""
        both_empty = ~(wanted[..., -1] > 0.5).any(1) & ~(got[..., -1] > 0.5).any(1)
        return torch.where(both_empty, 0, cosine_distance(_mean(wanted), _mean(got)))


def _mean(value: Float[Tensor, "b n d1"]) -> Float[Tensor, "b d"]:
    return value[..., :-1].sum(1) / value[..., -1:].sum(1).clamp(min=1)


@lru_cache(maxsize=2)
def _load(folder: Path, dtype: torch.dtype) -> Any:
    """Loads an encoder once; returns the loaded one after that.

    Raises:
        ValueError: The weights could run code, or don't match the configuration.
    """
    from transformers import T5EncoderModel

    class Encoder(T5EncoderModel):
        _keys_to_ignore_on_load_unexpected = ("decoder", "lm_head")  # most folders contain the whole T5

    try:
        with sealed(folder):
            network, info = Encoder.from_pretrained(
                folder, local_files_only=True, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
            )
    except pickle.UnpicklingError as error:
        raise ValueError(f"{folder} is refused: it holds pickled objects that may run code; use safetensors") from error
    wrong = sorted(info["missing_keys"]) + sorted(key for key, *_ in info["mismatched_keys"])
    if wrong:
        raise ValueError(f"T5: {len(wrong)} weights in {folder} are missing or of another shape (first: {wrong[0]})")
    return network.eval().requires_grad_(False)
