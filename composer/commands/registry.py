"""All commands: their parsers, and what runs them.

Light: what is heavy is imported once a command line has been read, so that help and mistakes show at once.
"""

import argparse
import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

from composer.commands.parsers import (
    FIELDS,
    MAX_IMAGES,
    MAX_SIDE,
    SEED_OF_MANY,
    add_config,
    add_device,
    add_model,
    add_network,
    add_out,
    add_precision,
    add_sampling,
    make_parser,
    number,
    whole,
)
from composer.commands.prior_commands import embed, evaluate_prior, pca
from composer.commands.task_parsers import PARSERS
from composer.commands.training_commands import fit, test, train, validate
from composer.evaluation.markdown import plain
from composer.names import CLOSED, SHIPPED, SamplerName
from composer.storage.files import read_text
from composer.storage.finding import find_config, find_model
from composer.terminal import bar, say, show

Command = Callable[[Sequence[str], Sequence[str]], int | None]


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


def export(args: Sequence[str], plugins: Sequence[str]) -> None:
    """Turn a training run into a model's folder, with the averaged weights."""
    parser = make_parser("export", export.__doc__, "runs/scenes64 models/mine --card card.md")
    parser.add_argument("run", type=Path, help="a run's folder, or one of its checkpoints")
    parser.add_argument("out", type=Path, help="the model's folder")
    parser.add_argument("--name", help="the model's name (default: the folder's)")
    parser.add_argument("--card", type=Path, help="the model card, Markdown (default: the one that is there)")
    parser.add_argument("--half", action="store_true", help="store weights with 16 bits")
    parser.add_argument(
        "--guidance", type=FIELDS["guidance"], help="the model's own guidance (default 2; a prior's as configured)"
    )
    parser.add_argument(
        "--steps", type=FIELDS["steps"], help="its own number of steps (default 30; a prior's as configured)"
    )
    parser.add_argument(
        "--percentile", type=FIELDS["percentile"], help="the model's own dynamic thresholding (default: clip)"
    )
    parser.add_argument("--sampler", choices=get_args(SamplerName), help="the model's own sampler (default dpmpp_2m)")
    parser.add_argument(
        "--augmentation", type=FIELDS["augmentation"], help="an upsampler's own level of it (default 0)"
    )
    about = "a file or folder of weights or words that others may have; those in this folder and the run's need no word"
    parser.add_argument("--carry", type=Path, action="append", default=[], metavar="PATH", help=about)
    add_network(parser)
    o = parser.parse_args(args)
    from dataclasses import asdict

    import torch

    from composer.cascade.assembling import carried_files, carry_weights, from_run
    from composer.cascade.cascade import Cascade
    from composer.cascade.stage import Sampling
    from composer.commands.priors import export_prior
    from composer.storage.files import replacing_all
    from composer.storage.formats import check_run
    from composer.storage.pretrained import noting_files
    from composer.training.checkpoint import LAST, load_stage

    path = o.run / "checkpoints" / LAST if o.run.is_dir() else o.run
    config, weights = load_stage(path)
    check_run(config)
    own = ("guidance", "steps", "percentile", "sampler", "augmentation")
    given = {name: getattr(o, name) for name in own if getattr(o, name) is not None}
    name, dtype = o.name or o.out.name, torch.float16 if o.half else torch.float32
    card = _card(o, f"# {plain(name)}\n")
    within = [Path.cwd(), path.parent, *([o.run] if o.run.is_dir() else []), *o.carry]
    if "prior" in config["model"]["init_args"]:
        spec = export_prior(config, weights, o.out, name, card, dtype, given, plugins, within, o.allow_network)
        say(f"prior in {o.out}", *carried_files(spec))
        return
    spec = from_run(config, name, asdict(Sampling()) | given)
    with noting_files() as read:
        own_weights = {spec["stages"][0]["file"]: weights}
        cascade = Cascade.from_weights(spec, own_weights, plugins, network=o.allow_network)
    with replacing_all(o.out) as new:
        cascade.spec = carry_weights(spec, new, plugins, read, within)
        cascade.save(new, card, dtype)
    say(f"model in {o.out}", *carried_files(cascade.spec))


def _card(o: argparse.Namespace, default: str) -> str:
    """The model card that the user gave, or else the one in the folder, which they may have written."""
    path = o.card or o.out / "README.md"
    return read_text(path) if o.card or path.is_file() else default


