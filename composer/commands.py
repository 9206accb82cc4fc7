"""The commands that work with a trained model: ``python -m composer COMMAND --help`` explains each."""

import argparse
import importlib
import inspect
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # imported by the commands that use them, so that --help is quick
    from torch import Tensor

    from .cascade import Cascade, Parts

SHIPPED = "scenes64"
"""The model that comes with the package."""

Command = Callable[[Sequence[str], Sequence[str]], int | None]


def scenes(args: Sequence[str], plugins: Sequence[str]) -> None:
    """Render a folder of procedural scenes with captions, depth and instances."""
    parser = _parser(scenes, "--split train --count 60000 --size 64 --out data/scenes64")
    parser.add_argument("--split", choices=("train", "val", "novel"), default="train")
    parser.add_argument("--count", type=int, required=True, help="number of images")
    parser.add_argument("--size", type=int, default=64, help="side in pixels (default 64)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--out", type=Path, required=True, help="folder; images that it holds already are kept")
    o = parser.parse_args(args)
    from .scenes import write

    write(o.split, o.count, o.size, o.out, seed=o.seed, workers=o.workers)
    print(f"{o.count} scenes in {o.out}")


def list_decomposers(args: Sequence[str], plugins: Sequence[str]) -> None:
    """List all decomposers, their licences, and whether they can run here."""
    _parser(list_decomposers, "").parse_args(args)
    os.environ["HF_HUB_OFFLINE"] = "1"  # listing fetches nothing; huggingface_hub reads this when it is imported
    from rich.console import Console
    from rich.table import Table

    from .decomposition import Decomposer

    table = Table("decomposer", "what it reads", "licence of code", "of weights", "ready here?")
    for module in ("decomposers", *plugins):
        for name, cls in vars(importlib.import_module(module)).items():
            if inspect.isclass(cls) and issubclass(cls, Decomposer) and not inspect.isabstract(cls):
                says = (inspect.getdoc(cls) or "").partition("\n")[0]
                table.add_row(name, says, cls.code_licence, cls.weights_licence, _readiness(cls))
    Console().print(table)


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
    parser = _parser(decompose, "photo.jpg painting.jpg --preview --out out")
    parser.add_argument("images", nargs="+", help="image files")
    parser.add_argument("--caption", help="what they show")
    parser.add_argument("--preview", action="store_true", help="write decomposed.png, a labelled picture of all parts")
    _model_options(parser)
    o = parser.parse_args(args)
    from safetensors.torch import save

    from .files import write_atomically
    from .gallery import decomposed, save_png

    cascade = _load(o, plugins)
    batch: dict[str, Any] = {"image": cascade.open(*o.images)}
    parts = cascade.decompose(batch | ({"caption": [o.caption] * len(o.images)} if o.caption else {}))
    for i, path in enumerate(o.images):
        file = o.out / f"{Path(path).stem}.parts.safetensors"
        write_atomically(file, save({k: v.contiguous().cpu() for k, v in parts.rows([i]).items()}))
        print(f"{path}: " + ", ".join(f"{name} {tuple(value.shape[1:])}" for name, value in parts.items()))
    if o.preview:
        save_png(o.out / "decomposed.png", decomposed(batch["image"], cascade.decomposition, parts, o.images))
    print(f"see {o.out}")


def compose(args: Sequence[str], plugins: Sequence[str]) -> None:
    """Recombine conditions of different images, palettes and captions into new images."""
    example = '--sketch a.jpg --palette b.jpg --caption "a red cube on sand" --seeds 0,1,2 --out out'
    parser = _parser(compose, example, "--sketch a.jpg b.jpg --palette '#aa3311:0.6,#eeddcc:0.4' --guidance 3")
    parser.add_argument("--from-png", type=Path, help="make the picture that carries this recipe again")
    o, cascade = _with_conditions(parser, args, plugins)
    if o.from_png is not None:
        _again(cascade, o.from_png, o.out)
        return
    rows, parts, wanted, sources = _asked(o, cascade)
    from .gallery import save_png, sheet
    from .recipe import recipe

    images = _draw(cascade, parts, rows, o)
    changes = _changes(o)
    for row in range(rows):
        for seed, image in zip(o.seeds, images[row], strict=True):
            made = recipe(cascade, parts, row, seed, changes, {k: v[min(row, len(v) - 1)] for k, v in sources.items()})
            save_png(o.out / f"{row:03d}_seed{seed}.png", image, None if o.no_recipe else made)
    save_png(o.out / "sheet.png", sheet(images, [f"row {i}" for i in range(rows)], [f"seed {s}" for s in o.seeds]))
    _report(cascade, wanted, images)
    print(f"see {o.out / 'sheet.png'}")


