"""The layout of ADM's U-Nets, which GLIDE, Karlo and, under other names, Alibaba's networks share."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from composer.networks.attention import Attention
from composer.networks.unet import ResBlock, UNet
from composer.published.engine import COPY, TO_LINEAR, Row, Transform, pair, regroup


@dataclass(frozen=True)
class Layout:
    """Names of a published U-Net's parts.

    Attributes:
        time: The MLP of the time.
        places: The first convolution and the encoder, the middle, the decoder, the last layers.
        block: A residual block's norm, convolution, projection of the embedding, norm, convolution, and skip.
        attention: Norm, queries with keys and values, the context's keys and values, and output.
        bare: Whether a block that halves the size stands alone, not in a list with its attention.
        by_head: Whether queries, keys and values of one head stand together.
    """

    time: str = "time_embed"
    places: tuple[str, str, str, str] = ("input_blocks", "middle_block", "output_blocks", "out")
    block: tuple[str, str, str, str, str, str] = (
        *("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3", "skip_connection"),
    )
    attention: tuple[str, str, str, str] = ("norm", "qkv", "encoder_kv", "proj_out")
    bare: bool = False
    by_head: bool = True


OPENAI = Layout()
ALIBABA = Layout(
    "time_embedding",
    ("encoder", "middle", "decoder", "head"),
    ("layer1.0", "layer1.2", "embedding.1", "layer2.0", "layer2.3", "shortcut"),
    ("norm", "to_qkv", "context_kv", "proj"),
    bare=True,
    by_head=False,
)


def plan(tensors: Mapping[str, Tensor], layout: Layout, **also: Any) -> dict[str, Any]:
    """Reads the arguments of a `UNet` from the shapes of published weights.

    Args:
        tensors: The weights.
        layout: Their names.
        also: What shapes do not say: `head_dim` or `heads`, and the rate of dropout.

    Raises:
        ValueError: They are not those of such a network.
    """
    encoder, _, decoder, last = layout.places
    first, time = tensors.get(f"{encoder}.0.0.weight", tensors.get(f"{encoder}.0.weight")), f"{layout.time}.0.weight"
    steps, ups = _count(tensors, encoder), _upsamplers(tensors, layout)
    if first is None or time not in tensors or f"{last}.2.weight" not in tensors or _count(tensors, decoder) != steps:
        raise ValueError(f"expected a U-Net with the parts {layout.time}, {', '.join(layout.places)}")
    levels = ups + 1
    blocks, left = divmod(steps, levels)
    if left or blocks < 2 or first.ndim != 4 or first.shape[1] < 3:
        raise ValueError(f"expected as many blocks at each of {levels} levels, found {steps} steps of the encoder")
    starts = [1 + i * blocks for i in range(levels)]  # the first block of each level
    widths = [tensors[f"{encoder}.{i}.0.{layout.block[1]}.weight"].shape[0] for i in starts]
    width, vector_dim = tensors[time].shape[1], tensors[time].shape[0]
    attends = [f"{encoder}.{i}.1.{layout.attention[1]}.weight" in tensors for i in starts]
    context = [x for name, x in tensors.items() if name.endswith(f".{layout.attention[2]}.weight")]
    embedded = tensors[f"{encoder}.1.0.{layout.block[2]}.weight"].shape[0]
    return {
        "width": width,
        "multipliers": [w / width for w in widths],
        "blocks": blocks - 1,
        "attention": [2**i for i, attend in enumerate(attends) if attend],
        "vector_dim": vector_dim,
        "token_dim": context[0].shape[1] if context else 0,
        "spatial_dim": first.shape[1] - 3,
        "scale_shift": embedded == 2 * widths[0],
        "variances": tensors[f"{last}.2.weight"].shape[0] == 6,
        "group_width": 1,
        **also,
    }


def _count(tensors: Mapping[str, Tensor], place: str) -> int:
    """Numbered steps of a place."""
    return len({name.split(".")[1] for name in tensors if name.startswith(f"{place}.")})


def _upsamplers(tensors: Mapping[str, Tensor], layout: Layout) -> int:
    """Blocks of the decoder that double the size: the residual blocks that do not come first in their step."""
    conv = f".{layout.block[1]}.weight"
    steps = [name.split(".") for name in tensors if name.startswith(f"{layout.places[2]}.") and name.endswith(conv)]
    return sum(parts[2] != "0" for parts in steps)


def unet_rows(network: UNet, layout: Layout, prefix: str = "denoiser.network.") -> list[Row]:
    """The rows of a U-Net.

    Args:
        network: Ours, also on the meta device.
        layout: Names of theirs.
        prefix: Of our names.
    """
    encoder, middle, decoder, last = layout.places
    rows = [*pair("embed.0", f"{layout.time}.0"), *pair("embed.2", f"{layout.time}.2")]
    rows += pair("first", f"{encoder}.0" if layout.bare else f"{encoder}.0.0")
    for i, block in enumerate(network.encoder):
        bare = layout.bare and _of(block).scale < 1
        rows += _block_rows(f"encoder.{i}", block, f"{encoder}.{i + 1}", layout, "" if bare else ".0")
    for i, block in enumerate(network.middle):
        place = i if i == 0 or network.middle[0].attention is None else 2
        rows += _block_rows(f"middle.{i}", block, middle, layout, f".{place}", f".{place + 1}")
    for ours, block, step, place in _decoder(network):
        rows += _block_rows(ours, block, f"{decoder}.{step}", layout, f".{place}")
    rows += [*pair("last.0", f"{last}.0"), *pair("last.2", f"{last}.2")]
    return [Row(prefix + row.ours, row.theirs, row.how) for row in rows]


def _of(block: nn.Module) -> ResBlock:
    if not isinstance(block, ResBlock):
        raise ValueError("expected a plan that resamples by residual blocks")
    return block


def _decoder(network: UNet) -> Iterator[tuple[str, nn.Module, int, int]]:
    """Our name, block, step and place within the step, of each block of the decoder."""
    step = 0
    for i, blocks in enumerate(network.decoder):
        assert isinstance(blocks, nn.ModuleList)
        for j, block in enumerate(blocks):
            yield f"decoder.{i}.{j}", block, step, 0
            if j == len(blocks) - 1 and i < len(network.upsamplers):
                yield f"upsamplers.{i}", network.upsamplers[i], step, 2 if _of(block).attention else 1
            step += 1


def _block_rows(
    ours: str, block: nn.Module, theirs: str, layout: Layout, place: str, attention: str = ".1"
) -> list[Row]:
    """The rows of a residual block at a place of a step, and of the attention that follows it."""
    norm1, conv1, embedding, norm2, conv2, skip = (f"{theirs}{place}.{name}" for name in layout.block)
    one = _of(block)
    rows = [*pair(f"{ours}.norm1", norm1), *pair(f"{ours}.conv1", conv1)]
    rows += pair(f"{ours}.{'added' if one.scale_shift is None else 'scale_shift'}", embedding)
    rows += [*pair(f"{ours}.norm2", norm2), *pair(f"{ours}.conv2", conv2)]
    rows += [] if isinstance(one.skip, nn.Identity) else pair(f"{ours}.skip", skip)
    return rows + ([] if one.attention is None else _attention_rows(ours, one.attention, theirs + attention, layout))


def _attention_rows(ours: str, attention: Attention, theirs: str, layout: Layout) -> list[Row]:
    norm, qkv, context, out = (f"{theirs}.{name}" for name in layout.attention)
    heads = attention.out.in_features // attention.head_dim

    def parts(count: int) -> Transform:
        return regroup(heads, count) if layout.by_head else TO_LINEAR

    rows = [*pair(f"{ours}.attention.norm", norm, COPY), *pair(f"{ours}.attention.qkv", qkv, parts(3))]
    rows += [] if attention.context is None else pair(f"{ours}.attention.context", context, parts(2))
    return rows + pair(f"{ours}.attention.out", out, TO_LINEAR)


def transformer_rows(count: int, heads: int, ours: str, theirs: str = "transformer.resblocks") -> list[Row]:
    """The rows of OpenAI's transformer blocks.

    Args:
        count: Number of blocks.
        heads: Attention heads of each.
        ours: Prefix of our blocks.
        theirs: Prefix of theirs.
    """
    names: Sequence[tuple[str, str, Transform]] = (
        ("attention_norm", "ln_1", COPY),
        ("mlp_norm", "ln_2", COPY),
        ("qkv", "attn.c_qkv", regroup(heads, 3)),
        ("out", "attn.c_proj", COPY),
        ("mlp.0", "mlp.c_fc", COPY),
        ("mlp.2", "mlp.c_proj", COPY),
    )
    return [
        row for i in range(count) for a, b, how in names for row in pair(f"{ours}.{i}.{a}", f"{theirs}.{i}.{b}", how)
    ]
