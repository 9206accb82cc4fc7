"""Commands for data: ``scenes``, ``decompose``, ``decomposers``, ``caption``, ``cache``, ``prepare``; light."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from composer.commands.groups import ModelOptions
from composer.commands.signature import Value
from composer.commands.values import (
    Config,
    Count,
    Device,
    Names,
    Out,
    Rows,
    Seed,
    Share,
    Side,
    Words,
    read_part,
    whole,
)
from composer.terminal import advancing, note, say, show


def scenes(
    *,
    count: Count,
    out: Out,
    split: Literal["train", "val", "novel"] = "train",
    size: Side = 64,
    seed: Seed = 0,
    complete: Share = 0.0,
    workers: Annotated[int, Value(whole(0, 1024), "N")] = 2,
) -> None:
    """Render a folder of procedural scenes with captions, depth and instances.

    Args:
        out: folder; images that it holds already are kept
        split: train, val, or novel, whose pairs of shape and colour occur in no other split
        seed: seed of the scenes
        complete: share of captions, 0 to 1, that name every thing's size, material, colour, kind and place
        workers: number of processes

    Examples:
        --split train --count 50000 --size 64 --out data/scenes64
    """
    from composer.scenes import write_scenes

    write_scenes(split, count, size, out, seed=seed, workers=workers, complete=complete)
    say(f"{count} scenes in {out}")


def decomposers(*, plugins: Sequence[str]) -> None:
    """List all decomposers, their licences, and whether they can run here.

    Examples:

    """
    import importlib
    import inspect

    from rich.table import Table

    from composer.decomposition import Decomposer
    from composer.storage.pretrained import offline

    os.environ["HF_HUB_OFFLINE"] = "1"  # listing fetches nothing; huggingface_hub reads this when it is imported
    table = Table("decomposer", "what it reads", "licence of code", "of weights", "ready here?")
    for module in ("decomposers", *plugins):
        for name, cls in vars(importlib.import_module(module)).items():
            if inspect.isclass(cls) and issubclass(cls, Decomposer) and not inspect.isabstract(cls):
                says = (inspect.getdoc(cls) or "").partition("\n")[0]
                with offline():
                    ready = _readiness(cls)
                table.add_row(name, says, cls.code_licence, cls.weights_licence, ready)
    show(table)


def _readiness(cls: Any) -> str:
    """Tries the decomposer as it comes on a grey picture."""
    import torch

    region = torch.ones(1, 1, 64, 64)
    try:
        cls()({"image": torch.zeros(1, 3, 64, 64), "caption": ["a picture"], "region": region})
    except TypeError:
        return "no: name its weights"
    except Exception as error:  # whatever keeps it from running is what the table is to say
        return f"no: {error}"
    return "yes"


def decompose(
    images: Annotated[tuple[str, ...], Value(metavar="IMAGE", nargs="+")],
    *,
    caption: Words | None = None,
    preview: bool = False,
    out: Out = Path("out"),
    model: ModelOptions,
    plugins: Sequence[str],
) -> None:
    """Take images apart and show every representation.

    Args:
        images: image files
        caption: a caption of the images
        preview: also write a labelled picture of all representations

    Examples:
        photo.jpg painting.jpg --preview --out out
    """
    from safetensors.torch import save

    from composer.images.sheet import decomposed, save_png
    from composer.storage.files import list_written, reserved, write_atomically

    cascade = model.load(model.model, plugins)
    pictures = cascade.open(*images)
    parts = cascade.decompose(list(images), caption)
    sheets = ["decompose_sheet.png"] if preview else []
    with reserved(out, [*(f"decompose_{Path(path).stem}.safetensors" for path in images), *sheets]) as paths:
        for i, path in enumerate(images):
            write_atomically(paths[i], save({k: v.contiguous().cpu() for k, v in parts.row(i).items()}))
            say(f"{path}: " + ", ".join(f"{name} {tuple(value.shape[1:])}" for name, value in parts.items()))
        if preview:
            save_png(paths[-1], decomposed(pictures, cascade.decomposition, parts, images))
    say(list_written(paths))


def caption(folder: Path, *, weights: Annotated[str, Value(metavar="FOLDER")] | None = None) -> None:
    """Write captions beside the images of a folder that have none, with BLIP.

    Args:
        folder: the images
        weights: BLIP's folder, or hub:owner/name@revision (default: BLIP base)

    Examples:
        photos/
        photos/ --weights models/blip-image-captioning-base
    """
    from composer.data.captions import caption_folder
    from decomposers import Captioner

    say(f"{caption_folder(folder, Captioner(weights) if weights else Captioner())} captions written in {folder}")


def cache(
    *,
    config: Config,
    names: Names,
    rows: Rows = 32,
    device: Device | None = None,
    rest: Sequence[str],
    plugins: Sequence[str],
) -> None:
    """Compute representations once, as columns beside the images of a training.

    Args:
        names: representations to compute; the configuration must have their decomposers

    Examples:
        -c configs/folder64.yaml --names semantics palette
    """
    from composer.data.columns import find_incomplete, write_columns
    from composer.devices import pick_device
    from composer.training.configured_data import build_folders

    folders, decomposition = build_folders(["-c", str(config), *rest], names, plugins)
    device_ = pick_device(device)
    for folder in folders:
        total = len(find_incomplete(folder, names))
        with advancing(str(folder.folder), total) as advance:
            written = write_columns(folder, decomposition, device_, rows, advance)
        say(f"{folder.folder}: {written} written, {len(folder) - total} kept, {total - written} refused")


def prepare(
    images: Path,
    *,
    size: Side,
    out: Out,
    config: Config | None = None,
    names: Names = (),
    source: Side = 384,
    maps: Side | None = None,
    jpeg: Annotated[int, Value(whole(1, 100), "QUALITY")] | None = None,
    shard: Annotated[int, Value(whole(1, 1_000_000), "N")] = 1000,
    part: Annotated[tuple[int, int], Value(read_part, "I/N")] = (1, 1),
    engine: Literal["here", "ray"] = "here",
    workers: Annotated[int, Value(whole(1, 1024), "N")] = 2,
    rows: Rows = 32,
    device: Device | None = None,
    rest: Sequence[str],
    plugins: Sequence[str],
) -> None:
    """Decode images once, compute representations once, and write shards that a training reads at random.

    Args:
        images: folder of images, or of tar files in webdataset's naming
        size: shorter side that is kept, in pixels: the side of the training's images
        out: folder of the shards; an interrupted run continues where it ended
        config: configuration of a training, with the decomposers of --names
        names: representations to compute, of each image at its own size
        source: shorter side, in pixels, that decomposers read at most
        maps: shorter side of maps, in pixels, a multiple of --size, for conditions with strides (default: --size)
        jpeg: keep images as JPEG of this quality, 1 to 100 (default: as PNG, which loses nothing)
        shard: images per shard; a tar file becomes one shard
        part: which part of the shards to write; start each part in a process of its own, on any machine
        engine: where shards are written: in this process, or by the processes of a Ray cluster that sees the same
            files (of this machine, if none runs), one shard at a time
        workers: number of threads that decode, of each process

    Examples:
        photos/ --size 64 --out shards/photos64
        photos/ --size 64 -c configs/folder64.yaml --names semantics sketch depth --out shards/photos64 --part 1/8
    """
    from composer.commands.preparation import Task, write_by_ray
    from composer.data.preparing import Preparation
    from composer.data.preparing import prepare as run
    from composer.data.refusals import summarise
    from composer.devices import pick_device
    from composer.images.reading import Reason

    if bool(names) != (config is not None):
        raise ValueError("--names and -c go together: representations, and the configuration with their decomposers")
    how = Preparation(size, max(source, size), jpeg, *part, maps)
    words = ("-c", str(config), *rest) if config else ()
    task = Task(images, out, how, shard, words, names, tuple(plugins), device, workers, rows)
    opened, decomposition, specs = task.open()
    numbers = range(how.part - 1, opened.shards, how.parts)
    with advancing(str(images), sum(opened.count(number) for number in numbers)) as advance:
        if engine == "ray":
            write_by_ray(task, opened, numbers, advance)
            advance = lambda done: None  # noqa: E731, they are counted
        done = run(opened, out, how, decomposition, pick_device(device), workers, rows, advance, specs)
    kept = f", {done.kept} shards kept from before" if done.kept else ""
    say(f"{out}: {done.images:,} images, {len(done.refused):,} refused{kept}")
    if done.refused:
        reasons = [Reason[one.reason.upper()] for one in done.refused]
        note(f"note: {summarise(reasons, 'and left out')}; the .json beside each shard lists them")