def edit(args: Sequence[str], plugins: Sequence[str]) -> None:
    """Redraw a region of a picture under new conditions; all pixels outside it stay the file's own."""
    parser = _parser(
        edit,
        "photo.png --region mask.png --palette b.jpg --keep sketch --out out",
        'photo.png --region 0.1,0.2,0.6,0.9 --caption "a large red cube" --seeds 0,1',
        "photo.png --from-png out/photo_seed0.png",
    )
    parser.add_argument("image", type=Path, help="the picture to edit")
    parser.add_argument("--region", help="a mask's file (white = may change) or left,top,right,bottom")
    parser.add_argument("--keep", nargs="+", default=[], help="conditions to take from the picture itself")
    parser.add_argument("--soften", type=int, default=2, help="pixels over which the edit fades in (default 2)")
    parser.add_argument("--from-png", type=Path, help="make this edit of the same picture again")
    o, cascade = _with_conditions(parser, args, plugins)
    from .editing import Original, open_region
    from .editing import edit as redraw
    from .gallery import read_recipe, save_png, sheet
    from .images import load_rgb
    from .recipe import edit_of, recipe, with_edit

    original = Original.open(o.image)
    if o.from_png is not None:
        parts, region, seeds, options = edit_of(cascade, read_recipe(o.from_png), o.image)
        (result,) = redraw(cascade, original, region, parts, seeds=seeds, progress=_bar("drawing"), **options)
        save_png(o.out / o.from_png.name, result, read_recipe(o.from_png))
        print(f"see {o.out / o.from_png.name}")
        return
    if o.region is None:
        raise ValueError("an edit needs --region: a mask's file, or a box left,top,right,bottom")
    rows, parts, _, sources = _asked(o, cascade, required=False)
    if rows != 1:
        raise ValueError(f"an edit takes one value a condition, found {rows}")
    region = open_region(o.region, (original.image.shape[1], original.image.shape[2]))
    options = {"keep": o.keep, "soften": o.soften}
    options |= _changes(o)
    results = redraw(cascade, original, region, parts, seeds=o.seeds, progress=_bar("drawing"), **options)
    shown = [original.image, region[0].expand(3, -1, -1) * 2 - 1]
    for seed, result in zip(o.seeds, results, strict=True):
        made = recipe(cascade, parts, 0, seed, _changes(o), {name: given[0] for name, given in sources.items()})
        path = o.out / f"{o.image.stem}_seed{seed}.png"
        save_png(path, result, None if o.no_recipe else with_edit(made, o.image, region, options))
        shown.append(load_rgb(path).image)
    save_png(o.out / "sheet.png", sheet([shown], columns=["before", "region", *(f"seed {s}" for s in o.seeds)]))
    print(f"see {o.out / 'sheet.png'}")


def evaluate(args: Sequence[str], plugins: Sequence[str]) -> None:
    """Measure adherence: every condition alone, all together, and pairs from two images."""
    parser = _parser(evaluate, "scenes64 --data scenes:val --count 256 --seed 0 --json adherence.json")
    parser.add_argument("model", nargs="?", default=SHIPPED, help=f"a model's folder, or {SHIPPED}, which is shipped")
    parser.add_argument("--data", default="scenes:val", help="scenes:val, scenes:novel, or a folder of images")
    parser.add_argument("--count", type=int, default=256, help="number of images (default 256)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=32, help="pictures drawn at a time (default 32)")
    parser.add_argument("--json", type=Path, help="file to write the table to")
    _sampling_options(parser)
    _precision_option(parser)
    o = parser.parse_args(args)
    from rich.progress import Progress

    from .adherence import Evaluation, markdown
    from .files import write_atomically

    cascade = _load(o, plugins)
    batch = sample_of(o.data, o.count, cascade.stages[0].size)
    with Progress(*Progress.get_default_columns(), transient=True) as bar:
        task = bar.add_task("drawing")
        evaluation = Evaluation(
            *(cascade, batch, o.seed, o.rows), progress=lambda n: bar.advance(task, n), changes=_changes(o)
        )
        bar.update(task, total=evaluation.count())
        table = evaluation.table()
    print(markdown(table))
    if o.json is not None:
        about = {"data": o.data, "count": o.count, "seed": o.seed, "model": cascade.sha256, "sampling": _changes(o)}
        about["precision"] = o.precision
        write_atomically(o.json, (json.dumps({**table, "about": about}, indent=2) + "\n").encode())


def export(args: Sequence[str], plugins: Sequence[str]) -> None:
    """Turn a training run into a model's folder, with the averaged weights."""
    parser = _parser(export, "runs/scenes64 models/mine --card card.md")
    parser.add_argument("run", type=Path, help="a run's folder, or one of its checkpoints")
    parser.add_argument("out", type=Path, help="the model's folder")
    parser.add_argument("--name", help="the model's name (default: the folder's)")
    parser.add_argument("--card", type=Path, help="the model card, Markdown")
    parser.add_argument("--half", action="store_true", help="store weights with 16 bits")
    parser.add_argument("--guidance", type=float, default=2.0, help="the model's own guidance (default 2)")
    parser.add_argument("--steps", type=int, default=30, help="the model's own number of steps (default 30)")
    o = parser.parse_args(args)
    import torch

    from .cascade import Cascade
    from .checkpoint import load_stage
    from .storage import carry_weights, from_run

    path = o.run / "checkpoints" / "last.ckpt" if o.run.is_dir() else o.run
    config, weights = load_stage(path)
    sampling = {"guidance": o.guidance, "steps": o.steps}
    spec = from_run(config, o.name or o.out.name, sampling)
    cascade = Cascade.from_spec(spec, plugins)
    cascade.load_weights({"base.safetensors": weights})
    cascade.spec = carry_weights(spec, o.out)
    card = o.card.read_text() if o.card else f"# {spec['name']}\n"
    cascade.save(o.out, card, torch.float16 if o.half else torch.float32)
    print(f"model in {o.out}")


def caption(args: Sequence[str], plugins: Sequence[str]) -> None:
    """Write captions beside the images of a folder that have none, with BLIP."""
    parser = _parser(caption, "photos/", "photos/ --weights models/blip-image-captioning-base")
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--weights", help="a folder with BLIP's weights, or hub:owner/name@revision (default: BLIP base)"
    )
    o = parser.parse_args(args)
    from .captions import caption_folder

    make = importlib.import_module("decomposers").Captioner
    print(f"{caption_folder(o.folder, make(o.weights) if o.weights else make())} captions written in {o.folder}")


