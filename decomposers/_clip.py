"""Loads CLIP models, shared by all decomposers that use them."""

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from composer.decomposition import Decomposer
from composer.storage.pretrained import hub_file, load_tensors, locate, network_allowed, sealed
from composer.storage.schema import plain, read_json, record

from .tokens import Tokens, write_texts

DEFAULT_MODEL = "ViT-L-14-336-quickgelu"
DEFAULT_WEIGHTS = (  # OpenAI's, in open_clip's layout; MIT
    "hub:timm/vit_large_patch14_clip_336.openai@81e38efc4637de5023b10e75a7f9bd1c6fa6b010:open_clip_model.safetensors"
)
TIMM = "timm_model_name"
NAME = re.compile(r"[\w.-]+")
ANYTHING = plain(largest=10_000_000, most=1000)
CONFIG = record(
    {"model_cfg": record({"text_cfg": record({}), "vision_cfg": record({})})}, {"preprocess_cfg": record({})}
)
_OPENAI_FACTS = ("input_resolution", "context_length", "vocab_size")


@dataclass(frozen=True)
class Clip:
    """A frozen CLIP with its preprocessing.

    Runs on the device of its input, in float32 and outside autocast, unless a precision is given: its attention is
    sequence-first, which autocast makes many times slower on a CPU. Its weights take no gradients; images may.

    Attributes:
        network: open_clip's model.
        tokens: Its tokenizer; None if it doesn't use CLIP's word pieces.
        size: Side of the images that it reads, in pixels.
        mean: Of its training images, per channel, for values in [0, 1].
        std: The same for the standard deviation.
    """

    network: nn.Module
    tokens: Tokens | None
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def encode_image(
        self, image: Float[Tensor, "b 3 h w"], precision: torch.dtype | None = None
    ) -> Float[Tensor, "b d"]:
        """Encodes the central square of images in [-1, 1], resized (antialiased bicubic) as in CLIP."""
        scale = max(self.size[0] / image.shape[2], self.size[1] / image.shape[3])
        inner = [max(side, round(n * scale)) for side, n in zip(self.size, image.shape[2:], strict=True)]
        x = image.float()
        if inner != list(image.shape[2:]):
            x = F.interpolate(x, inner, mode="bicubic", antialias=True).clamp(-1, 1)
        top, left = ((n - side) // 2 for n, side in zip(inner, self.size, strict=True))
        x = x[:, :, top : top + self.size[0], left : left + self.size[1]]
        mean, std = (x.new_tensor(v)[:, None, None] for v in (self.mean, self.std))
        network: Any = self.network.to(image.device)
        with torch.autocast(image.device.type, precision, enabled=precision is not None):
            features: Tensor = network.encode_image(((x + 1) / 2 - mean) / std)
        return features.to(image.dtype)

    @torch.no_grad()
    def encode_text(
        self, captions: Sequence[str], device: torch.device, empty: bool = False
    ) -> tuple[Float[Tensor, "b n w"], Float[Tensor, "b d"], Float[Tensor, "b n"]]:
        """Encodes captions.

        Args:
            captions: The captions.
            device: Where to.
            empty: Whether an empty caption is encoded like any other, as start and end.

        Returns:
            Word embeddings after the last norm and before the projection; sentence embeddings, projected; a mask that
            is 1 where there is a word. All are zero where the caption is empty, unless `empty` is set.
        """
        if self.tokens is None:
            raise ValueError("this model has its own tokenizer; captions need a model with CLIP's word pieces")
        rows = [self.tokens.encode(caption, empty) for caption in captions]
        ids, real = torch.stack(rows).to(device).unbind(-1)
        network: Any = self.network.to(device)
        with torch.autocast(device.type, enabled=False):
            out = network.forward_intermediates(text=ids, text_indices=1, normalize_intermediates=True, normalize=False)
        mask = real.float()
        return out["text_intermediates"][-1] * mask[..., None], out["text_features"] * mask[:, :1], mask


class ClipDecomposer(Decomposer):
    """Base of the decomposers that use a CLIP.

    Args:
        model: open_clip's name of an architecture; weights with their own configuration override it.
        weights: open_clip's tag, or a folder, file, ``asset:`` or ``hub:`` name (see `load_clip`).
    """

    code_licence = "MIT (open_clip)"
    weights_licence = "MIT (OpenAI's); others: see their model cards"
    weights_arguments = ("weights",)

    def __init__(self, model: str = DEFAULT_MODEL, weights: str = DEFAULT_WEIGHTS):
        super().__init__()
        self._clip = load_clip(model, weights, type(self).__name__)  # shared, and no submodule: it is not saved

    def networks(self) -> tuple[nn.Module, ...]:
        return (self._clip.network,)

    def unread(self, text: str) -> tuple[str, ...]:
        """See `Tokens.unread`."""
        return () if self._clip.tokens is None else self._clip.tokens.unread(text)


def load_clip(model: str, weights: str, who: str) -> Clip:
    """Loads a CLIP once; returns the loaded one after that.

    Args:
        model: open_clip's name of an architecture; weights with their own configuration (a folder, OpenAI's)
            override it.
        weights: A tag that open_clip knows for `model`, downloaded without a pinned revision; or the source (see
            `locate`) of

            - a folder with ``open_clip_config.json`` and ``open_clip_model.safetensors``, and ``words.txt`` where it
              counts its word pieces compactly (see `Tokens`),
            - OpenAI's archive (``ViT-L-14.pt``),
            - a file of tensors for `model`.
        who: Who wants it, for error messages.

    Raises:
        FileNotFoundError: The weights are not on this machine and cannot be downloaded.
        ValueError: The weights could run code, or don't match the model.
    """
    import open_clip

    if weights in open_clip.list_pretrained_tags_by_model(model):
        facts = open_clip.get_pretrained_cfg(model, weights)
        repo, _, file = facts["hf_hub"].rpartition("/")
        file = file or "open_clip_model.safetensors"
        path = hub_file(repo, file, revision=None, wanted=f"{file} of {model}, {weights}", who=who)
        return _load_file(path, model, bool(facts.get("quick_gelu")), tuple(facts["mean"]), tuple(facts["std"]))
    path = locate(weights, wanted=f"CLIP weights ({model})", who=who)
    if path.is_dir():
        return _load_folder(path)
    if _is_openai(path):
        return _load_openai(path)
    return _load_file(path, model, None, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)


@lru_cache(maxsize=4)
def _load_folder(path: Path) -> Clip:
    import open_clip

    for file in ("open_clip_config.json", "open_clip_model.safetensors"):
        if not (path / file).is_file():
            raise FileNotFoundError(
                f"a CLIP folder holds open_clip_config.json and open_clip_model.safetensors; {path} lacks {file}"
            )
    config = read_json(path / "open_clip_config.json", 1_000_000)
    for check in (CONFIG, ANYTHING):
        check(config, str(path / "open_clip_config.json"))
    _refuse_foreign_towers(config["model_cfg"], str(path))
    with sealed(path, network_allowed()):
        network = open_clip.create_model(f"local-dir:{path}", require_pretrained=True)
    own = config["model_cfg"]["text_cfg"].keys() & {"hf_tokenizer_name", "hf_model_name"}
    words = path / "words.txt"
    facts = open_clip.get_model_preprocess_cfg(network)
    return _frozen(network, facts["mean"], facts["std"], not own, str(words) if words.exists() else None)


@lru_cache(maxsize=4)
def _load_file(
    path: Path, model: str, quick_gelu: bool | None, mean: tuple[float, ...], std: tuple[float, ...]
) -> Clip:
    import open_clip

    config = open_clip.get_model_config(model) if model in open_clip.list_models() else None  # it would download others
    if config is None:
        raise ValueError(f"open_clip knows no architecture {model!r}; open_clip.list_models() lists them")
    _refuse_foreign_towers(config, model)
    forced = {} if quick_gelu is None else {"quick_gelu": quick_gelu}
    try:
        with sealed(path, network_allowed()):
            network = open_clip.create_model(model, pretrained=str(path), **forced)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} is refused: it holds pickled objects that may run code; use safetensors") from error
    own = config["text_cfg"].keys() & {"hf_tokenizer_name", "hf_model_name"}
    return _frozen(network, mean, std, not own, None)


