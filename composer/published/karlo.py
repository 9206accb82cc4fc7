"""Karlo (Lee et al. 2022), Kakao Brain's unCLIP: the decoder, in its authors' layout."""

from typing import Any

from torch import Tensor, nn

from composer.decomposition import Decomposer
from composer.networks.unet import UNet
from composer.published.engine import Row, Transform, interleave, pair
from composer.published.family import Family, Needs, Tensors, condition, configuration, decomposer, denoiser
from composer.published.unet import OPENAI, plan, unet_rows
from composer.storage.building import build

CLIP = "hub:timm/vit_large_patch14_clip_224.openai@main:open_clip_model.safetensors"
MODEL = "ViT-L-14-quickgelu"
LICENCE = "CreativeML OpenRAIL-M: commercial use is allowed, its list of harmful uses is not"
EMPTY = 3
"""Entries of the empty caption: start, end, sentence."""

TOKENS = 4
"""Tokens that an image embedding becomes."""


def reader(name: str, needs: Needs, **arguments: Any) -> dict[str, Any]:
    """The specification of a decomposer that reads with Karlo's CLIP."""
    return decomposer(name, model=MODEL, weights=needs.clip or CLIP, **arguments)


def _configure(tensors: Tensors, size: int, needs: Needs, head: int = 64) -> dict[str, Any]:
    network = plan(tensors, OPENAI, head_dim=head)
    ports = {"vector_dim": network["vector_dim"], "token_dim": network["token_dim"]}
    width = tensors["cf_param"].shape[0]
    text = tensors["text_seq_proj.0.weight"].shape[1]
    conditions = {
        "caption": condition("Text", in_dim=text, norm="after", null_length=EMPTY, **ports),
        "semantics": condition("Vector", in_dim=width, num_tokens=TOKENS, hidden=0, has_null=True, **ports),
    }
    decomposers = {"caption": reader("Caption", needs), "semantics": reader("Semantics", needs, scaled=False)}
    return configuration(size, denoiser(network, "SquaredCosine"), conditions, decomposers, guidance=4.0)


def empty_caption(needs: Needs) -> Tensor:
    """CLIP's encoding of the empty caption, which Karlo reads where there is none: start, end and sentence, (3 d+1).

    Raises:
        FileNotFoundError: CLIP's weights are not on this machine, and cannot be fetched.
    """
    value = build(reader("Caption", needs, empty=True), Decomposer).from_text("")[0]
    return value[value[:, -1] > 0.5]


def decoder_rows(weights: nn.Module, needs: Needs) -> list[Row]:
    """The rows of what the decoder reads; without the U-Net's."""
    caption, semantics = "conditions.caption", "conditions.semantics"
    how = Transform("CLIP's encoding of the empty caption", lambda: empty_caption(needs))
    return [
        Row(f"{caption}.nothing", (), how),
        *pair(f"{caption}.to_tokens.0", "text_seq_proj.0"),
        *pair(f"{caption}.to_tokens.1", "text_seq_proj.1"),
        *pair(f"{caption}.to_vector.0", "text_feat_proj"),
        Row(f"{semantics}.nothing", ("cf_param",)),
        *pair(f"{semantics}.to_vector.0", "clip_emb"),
        *pair(f"{semantics}.to_tokens.0", "clip_tok_proj", interleave(TOKENS)),
    ]


def _rows(weights: nn.Module, needs: Needs) -> list[Row]:
    network = weights.get_submodule("denoiser.network")
    assert isinstance(network, UNet)
    return [*unet_rows(network, OPENAI), *decoder_rows(weights, needs)]


FAMILIES = {
    "karlo-decoder": Family(
        "Karlo: captions and CLIP's image embeddings to 64 px",
        LICENCE,
        {"decoder-ckpt-step=01000000-of-01000000.ckpt": (595, 893_318_086)},
        ("cf_param", "clip_emb.weight", "text_seq_proj.0.weight", "input_blocks.0.0.weight"),
        _configure,
        _rows,
        prefix="model.",
    ),
}
