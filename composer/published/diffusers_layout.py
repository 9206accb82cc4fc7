"""The layout of the diffusers library: reads Karlo's decoder from it, writes U-Nets in it. It need not be installed."""

from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from composer.cascade.stage import Stage
from composer.networks.attention import Attention
from composer.networks.norm import GroupNorm
from composer.networks.unet import ResBlock, UNet
from composer.prior.interface import Prior
from composer.published.diffusers_prior import prior_part
from composer.published.engine import JOIN, Row, pair, revert, under
from composer.published.family import Family, Needs, Tensors
from composer.published.karlo import (
    EXPERTS,
    HEAD,
    LICENCE,
    TOKENS,
    configure_decoder,
    configure_upsampler,
    decoder_rows,
    upsampler_rows,
)
from composer.storage.files import flush_file, printable, replacing_all, write_atomically, write_json
from composer.storage.finding import find_model, kind_of
from composer.storage.folder import read_model
from composer.storage.loading import require_fit

T = TypeVar("T")

Parts = dict[str, tuple[dict[str, Any], dict[str, Tensor]]]
"""Folder -> configuration and weights."""

WEIGHTS = "diffusion_pytorch_model.safetensors"
DECODER, TEXT_PROJ = "decoder", "text_proj"
"""Karlo's folders with what our decoder is made of."""

SUPER_RES = ("super_res_first", "super_res_last")
"""Those of its upsampler: the network of all steps but the last, and that of the last."""

ADAPTERS = {
    "cf_param": "learned_classifier_free_guidance_embeddings",
    "clip_emb": "clip_image_embeddings_project_to_time_embeddings",
    "clip_tok_proj": "clip_extra_context_tokens_proj",
    "text_feat_proj": "embedding_proj",
    "text_seq_proj.0": "encoder_hidden_states_proj",
    "text_seq_proj.1": "text_encoder_hidden_states_norm",
}
"""The authors' names -> diffusers', of what stands before the U-Net."""


def plan(tensors: Tensors, head_dim: int) -> dict[str, Any]:
    """Reads the arguments of a `UNet` from the shapes of weights in diffusers' layout.

    Args:
        tensors: The weights.
        head_dim: Channels of an attention head, which shapes do not say.

    Raises:
        KeyError: They are not those of such a network.
    """
    levels = range(_count(tensors, "down_blocks."))
    widths = [tensors[f"down_blocks.{i}.resnets.0.conv1.weight"].shape[0] for i in levels]
    vector_dim, width = tensors["time_embedding.linear_1.weight"].shape
    context = [x.shape[1] for name, x in tensors.items() if name.endswith(".add_k_proj.weight")]
    embedded = tensors["down_blocks.0.resnets.0.time_emb_proj.weight"].shape[0]
    return {
        "width": width,
        "multipliers": [w / width for w in widths],
        "blocks": _count(tensors, "down_blocks.0.resnets."),
        "attention": [2**i for i in levels if f"down_blocks.{i}.attentions.0.to_q.weight" in tensors],
        "head_dim": head_dim,
        "vector_dim": vector_dim,
        "token_dim": context[0] if context else 0,
        "spatial_dim": tensors["conv_in.weight"].shape[1] - 3,
        "scale_shift": embedded == 2 * widths[0],
        "variances": tensors["conv_out.weight"].shape[0] == 6,
        "group_width": 1,
    }


def _count(tensors: Tensors, prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)})


def network_rows(network: UNet, ours: str = "denoiser.network.") -> list[Row]:
    """The rows of a U-Net, also on the meta device; `ours` is the prefix of our names."""
    rows = [*pair("embed.0", "time_embedding.linear_1"), *pair("embed.2", "time_embedding.linear_2")]
    rows += [*pair("first", "conv_in"), *pair("last.0", "conv_norm_out"), *pair("last.2", "conv_out")]
    for name, block, place, number in _blocks(network):
        rows += _block_rows(name, block, f"{place}.{number}")
        if block.attention is not None:
            attention = place.replace("resnets", "attentions")
            rows += _attention_rows(f"{name}.attention", block.attention, f"{attention}.{number}")
    return [replace(row, ours=ours + row.ours) for row in rows]