def _refuse_foreign_towers(config: Mapping[str, Any], who: str) -> None:
    """Refuses a CLIP with a tower from the hub if the network is not allowed, and the hub's code always.

    Raises:
        ValueError: It names one, and the network is not allowed.
    """
    named = [tower.get(key) for tower, key in ((config["text_cfg"], "hf_model_name"), (config["vision_cfg"], TIMM))]
    foreign = [str(name) for name in named if name is not None and (name is named[0] or not NAME.fullmatch(str(name)))]
    if foreign and not network_allowed():
        raise ValueError(
            f"the CLIP {who} has a part on the hub, {', '.join(map(repr, foreign))}; --allow-network "
            "allows its download"
        )
    if foreign:
        from transformers import dynamic_module_utils

        dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0  # else transformers asks whether code may run


@lru_cache(maxsize=4)
def _load_openai(path: Path) -> Clip:
    """OpenAI's models use the quick approximation of GELU, which the shapes in the file don't tell."""
    import open_clip
    from open_clip.model import build_model_from_openai_state_dict

    state = _read_torchscript(path) if _is_torchscript(path) else load_tensors(path)
    network = build_model_from_openai_state_dict(dict(state), quick_gelu=True, cast_dtype=None).float()
    return _frozen(network, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD, True, None)


def _read_torchscript(path: Path) -> dict[str, Tensor]:
    load: Any = torch.jit.load
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated, but the files need it
        return dict(load(path, map_location="cpu").state_dict())


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _is_openai(path: Path) -> bool:
    if path.suffix == ".safetensors":
        return False
    return _is_torchscript(path) or all(name in load_tensors(path) for name in _OPENAI_FACTS)


def _frozen(network: Any, mean: Sequence[float], std: Sequence[float], reads: bool, words: str | None) -> Clip:
    network.eval().requires_grad_(False)
    size = network.visual.image_size
    length = getattr(network, "context_length", None) or network.text.context_length
    return Clip(
        network=network,
        tokens=Tokens(length, words) if reads else None,
        size=(size, size) if isinstance(size, int) else tuple(size),
        mean=tuple(mean),
        std=tuple(std),
    )


def barcode(value: Float[Tensor, "b *n d"], label: str) -> Float[Tensor, "b 3 h w"]:
    """Draws embeddings as columns of colour; equal columns are equal numbers.

    Args:
        value: One embedding per row, or several, drawn one below the other; in units of the root mean square, blue
            below zero, red above.
        label: Written below.
    """
    x = value.detach().float().cpu().reshape(len(value), -1, value.shape[-1])
    x = x / x.square().mean(2, keepdim=True).sqrt().clamp(min=1e-8)
    colours = torch.stack([x.tanh(), -x.abs().tanh(), (-x).tanh()], 1)
    columns = F.interpolate(colours, (96, 128), mode="nearest")
    words = write_texts([label])[:, :, :32].expand(len(x), -1, -1, -1)
    return torch.cat([columns, words], 2).to(value.device)


def cosine_distance(wanted: Float[Tensor, "b d"], got: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
    """1 - cosine: 0 where both point the same way, 1 at a right angle, at most 2."""
    return 1 - F.cosine_similarity(wanted.float(), got.float(), dim=1)
