"""Commands for data: ``scenes``, ``decompose``, ``decomposers``, ``caption``, ``cache``."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from composer.commands.parsers import (
    MAX_IMAGES,
    SEED_OF_MANY,
    add_config,
    add_device,
    add_model,
    add_out,
    make_parser,
    number,
    whole,
)
from composer.terminal import bar, say, show


def scenes(args: Sequence[str], plugins: Sequence[str]) -> None:
    """Render a folder of procedural scenes with captions, depth and instances."""
    parser = make_parser("scenes", scenes.__doc__, "--split train --count 50000 --size 64 --out data/scenes64")
    parser.add_argument("--split", choices=("train", "val", "novel"), default="train")
    parser.add_argument("--count", type=whole(1, MAX_IMAGES), required=True, help="number of images")
    parser.add_argument("--size", type=whole(8, 4096), default=64, help="side in pixels (default 64)")
    parser.add_argument("--seed", type=SEED_OF_MANY, default=0)
    parser.add_argument(
        "--complete",
        type=number(0, 1),
        default=0.0,
        metavar="SHARE",
        help="share of captions, 0 to 1, that say every thing's size, material, colour, kind and place (default 0)",
    )
    parser.add_argument("--workers", type=whole(0, 1024), default=2, help="processes (default 2)")
    parser.add_argument("--out", type=Path, required=True, help="folder; images that it holds already are kept")
    o = parser.parse_args(args)
    from composer.scenes import write

    write(o.split, o.count, o.size, o.out, seed=o.seed, workers=o.workers, complete=o.complete)
    say(f"{o.count} scenes in {o.out}")


def decomposers(args: Sequence[str], plugins: Sequence[str]) -> None:
    """List all decomposers, their licences, and whether they can run here."""
    make_parser("decomposers", decomposers.__doc__, "").parse_args(args)
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


def decompose(args: Sequence[str], plugins: Sequence[str]) -> None:
    """Take images apart and show every representation."""
    parser = make_parser("decompose", decompose.__doc__, "photo.jpg painting.jpg --preview --out out")
    parser.add_argument("images", nargs="+", help="image files")
    parser.add_argument("--caption", help="what they show")
    parser.add_argument("--preview", action="store_true", help="write a labelled picture of all parts, too")
    add_model(parser)
    add_out(parser)
    o = parser.parse_args(args)
    from safetensors.torch import save

    from composer.commands.options import load
    from composer.decomposition import Batch
    from composer.images.sheet import decomposed, save_png
    from composer.storage.files import reserved, write_atomically, written

    cascade = load(o, plugins)
    batch: Batch = {"image": cascade.open(*o.images)}
    parts = cascade.decompose(batch | ({"caption": [o.caption] * len(o.images)} if o.caption else {}))
    sheets = ["decompose_sheet.png"] if o.preview else []
    with reserved(o.out, [*(f"decompose_{Path(path).stem}.safetensors" for path in o.images), *sheets]) as paths:
        for i, path in enumerate(o.images):
            write_atomically(paths[i], save({k: v.contiguous().cpu() for k, v in parts.row(i).items()}))
            say(f"{path}: " + ", ".join(f"{name} {tuple(value.shape[1:])}" for name, value in parts.items()))
        if o.preview:
            save_png(paths[-1], decomposed(batch["image"], cascade.decomposition, parts, o.images))
    say(written(paths))


def caption(args: Sequence[str], plugins: Sequence[str]) -> None:
    """Write captions beside the images of a folder that have none, with BLIP."""
    parser = make_parser("caption", caption.__doc__, "photos/", "photos/ --weights models/blip-image-captioning-base")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", help="BLIP's folder, or hub:owner/name@revision (default: BLIP base)")
    o = parser.parse_args(args)
    from composer.data.captions import caption_folder
    from decomposers import Captioner

    say(
        f"{caption_folder(o.folder, Captioner(o.weights) if o.weights else Captioner())} captions written in {o.folder}"
    )


def cache(args: Sequence[str], plugins: Sequence[str]) -> None:
    """Compute representations once, as columns beside the images of a training."""
    parser = make_parser("cache", cache.__doc__, "-c configs/folder64.yaml --names semantics palette")
    add_config(parser, required=True)
    parser.add_argument("--names", nargs="+", required=True, help="representations that it has decomposers for")
    parser.add_argument("--rows", type=whole(1, 4096), default=32, help="images at a time (default 32)")
    add_device(parser)
    o, changes = parser.parse_known_args(args)
    from composer.data.columns import incomplete, write_columns
    from composer.devices import pick_device
    from composer.training.configured_data import chosen

    folders, decomposition = chosen(["-c", str(o.config), *changes], o.names, plugins)
    device = pick_device(o.device)
    for folder in folders:
        total = len(incomplete(folder, o.names))
        with bar(transient=True) as progress:
            task = progress.add_task(str(folder.folder), total=total)
            written = write_columns(folder, decomposition, device, o.rows, partial(progress.advance, task))
        say(f"{folder.folder}: {written} written, {len(folder) - total} kept, {total - written} refused")