def _blocks(network: UNet) -> Iterator[tuple[str, ResBlock, str, int]]:
    """Our name, block, their list, and the place in it, of each residual block.

    Raises:
        ValueError: Some blocks are of another kind.
    """
    level = place = 0
    for i, block in enumerate(_residual(network.encoder)):
        if block.scale < 1:
            yield f"encoder.{i}", block, f"down_blocks.{level}.downsamplers", 0
            level, place = level + 1, 0
        else:
            yield f"encoder.{i}", block, f"down_blocks.{level}.resnets", place
            place += 1
    for i, block in enumerate(_residual(network.middle)):
        yield f"middle.{i}", block, "mid_block.resnets", i
    for i, blocks in enumerate(network.decoder):
        for j, block in enumerate(_residual(blocks)):
            yield f"decoder.{i}.{j}", block, f"up_blocks.{i}.resnets", j
    for i, block in enumerate(_residual(network.upsamplers)):
        yield f"upsamplers.{i}", block, f"up_blocks.{i}.upsamplers", 0


def _residual(blocks: nn.Module) -> list[ResBlock]:
    found = [block for block in blocks.children() if isinstance(block, ResBlock)]
    if len(found) < len(list(blocks.children())):
        raise ValueError("diffusers has no class for a U-Net that resamples by single convolutions")
    return found


def _block_rows(ours: str, block: ResBlock, theirs: str) -> list[Row]:
    rows = [*pair(f"{ours}.norm1", f"{theirs}.norm1"), *pair(f"{ours}.conv1", f"{theirs}.conv1")]
    embedding = "added" if block.scale_shift is None else "scale_shift"
    rows += pair(f"{ours}.{embedding}", f"{theirs}.time_emb_proj")
    rows += [*pair(f"{ours}.norm2", f"{theirs}.norm2"), *pair(f"{ours}.conv2", f"{theirs}.conv2")]
    return rows + ([] if isinstance(block.skip, nn.Identity) else pair(f"{ours}.skip", f"{theirs}.conv_shortcut"))


def _attention_rows(ours: str, attention: Attention, theirs: str) -> list[Row]:
    rows = [*pair(f"{ours}.norm", f"{theirs}.group_norm"), *pair(f"{ours}.out", f"{theirs}.to_out.0")]
    joined: dict[str, tuple[str, ...]] = {"qkv": ("to_q", "to_k", "to_v")}
    if attention.context is not None:
        joined["context"] = ("add_k_proj", "add_v_proj")
    for name, parts in joined.items():
        for kind in ("weight", "bias"):
            rows.append(Row(f"{ours}.{name}.{kind}", tuple(f"{theirs}.{part}.{kind}" for part in parts), JOIN))
    return rows


def _adapter_rows(weights: nn.Module, needs: Needs) -> list[Row]:
    """Karlo's rows of what stands before the U-Net, with diffusers' names."""

    def renamed(name: str) -> str:
        known = next(authors for authors in ADAPTERS if name == authors or name.startswith(f"{authors}."))
        return f"{TEXT_PROJ}.{ADAPTERS[known]}{name.removeprefix(known)}"

    return [replace(row, theirs=tuple(map(renamed, row.theirs))) for row in decoder_rows(weights, needs)]


def _configure(tensors: Tensors, size: int, needs: Needs) -> dict[str, Any]:
    decoder = {k.removeprefix(f"{DECODER}."): x for k, x in tensors.items() if k.startswith(f"{DECODER}.")}
    width = tensors[f"{TEXT_PROJ}.{ADAPTERS['cf_param']}"].shape[0]
    text = tensors[f"{TEXT_PROJ}.{ADAPTERS['text_seq_proj.0']}.weight"].shape[1]
    return configure_decoder(plan(decoder, HEAD), width, text, size, needs)