def assemble(args: Sequence[str], plugins: Sequence[str]) -> None:
    """Join models of one stage each to a cascade."""
    parser = make_parser("assemble", assemble.__doc__, "models/mine base=models/mine64 up256=models/mine256")
    parser.add_argument("out", type=Path, help="the new model's folder")
    parser.add_argument("parts", nargs="+", metavar="STAGE=MODEL", help="from the smallest to the largest")
    parser.add_argument("--name", help="the model's name (default: the folder's)")
    parser.add_argument(
        "--card", type=Path, help="the model card, Markdown (default: the one that is there, or the parts')"
    )
    add_network(parser)
    o = parser.parse_args(args)
    named = [part.partition("=") for part in o.parts]
    if wrong := [part for part, (name, _, path) in zip(o.parts, named, strict=True) if not (name and path)]:
        raise ValueError(f"expected STAGE=MODEL, such as base=models/mine64, found {' '.join(wrong)}")
    parts = {name: find_model(path) for name, _, path in named}
    if len(parts) < len(named):
        raise ValueError(f"expected a name of its own for each stage, found {' '.join(o.parts)}")
    from composer.cascade.assembling import assemble as join
    from composer.cascade.assembling import carried_files, carry_weights
    from composer.cascade.cascade import Cascade
    from composer.storage.files import replacing_all
    from composer.storage.folder import write_model
    from composer.storage.pretrained import noting_files

    spec, weights = join(parts, o.name or o.out.name, plugins)
    with noting_files() as read:
        cascade = Cascade.from_weights(spec, weights, plugins, network=o.allow_network)
    cards = [
        f"# {plain(spec['name'])}\n",
        *((path / "README.md").read_text(encoding="utf-8") for path in parts.values()),
    ]
    with replacing_all(o.out) as new:
        spec = carry_weights(spec, new, plugins, read, [path.resolve() for path in parts.values()])
        write_model(new, spec, weights, _card(o, "\n".join(cards)))
    sizes = " -> ".join(str(stage.size) for stage in cascade.stages)
    say(f"model of {len(parts)} stages, {sizes} px, in {o.out}", *carried_files(spec))


def caption(args: Sequence[str], plugins: Sequence[str]) -> None:
    """Write captions beside the images of a folder that have none, with BLIP."""
    parser = make_parser("caption", caption.__doc__, "photos/", "photos/ --weights models/blip-image-captioning-base")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", help="BLIP's folder, or hub:owner/name@revision (default: BLIP base)")
    o = parser.parse_args(args)
    import importlib

    from composer.data.captions import caption_folder

    make = importlib.import_module("decomposers").Captioner
    say(f"{caption_folder(o.folder, make(o.weights) if o.weights else make())} captions written in {o.folder}")


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


def doctor(args: Sequence[str], plugins: Sequence[str]) -> None:
    """Say what a configuration needs before anything is trained: parameters, FLOPs, memory, disk."""
    examples = ("configs/folder64.yaml", "configs/imagen1024.yaml --batch 4 --json doctor.json")
    parser = make_parser("doctor", doctor.__doc__, *examples)
    about = "of a training: a file, or the name of one that is shipped; further options change it as in fit"
    parser.add_argument("config", type=find_config, help=about)
    parser.add_argument(
        "--batch", type=whole(1, 1_000_000), help="images a step and device (default: the configuration's)"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="what trains (default cuda)")
    parser.add_argument("--json", type=Path, help="file to write it all to")
    o, changes = parser.parse_known_args(args)
    from composer.training.doctor import RUNS, examine_training
    from composer.training.doctor_tables import tables

    with bar(transient=True) as progress:
        task = progress.add_task("trying it out without memory", total=RUNS + 1)
        found = examine_training(
            ["-c", str(o.config), *changes], plugins, o.batch, o.device, partial(progress.advance, task)
        )
    show(*tables(found))
    if o.json is not None:
        from composer.storage.files import write_atomically

        write_atomically(o.json, (json.dumps(found.as_json(), indent=2) + "\n").encode())


def report(args: Sequence[str], plugins: Sequence[str]) -> None:
    """Compare a picture with what its recipe asked for, condition by condition: what was asked, what came back."""
    examples = ("out/compose_seed0.png", "out/edit_photo_seed0.png --image photo.png --out out/report")
    parser = make_parser("report", f"{report.__doc__}\n\n{CLOSED}", *examples)
    parser.add_argument("picture", type=Path, help="a PNG that carries its recipe")
    parser.add_argument("--image", type=Path, help="for an edit: the picture that was edited")
    add_model(parser)
    add_out(parser, "out/report")
    o = parser.parse_args(args)
    from composer.commands.options import load
    from composer.evaluation.report import examine
    from composer.images.sheet import read_recipe, save_png
    from composer.storage.files import reserved, written
    from composer.storage.folder import digest_of
    from composer.tasks.recipe import check_model

    check_model(read_recipe(o.picture), digest_of(find_model(o.model)))  # before anything is loaded or fetched
    found = examine(load(o, plugins), o.picture, o.image)
    show(*found.tables())
    say(CLOSED)
    with reserved(o.out, [f"report_{o.picture.stem}.png"]) as paths:
        save_png(paths[0], found.picture())
    say(written(paths))


def demo(args: Sequence[str], plugins: Sequence[str]) -> None:
    """Show everything on the shipped model: take apart, recombine, edit, measure."""
    parser = make_parser("demo", demo.__doc__, "--out out/demo")
    add_model(parser)
    add_out(parser, "out/demo")
    o = parser.parse_args(args)
    from composer.commands.demo import run
    from composer.commands.options import load

    say(f"open {run(load(o, plugins), o.out)}")


