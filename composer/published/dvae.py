"""OpenAI's dVAE (Ramesh et al. 2021): two files, each a module that was pickled whole."""

from typing import Any

from torch import nn

from composer.networks.dvae import DVAE, LEVELS
from composer.networks.stored import specification
from composer.published.engine import Row
from composer.published.family import Family, Needs, Tensors

CLASSES = {
    "dall_e.encoder": ("Encoder", "EncoderBlock"),
    "dall_e.decoder": ("Decoder", "DecoderBlock"),
    "dall_e.utils": ("Conv2d",),
    "torch.nn.modules.container": ("Sequential",),
    "torch.nn.modules.activation": ("ReLU",),
    "torch.nn.modules.linear": ("Identity",),
    "torch.nn.modules.pooling": ("MaxPool2d",),
    "torch.nn.modules.upsampling": ("Upsample",),
}
"""What the two files name, by module."""


def _configure(tensors: Tensors, size: int, needs: Needs) -> dict[str, Any]:
    first, last = "blocks.input.w", "blocks.output.conv.w"
    for half, swapped in (("encoder", False), ("decoder", True)):
        if (tensors[f"{half}.{first}"].shape[1] != 3) != swapped:
            raise ValueError(f"expected the encoder, then the decoder; the {half} is another network")
    blocks = {name.split(".")[3] for name in tensors if name.startswith("encoder.blocks.group_1.block_")}
    codes, width = tensors[f"encoder.{last}"].shape[0], tensors[f"encoder.{first}"].shape[0]
    start = tensors[f"decoder.{first}"].shape[0]
    return {"autoencoders": [specification(DVAE, codes=codes, width=width, start=start, blocks=len(blocks))]}


def _rows(weights: nn.Module, needs: Needs) -> list[Row]:
    assert isinstance(weights, DVAE)
    made = []
    for half in ("encoder", "decoder"):
        names = {f"{half}.first": f"{half}.blocks.input", f"{half}.last": f"{half}.blocks.output.conv"}
        for i in range(LEVELS):
            for j in range(weights.blocks):
                ours, theirs = f"{half}.levels.{i}.{j}", f"{half}.blocks.group_{i + 1}.block_{j + 1}"
                names |= {f"{ours}.convs.{k}": f"{theirs}.res_path.conv_{k + 1}" for k in range(4)}
                if isinstance(weights.get_submodule(f"{ours}.skip"), nn.Conv2d):
                    names[f"{ours}.skip"] = f"{theirs}.id_path"
        for ours, theirs in names.items():
            made += [Row(f"{ours}.weight", (f"{theirs}.w",)), Row(f"{ours}.bias", (f"{theirs}.b",))]
    return made


FAMILIES = {
    "dvae": Family(
        "OpenAI's dVAE: images to codes, and back",
        "modified MIT",
        {"encoder.pkl with decoder.pkl": (150, 97_616_006)},
        ("blocks.input.w", "blocks.output.conv.w"),
        _configure,
        _rows,
        parts={"encoder.": "encoder.pkl", "decoder.": "decoder.pkl"},
    ),
}