def _rows(weights: nn.Module, needs: Needs) -> list[Row]:
    network = weights.get_submodule("denoiser.network")
    assert isinstance(network, UNet)
    return [*under(f"{DECODER}.", network_rows(network)), *_adapter_rows(weights, needs)]


FAMILIES = {
    "karlo-decoder-diffusers": Family(
        "Karlo: captions and CLIP's image embeddings to 64 px, from two files in diffusers' layout",
        LICENCE,
        {f"karlo-v1-alpha's {DECODER} and {TEXT_PROJ}": (727, 893_318_086)},
        ("conv_in.weight", "mid_block.attentions.0.add_k_proj.weight"),
        _configure,
        _rows,
        parts={f"{part}.": f"{part}/{WEIGHTS}" for part in (DECODER, TEXT_PROJ)},
    ),
    "karlo-up256-diffusers": Family(
        "Karlo: 64 to 256 px, from two files in diffusers' layout",
        LICENCE,
        {"karlo-v1-alpha's super_res_first and super_res_last": (816, 1_383_159_046)},
        ("conv_in.weight", "down_blocks.0.resnets.0.time_emb_proj.weight"),
        lambda tensors, size, _: configure_upsampler(tensors, size, lambda own: plan(own, HEAD)),
        lambda weights, _: upsampler_rows(weights, network_rows),
        size=256,
        channels=6,
        parts={EXPERTS[key]: f"{part}/{WEIGHTS}" for key, part in zip(EXPERTS, SUPER_RES, strict=True)},
    ),
}


def export_diffusers(
    model: str | Path, out: str | Path, stage: str | None = None, plugins: Collection[str] = ()
) -> list[Path]:
    """Writes the network of a stage, or a prior, so that diffusers loads it.

    A U-Net of ADM's plan, alone, with classes or with the smaller image, becomes a `UNet2DModel` in `out` itself.
    One that reads captions and image embeddings as Karlo's decoder becomes a `UNet2DConditionModel` in ``out/decoder``
    and an `UnCLIPTextProjModel` in ``out/text_proj``, as in Karlo's own repository.

    A prior as Karlo's becomes a `PriorTransformer` in `out` itself.

    Args:
        model: The folder of a model, or of a prior; or the name of an included one.
        out: Where to; a folder that does not exist, or is empty.
        stage: The stage, by the name of its file without the suffix; None is the first. Not for priors.
        plugins: Modules that the user trusts.

    Returns:
        The folders that ``from_pretrained`` reads.

    Raises:
        FileNotFoundError: There is no model.
        FileExistsError: There is something in `out`.
        ValueError: diffusers has no class for this network, the model is damaged, or it has no such stage. Nothing has
            been written then.
    """
    model, out = find_model(model), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is not empty: choose another folder")
    is_prior = stage is None and kind_of(model) == "priors"
    parts, card = _prior(model, plugins) if is_prior else _stage(model, stage, plugins)
    with replacing_all(out) as new:
        for part, (settings, values) in parts.items():
            write_json(new / part / "config.json", settings)
            file = new / part / WEIGHTS
            save_file({k: x.contiguous() for k, x in values.items()}, file, metadata={"format": "pt"})
            flush_file(file)
        write_atomically(new / "README.md", card.encode())
    return [out / part for part in parts]


def _prior(model: Path, plugins: Collection[str]) -> tuple[Parts, str]:
    """A prior's parts, and the card."""
    prior = Prior.load(model, plugins)
    try:
        part = prior_part(prior)
    except ValueError as error:
        raise ValueError(f"{model}: {error}") from error
    return {"": part}, (
        f"# {printable(prior.spec.get('name', model.name))}\n\nA prior in diffusers' layout. Written by Composer's "
        "`export_diffusers`; there is no pipeline. A dropped caption is read as CLIP encodes the empty one.\n"
    )


