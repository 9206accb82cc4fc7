"""Commands that make models: ``export``, ``assemble``."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from composer.commands.parsers import (
    FIELDS,
    add_network,
    make_parser,
)
from composer.images.table import plain
from composer.names import SamplerName
from composer.storage.files import read_text
from composer.storage.finding import find_model
from composer.terminal import note, say


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
    about = "scenes:SPLIT or a folder of 32 images that no training saw, to compare results with (default: Scenes)"
    parser.add_argument("--held-out", metavar="DATA", help=about)
    add_network(parser)
    o = parser.parse_args(args)
    from dataclasses import asdict

    import torch

    from composer.cascade.assembling import carried_files, carry_weights, from_run
    from composer.cascade.cascade import Cascade
    from composer.cascade.parts import Parts
    from composer.cascade.stage import Sampling
    from composer.commands.priors import export_prior
    from composer.evaluation.reading import read_held_out, strangers_note
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
        if o.held_out is not None:
            raise ValueError("--held-out is for models that draw: a prior's embeddings are compared with no images")
        spec = export_prior(config, weights, o.out, name, card, dtype, given, plugins, within, o.allow_network)
        say(f"prior in {o.out}", *carried_files(spec))
        return
    spec = from_run(config, name, asdict(Sampling()) | given)
    with noting_files() as read:
        own_weights = {spec["stages"][0]["file"]: weights}
        cascade = Cascade.from_weights(spec, own_weights, plugins, network=o.allow_network)
    cascade.strangers = Parts() if o.held_out is None else read_held_out(cascade, o.held_out)
    with replacing_all(o.out) as new:
        cascade.spec = carry_weights(spec, new, plugins, read, within)
        cascade.save(new, card, dtype)
    say(f"model in {o.out}", *carried_files(cascade.spec))
    if missing := strangers_note(cascade):
        note(missing)


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
    from composer.storage.folder import STRANGERS_FILE, read_strangers, write_model
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
        strangers = read_strangers(next(iter(parts.values())))  # results are read at the size of the first stage
        more = {STRANGERS_FILE: strangers} if strangers else {}
        write_model(new, spec, weights | more, _card(o, "\n".join(cards)))
    sizes = " -> ".join(str(stage.size) for stage in cascade.stages)
    say(f"model of {len(parts)} stages, {sizes} px, in {o.out}", *carried_files(spec))