DISTRIBUTIONS = """Pictures drawn from the captions, compared with the images as a whole. None is kept: 30,000 take no
more memory than 256, but for KID: it keeps the features of both, 246 MB each for 30,000 and Inception's 2048."""


def evaluate(args: Sequence[str], plugins: Sequence[str]) -> None:
    """Measure adherence, whole distributions (FID, KID, CLIP score), or what comes of a list of prompts."""
    parser = make_parser(
        "evaluate",
        evaluate.__doc__,
        "scenes256 --data scenes:val --count 256 --seed 0 --json adherence.json",
        "scenes256 --prior scenes_prior_diffusion --alone",
        "scenes256 --metrics fid kid clip --data scenes:val --count 30000",
        "scenes256 --prompts asset:scenes_prompts.csv --n 4 --out out/prompts",
        "models/mine --against scenes256 --prompts prompts.csv",
    )
    parser.add_argument("model", nargs="?", default=SHIPPED, help=f"a model's folder, or {SHIPPED}, which is shipped")
    parser.add_argument("--data", default="scenes:val", help="scenes:val, scenes:novel, or a folder of images")
    parser.add_argument("--count", type=whole(1, MAX_IMAGES), default=256, help="number of images (default 256)")
    least = "a folder's images with a shorter side below N pixels are refused (default: the side they are measured at)"
    parser.add_argument("--min-side", type=whole(0, MAX_SIDE), metavar="N", help=least)
    parser.add_argument("--seed", type=SEED_OF_MANY, default=0)
    parser.add_argument(
        "--rows", type=whole(1, 4096), default=32, help="images read and pictures drawn at a time (default 32)"
    )
    draws = "a prior, such as scenes_prior_diffusion: wherever a caption is asked for without semantics, it draws them"
    parser.add_argument("--prior", metavar="NAME", help=draws)
    parser.add_argument("--alone", action="store_true", help="only every condition alone: half the work")
    parser.add_argument("--json", type=Path, help="file to write the table to")
    group = parser.add_argument_group("distributions", DISTRIBUTIONS)
    group.add_argument("--metrics", nargs="+", choices=("adherence", "fid", "kid", "clip"), default=["adherence"])
    group.add_argument("--features", default="semantics", help="for FID and KID: a reader, or Inception's file")
    group.add_argument("--clip", help="weights for the CLIP score (default: the model's own reader of captions)")
    group = parser.add_argument_group("prompts")
    group.add_argument(
        "--prompts", help="a CSV with the columns Prompts and Category; asset:scenes_prompts.csv is ours"
    )
    group.add_argument("--against", help="a second model, for a blind vote")
    group.add_argument("--n", type=whole(1, 1000), default=4, help="pictures a prompt (default 4)")
    group = parser.add_argument_group("things")
    counts = "instead of all else, count what pictures of one to three things show, by this judge's folder"
    group.add_argument("--things", metavar="JUDGE", help=counts)
    says = "captions to count with (default complete)"
    group.add_argument("--captions", choices=("complete", "short"), default="complete", help=says)
    add_out(parser, "out/prompts")
    add_sampling(parser)
    add_network(parser)
    add_precision(parser)
    add_device(parser)
    o = parser.parse_args(args)
    from composer.commands.evaluate import evaluate as run

    run(o, plugins)


def _task(name: str) -> Command:
    """The command of a task."""
    build = PARSERS[name]

    def run(args: Sequence[str], plugins: Sequence[str]) -> None:
        parser = build()
        request = parser.parse(args)
        from composer.commands.drawing import Drawing
        from composer.commands.task_commands import TASKS

        Drawing(parser).run(request, plugins, TASKS[name])

    run.__doc__ = build.__doc__
    return run


GROUPS: dict[str, dict[str, Command]] = {
    "draw": {"demo": demo, **{name: _task(name) for name in PARSERS}},
    "train": {"train": train, "fit": fit, "validate": validate, "test": test, "doctor": doctor},
    "data": {
        "scenes": scenes,
        "decompose": decompose,
        "decomposers": decomposers,
        "caption": caption,
        "cache": cache,
        "embed": embed,
        "pca": pca,
    },
    "measure": {"evaluate": evaluate, "evaluate-prior": evaluate_prior, "report": report},
    "models": {"export": export, "assemble": assemble},
}
COMMANDS = {name: run for group in GROUPS.values() for name, run in group.items()}


def overview() -> str:
    """The help text: the commands in groups, one line each."""
    lines = ["composer [--plugins MODULE,...] COMMAND ..."]
    for group, commands in GROUPS.items():
        lines += ["", group, *(f"  {name:<15} {_about(run)}" for name, run in commands.items())]
    return "\n".join([*lines, "", "`composer COMMAND --help` says more."])


def _about(run: Command) -> str:
    return (run.__doc__ or "").partition("\n")[0]