def _stage(model: Path, stage: str | None, plugins: Collection[str]) -> tuple[Parts, str]:
    """A stage's parts, and the card."""
    config, weights, _ = read_model(model)
    specs = {Path(spec["file"]).stem: spec for spec in config["stages"]}
    name = next(iter(specs), "") if stage is None else stage
    if name not in specs:
        raise ValueError(f"{model} has the stages {', '.join(specs) or 'none'}, found {printable(name)}")
    if "tokens" in specs[name]:
        raise ValueError(f"stage {name} of {model} draws by tokens: diffusers has no class for it")
    tensors = weights[specs[name]["file"]]
    require_fit(lambda: Stage.from_spec(specs[name], plugins, model).weights(), tensors, str(model))
    with torch.device("meta"):
        made = Stage.from_spec(specs[name], plugins, model)
    try:
        parts = _parts(made, tensors)
    except ValueError as error:
        raise ValueError(f"stage {name} of {model}: {error}") from error
    return parts, _card(config.get("name", model.name), made, parts)


def _card(name: str, stage: Stage, parts: Collection[str]) -> str:
    """How the network is called, and what it gives: what diffusers' configuration does not say."""
    denoiser = stage.denoiser
    noise = type(denoiser.noise).__name__
    when = f"the step of the schedule {noise}" if denoiser.time == "step" else "1000 atan(sigma) 2 / pi"
    image = "the image" if denoiser.residual is None else f"(image - enlarged smaller one) / {denoiser.residual}"
    folders = ", ".join(part or "this folder" for part in parts)
    return (
        f"# {printable(name)}, stage {stage.name}\n\nIn diffusers' layout: {folders}. Written by Composer's "
        f"`export_diffusers`; there is no pipeline.\n\n- `sample`: (x + sigma noise) / sqrt(sigma^2 + "
        f"{denoiser.sigma_data}^2), where x is {image}, images in [-1, 1]; then the enlarged smaller image, where the "
        f"network reads one.\n- `timestep`: {when}.\n- Result: the first three channels are the estimate of "
        f"{denoiser.target}; further ones are learned variances.\n"
    )


def _parts(stage: Stage, tensors: Tensors) -> Parts:
    """What a stage becomes.

    Raises:
        ValueError: diffusers has no class for it.
    """
    network, names = stage.denoiser.network, set(stage.conditions)
    if not isinstance(network, UNet):
        raise ValueError(f"diffusers has no class for a {type(network).__name__}")
    rows = network_rows(network)
    if names == {"caption", "semantics"} and _reads_as_karlo(stage.conditions):
        theirs = revert([*rows, *_adapter_rows(stage.weights(), Needs())], tensors)
        own = f"{TEXT_PROJ}."
        adapters = {k.removeprefix(own): x for k, x in theirs.items() if k.startswith(own)}
        projection = {
            "_class_name": "UnCLIPTextProjModel",
            "clip_extra_context_tokens": TOKENS,
            "clip_embeddings_dim": adapters[ADAPTERS["cf_param"]].shape[0],
            "time_embed_dim": network.vector_dim,
            "cross_attention_dim": network.token_dim,
        }
        unet = {k: x for k, x in theirs.items() if not k.startswith(own)}
        return {DECODER: (_settings(network, stage.size, context=True), unet), TEXT_PROJ: (projection, adapters)}
    allowed = names <= {"label", "low_res"} and not any(k.startswith("conditions.low_res.") for k in tensors)
    if not allowed or any(layer.context is not None for layer in network.modules() if isinstance(layer, Attention)):
        raise ValueError(
            f"diffusers has no class for a network that reads {', '.join(sorted(names)) or 'tokens'}: it has one for "
            "none, for classes, for the smaller image as it is, and for captions and image embeddings as Karlo has them"
        )
    settings = _settings(network, stage.size)
    if "label" in names:
        label = "conditions.label.embedding.weight"
        rows.append(Row(label, ("class_embedding.weight",)))
        settings["num_class_embeds"] = tensors[label].shape[0]
    return {"": (settings, revert(rows, tensors))}