def demo(args: Sequence[str], plugins: Sequence[str]) -> None:
    """Show everything on the shipped model: take apart, recombine, edit, measure."""
    parser = _parser(demo, "--out out/demo")
    parser.add_argument("--out", type=Path, default=Path("out/demo"))
    _model_option(parser)
    o = parser.parse_args(args)
    from .demo import run

    print(f"open {run(_load(o, plugins), o.out)}")


COMMANDS: dict[str, Command] = {
    "demo": demo,
    "scenes": scenes,
    "decomposers": list_decomposers,
    "decompose": decompose,
    "compose": compose,
    "edit": edit,
    "evaluate": evaluate,
    "export": export,
    "caption": caption,
}


def sample_of(data: str, count: int, size: int) -> dict[str, Any]:
    """A batch of `count` images from ``scenes:SPLIT`` or from a folder.

    Raises:
        ValueError: There are fewer.
    """
    from .datasets import ImageDataset, SceneImages, collate
    from .folder import ImageFolder

    dataset: ImageDataset
    if data.startswith("scenes:"):
        dataset = SceneImages(data.removeprefix("scenes:"), size, count)
    else:
        dataset = ImageFolder(data, size, captions="empty")
    if len(dataset) < count:
        raise ValueError(f"{data} holds {len(dataset)} images, fewer than --count {count}")
    batch = collate([dataset.row(i, i) for i in range(count)])
    if not any(batch["caption"]):
        del batch["caption"]
    return batch


def _parser(command: Callable[..., Any], *examples: str) -> argparse.ArgumentParser:
    name = next((name for name, known in COMMANDS.items() if known is command), "")
    prog = f"python -m composer {name}"
    return argparse.ArgumentParser(
        prog=prog,
        description=command.__doc__,
        epilog="\n".join(["examples:", *(f"  {prog} {example}" for example in examples)]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _model_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=SHIPPED, help=f"a model's folder (default {SHIPPED}, which is shipped)")
    _precision_option(parser)


def _precision_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--precision", choices=("fp32", "bf16"), default="fp32", help="inside the network (default fp32)"
    )


def _model_options(parser: argparse.ArgumentParser) -> None:
    _model_option(parser)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder to write to (default out)")


def _sampling_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, help="sampling steps")
    parser.add_argument("--guidance", type=float, help="weight of classifier-free guidance; 1 is none")
    parser.add_argument("--sampler", choices=("euler", "heun", "dpmpp_2m", "ancestral"))
    parser.add_argument("--percentile", type=float, help="dynamic thresholding, such as 0.995 (default: clip)")


def _changes(options: argparse.Namespace) -> dict[str, Any]:
    given = {name: getattr(options, name) for name in ("steps", "guidance", "sampler", "percentile")}
    return {name: value for name, value in given.items() if value is not None}


def _load(options: argparse.Namespace, plugins: Sequence[str]) -> "Cascade":
    from .cascade import Cascade

    cascade = Cascade.load(options.model, plugins)
    import torch

    precision = torch.bfloat16 if options.precision == "bf16" else None
    return cascade.to("cuda" if torch.cuda.is_available() else "cpu", precision)


def _with_conditions(
    parser: argparse.ArgumentParser, args: Sequence[str], plugins: Sequence[str]
) -> tuple[argparse.Namespace, "Cascade"]:
    """Adds an option for each condition of the model that the arguments name, then parses."""
    _model_options(parser)
    _sampling_options(parser)
    parser.add_argument("--seeds", type=_seeds, default=[0], help="such as 0,1,2; one picture each (default 0)")
    parser.add_argument("--no-recipe", action="store_true", help="leave no trace of how a picture was made in its PNG")
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    _model_option(first)
    cascade = _load(first.parse_known_args(args)[0], plugins)
    group = parser.add_argument_group("conditions, each from images or words; several values make several rows")
    for name in cascade.names:
        if name != "mask":
            group.add_argument(f"--{name}", nargs="+", action="extend", default=[], metavar="FILE|WORDS")
    options, unknown = parser.parse_known_args(args)
    if unknown:
        known = ", ".join(f"--{name}" for name in cascade.names if name != "mask")
        raise ValueError(f"no option {' '.join(unknown)}; the conditions of {options.model} are {known}")
    return options, cascade


def _seeds(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _asked(
    options: argparse.Namespace, cascade: "Cascade", required: bool = True
) -> tuple[int, "Parts", "Parts", Mapping[str, list[str]]]:
    """Reads the conditions: number of rows, what to sample from, what to score by, and where each came from."""
    import torch

    from .cascade import Parts
    from .recipe import name_of

    values: dict[str, list[str]] = {n: getattr(options, n) for n in cascade.names if getattr(options, n, None)}
    if required and not values:
        raise ValueError(f"nothing asked: give at least one of {', '.join(f'--{n}' for n in cascade.names)}")
    rows = max(map(len, values.values()), default=1)
    wrong = {name: len(given) for name, given in values.items() if len(given) not in (1, rows)}
    if wrong:
        raise ValueError(f"expected one value or {rows} for each condition, found {wrong}")
    parts, wanted, sources = Parts(), Parts(), {}
    for name, given in values.items():
        parts[name] = torch.cat([_value(cascade, cascade.decomposition, name, value) for value in given])
        wanted[name] = torch.cat([_value(cascade, cascade.readers, name, value) for value in given])
        sources[name] = [name_of(Path(v).read_bytes()) if Path(v).is_file() else v for v in given]
    return rows, parts, wanted, sources


def _value(cascade: "Cascade", by: Any, name: str, value: str) -> "Tensor":
    decomposer = dict(by.named())[name]
    if not Path(value).is_file():
        made: Tensor = decomposer.from_text(value)
        return made
    batch = {"image": cascade.open(value)}
    if not decomposer.can_read(batch):
        raise ValueError(f"--{name} is not read from images: found {value}")
    read: Tensor = decomposer(batch)
    return read


def _draw(cascade: "Cascade", parts: "Parts", rows: int, options: argparse.Namespace) -> list[list["Tensor"]]:
    """Draws a row of pictures for each row of representations, a picture a seed."""
    drawn = [
        cascade.sample(parts.row(i), seeds=options.seeds, progress=_bar(f"row {i + 1}/{rows}"), **_changes(options))
        for i in range(rows)
    ]
    return [list(images.cpu()) for images in drawn]


def _bar(what: str) -> Callable[[Sequence[int]], Iterator[int]]:
    from rich.progress import track

    def steps(numbers: Sequence[int]) -> Iterator[int]:
        yield from track(numbers, what, transient=True)

    return steps


def _report(cascade: "Cascade", wanted: "Parts", images: Sequence[Sequence["Tensor"]]) -> None:
    """Prints how far the results are from what was asked, condition by condition."""
    import torch

    from .adherence import distances

    for i, drawn in enumerate(images):
        far = distances(cascade, wanted.row(i), torch.stack(list(drawn)))
        print(f"row {i}: " + ", ".join(f"{name} off by {float(d.mean()):.3f}" for name, d in far.items()))


def _again(cascade: "Cascade", path: Path, out: Path) -> None:
    import torch
    from PIL import Image

    from .adherence import quantise
    from .gallery import from_pil, read_recipe, save_png
    from .recipe import again

    found = read_recipe(path)
    image = again(cascade, found)[0].cpu()
    before = from_pil(Image.open(io.BytesIO(path.read_bytes())))
    off = (quantise(image[None])[0] - before).abs() * 127.5
    save_png(out / path.name, image, found)
    share = float((off > 0.5).float().mean())
    print(f"{out / path.name}: " + ("the same, bit for bit" if share == 0 else f"{share:.2%} of the values differ"))
    if torch.any(off > 1.5):
        print(f"warning: they differ by up to {float(off.max()):.0f} of 255", file=sys.stderr)