def _reads_as_karlo(conditions: nn.Module) -> bool:
    """Whether captions and image embeddings are projected as in Karlo's decoder."""
    layers = {
        "caption.to_tokens": (nn.Linear, nn.LayerNorm),
        "caption.to_vector": (nn.Linear,),
        "semantics.to_tokens": (nn.Linear, nn.Unflatten),
        "semantics.to_vector": (nn.Linear,),
    }
    modules = dict(conditions.named_modules())
    for name, types in layers.items():
        if name not in modules or tuple(type(layer) for layer in modules[name].children()) != types:
            return False
    semantics = modules["semantics"]
    known = {name for name, _ in semantics.named_parameters(recurse=False)} == {"nothing"}
    return known and not semantics.shares and semantics.num_tokens == TOKENS


def _settings(network: UNet, size: int, context: bool = False) -> dict[str, Any]:
    """The arguments of a `UNet2DModel`, or with a context those of a `UNet2DConditionModel`.

    Raises:
        ValueError: It has none for such a network.
    """
    places: dict[str, list[ResBlock]] = {}
    for _, block, place, _ in _blocks(network):
        places.setdefault(place, []).append(block)
    levels = range(len(network.decoder))
    down, up = ([places[f"{side}_blocks.{i}.resnets"] for i in levels] for side in ("down", "up"))
    attends = [
        _one("kind of block in a level", [block.attention is not None for block in (*a, *b)])
        for a, b in zip(down, up[::-1], strict=True)
    ]
    attentions = [layer for layer in network.modules() if isinstance(layer, Attention)]
    norms = [layer for layer in network.modules() if isinstance(layer, GroupNorm)]
    middle, last, widths = places["mid_block.resnets"][0], network.last[2], [a[0].conv1.out_channels for a in down]
    assert isinstance(last, nn.Conv2d)
    _one("width of the time's embedding and of the first level", [network.width, widths[0]])
    if network.skip_scale != 1 or network.first.stride != (1, 1) or not all(layer.itself for layer in attentions):
        raise ValueError(
            "diffusers has no class for a U-Net with scaled skips, one that begins at half the size, or one whose "
            "pixels attend to tokens alone"
        )
    groups = _one("number of groups of a norm", [norm.num_groups for norm in norms])
    settings: dict[str, Any] = {
        "_class_name": "UNet2DConditionModel" if context else "UNet2DModel",
        "sample_size": size,
        "in_channels": network.first.in_channels,
        "out_channels": last.out_channels,
        "block_out_channels": widths,
        "layers_per_block": _one("number of blocks per level", [len(a) for a in down] + [len(b) - 1 for b in up]),
        "attention_head_dim": _one("width of an attention head", [layer.head_dim for layer in attentions] or [8]),
        "norm_num_groups": groups,
        "resnet_time_scale_shift": "default" if middle.scale_shift is None else "scale_shift",
        "time_embedding_dim": network.vector_dim,
    }
    kind = "SimpleCrossAttn{}Block2D" if context else "Attn{}Block2D"
    for side, each in (("down", attends), ("up", attends[::-1])):
        other = f"Resnet{side.title()}sampleBlock2D"
        settings[f"{side}_block_types"] = [kind.format(side.title()) if attend else other for attend in each]
    if context:
        _one("kind of middle block", [True, middle.attention is not None])
        names = {"mid_block_type": "UNetMidBlock2DSimpleCrossAttn", "class_embed_type": "identity"}
        return settings | names | {"cross_attention_dim": network.token_dim}
    plain = {"downsample_type": "resnet", "upsample_type": "resnet", "attn_norm_num_groups": groups}
    return settings | plain | {"add_attention": middle.attention is not None}


def _one(what: str, values: list[T]) -> T:
    """The value that all of them are.

    Raises:
        ValueError: They differ.
    """
    if len(set(values)) > 1:
        found = ", ".join(map(str, dict.fromkeys(values)))
        raise ValueError(f"diffusers' U-Nets have one {what}, and this one has several: {found}")
    return values[0]
