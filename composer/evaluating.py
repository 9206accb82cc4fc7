"""The command ``evaluate``: adherence, whole distributions, and what comes of a list of prompts."""

import argparse
import importlib
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from .adherence import Evaluation, markdown
from .cascade import Cascade
from .counting import SHARES, evaluate_things
from .datasets import ImageDataset, SceneImages, collate
from .decomposition import Batch, Decomposer
from .files import write_atomically
from .folder import ImageFolder
from .metrics import (
    INCEPTION_FILE,
    Features,
    Inception,
    clip_score,
    embed,
    frechet_distance,
    kernel_distance,
    read_by,
)
from .options import SHIPPED, add_out, add_precision, add_sampling, load, make_parser, sampling
from .parts import Parts
from .prompts import answer, from_captions, read_prompts, write_report

METRICS = ("fid", "kid", "clip")


def evaluate(args: Sequence[str], plugins: Sequence[str]) -> None:
    """Measure adherence, whole distributions (FID, KID, CLIP score), or what comes of a list of prompts."""
    parser = make_parser(
        "evaluate",
        evaluate.__doc__,
        "scenes256 --data scenes:val --count 256 --seed 0 --json adherence.json",
        "scenes256 --metrics fid kid clip --data scenes:val --count 256",
        "scenes256 --prompts asset:scenes_prompts.csv --n 4 --out out/prompts",
        "models/mine --against scenes256 --prompts prompts.csv",
    )
    parser.add_argument("model", nargs="?", default=SHIPPED, help=f"a model's folder, or {SHIPPED}, which is shipped")
    parser.add_argument("--data", default="scenes:val", help="scenes:val, scenes:novel, or a folder of images")
    parser.add_argument("--count", type=int, default=256, help="number of images (default 256)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=32, help="pictures drawn at a time (default 32)")
    parser.add_argument("--alone", action="store_true", help="only every condition alone: half the work")
    parser.add_argument("--json", type=Path, help="file to write the table to")
    group = parser.add_argument_group("distributions")
    group.add_argument("--metrics", nargs="+", choices=("adherence", *METRICS), default=["adherence"])
    group.add_argument("--features", default="semantics", help="for FID and KID: a reader, or Inception's file")
    group.add_argument("--clip", help="weights for the CLIP score (default: the model's own reader of captions)")
    group = parser.add_argument_group("prompts")
    group.add_argument(
        "--prompts", help="a CSV with the columns Prompts and Category; asset:scenes_prompts.csv is ours"
    )
    group.add_argument("--against", help="a second model, for a blind vote")
    group.add_argument("--n", type=int, default=4, help="pictures a prompt (default 4)")
    group = parser.add_argument_group("things")
    group.add_argument(
        "--things",
        metavar="JUDGE",
        help="instead of all else, count what pictures of one to three things show, by this judge's folder",
    )
    group.add_argument("--captions", choices=tuple(SHARES), default="complete", help="to count with (default complete)")
    add_out(parser, "out/prompts")
    add_sampling(parser)
    add_precision(parser)
    o = parser.parse_args(args)
    cascade = load(o, plugins)
    about = {name: getattr(o, name) for name in ("seed", "precision")} | {"sampling": sampling(o)}
    if o.prompts is not None:
        return _evaluate_prompts(o, cascade, plugins, about)
    if o.things is not None:
        return evaluate_things(o, cascade, about, sampling(o))
    table, texts = _measure(o, cascade)
    print("\n".join(texts))
    if o.json is not None:
        table["about"] = about | {"model": cascade.sha256, "data": o.data, "count": o.count}
        write_atomically(o.json, (json.dumps(table, indent=2) + "\n").encode())
    return None


def _measure(o: argparse.Namespace, cascade: Cascade) -> tuple[dict[str, Any], list[str]]:
    """Adherence and distributions, as tables and as Markdown."""
    first, last = cascade.stages[0], cascade.stages[-1]
    batch, table, texts = sample_of(o.data, o.count, first.size), dict[str, Any](), []
    others = [metric for metric in o.metrics if metric != "adherence"]
    features = features_of(cascade, o.features) if {"fid", "kid"} & set(others) else None
    reader = _caption_reader(o, cascade) if "clip" in others else None
    with Progress(transient=True) as progress:
        task = progress.add_task("drawing")
        shared = {"seed": o.seed, "rows": o.rows, "progress": lambda n: progress.advance(task, n)}
        if "adherence" in o.metrics:
            evaluation = Evaluation(cascade, batch, **shared, changes=sampling(o))
            progress.update(task, total=o.count * len(evaluation.scored) if o.alone else evaluation.count())
            table |= evaluation.singles() if o.alone else evaluation.table()
            texts.append(markdown(table))
        if others:
            evaluation = Evaluation(cascade, batch, **shared, changes={"until": last.name} | sampling(o))
            progress.reset(task, total=o.count)
            real = batch if last is first else sample_of(o.data, o.count, last.size)
            table["distribution"] = measure(others, evaluation, real, features, reader)
            texts.append(_markdown(table["distribution"]))
    return table, texts


def _caption_reader(o: argparse.Namespace, cascade: Cascade) -> Decomposer:
    if o.clip is None:
        return joint_reader(cascade)
    made: Decomposer = importlib.import_module("decomposers").Agreement(weights=o.clip)
    return made


def _evaluate_prompts(o: argparse.Namespace, cascade: Cascade, plugins: Sequence[str], about: dict[str, Any]) -> None:
    """Draws and scores a list of prompts, with one model or two."""
    models = {Path(o.model).resolve().name: cascade}
    if o.against is not None:
        name = Path(o.against).resolve().name
        name = f"{name} (2)" if name in models else name
        models[name] = load(argparse.Namespace(**{**vars(o), "model": o.against}), plugins)
    asked, reader = read_prompts(o.prompts), _caption_reader(o, cascade)
    with Progress(transient=True) as progress:
        task = progress.add_task("drawing", total=len(models) * len(asked) * o.n)
        answers = {
            name: answer(model, asked, reader, o.n, o.seed, o.rows, lambda n: progress.advance(task, n), sampling(o))
            for name, model in models.items()
        }
    found = write_report(o.out, asked, answers, reader, o.seed)
    found["about"] = about | {"models": {name: model.sha256 for name, model in models.items()}}
    write_atomically(o.json or o.out / "prompts.json", (json.dumps(found, indent=2) + "\n").encode())
    print((o.out / "prompts.md").read_text())
    print(f"open {o.out / 'index.html'}" + (f", vote in {o.out / 'vote.html'}" if o.against else ""))


def sample_of(data: str, count: int, size: int) -> Batch:
    """A batch of `count` images from ``scenes:SPLIT`` or from a folder.

    Raises:
        ValueError: There are fewer.
    """
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


def features_of(cascade: Cascade, source: str) -> Features:
    """Finds features by name.

    Args:
        cascade: A model.
        source: One of its readers whose representation is a vector, such as ``semantics``; or Inception's file.

    Raises:
        FileNotFoundError: It is neither.
    """
    readers = dict(cascade.readers.named())
    if source in readers:
        return read_by(readers[source])
    if not Path(source).is_file():
        raise FileNotFoundError(
            f"expected one of this model's readers ({', '.join(readers)}) or a copy of {INCEPTION_FILE} (from "
            f"torch-fidelity's release v0.2.0) to take features from, found no {source}"
        )
    return Inception(source)


def joint_reader(cascade: Cascade) -> Decomposer:
    """The model's own reader of images and captions in one space.

    Raises:
        ValueError: It has none.
    """
    for _, reader in cascade.readers.named():
        if reader.can_read({"image": torch.zeros(1, 3, 1, 1)}) and reader.can_read({"caption": [""]}):
            return reader
    raise ValueError("this model has no reader of both images and captions: name the weights of a CLIP (--clip)")


def measure(
    metrics: Collection[str],
    evaluation: Evaluation,
    batch: Batch,
    features: Features | None = None,
    reader: Decomposer | None = None,
) -> dict[str, Any]:
    """Draws a picture a row of a sample, from its caption where there is one, and compares the two sets.

    Args:
        metrics: Some of `METRICS`.
        evaluation: Draws, by its seeds.
        batch: The real images, at the size that they are compared at, and their captions if they have any.
        features: For FID and KID.
        reader: For the CLIP score.

    Returns:
        Plain JSON values: ``images``, their number; ``given``, what the model read; ``fid``; ``kid``, a value and the
        spread of its subsets; ``clip``, the mean score of the pictures (`score`), of the real images (`true`), and of
        the pictures with another row's caption (`another`).

    Raises:
        ValueError: A CLIP score is asked for, and there are no captions.
    """
    real, captions = batch["image"], batch.get("caption")
    if "clip" in metrics and captions is None:
        raise ValueError("a CLIP score wants captions: these images have none")
    parts = Parts() if captions is None else from_captions(evaluation.cascade, captions)
    fake = evaluation.draw(parts)
    found: dict[str, Any] = {"images": len(fake), "given": sorted(parts)}
    if features is not None and {"fid", "kid"} & set(metrics):
        a, b = embed(real, features), embed(fake, features)
        found |= {"fid": frechet_distance(a, b)} if "fid" in metrics else {}
        found |= {"kid": kernel_distance(a, b)._asdict()} if "kid" in metrics else {}
        found["features"] = a.shape[1]
    if reader is not None and captions is not None and "clip" in metrics:
        other = [captions[i] for i in evaluation.other.tolist()]
        asked = {"score": (fake, captions), "true": (real, captions), "another": (fake, other)}
        found["clip"] = {name: float(clip_score(*pair, reader).mean()) for name, pair in asked.items()}
    return found


def _markdown(found: dict[str, Any]) -> str:
    """What `measure` gave, as Markdown."""
    lines = ["| metric | value |", "|---|---|"]
    if "fid" in found:
        lines.append(f"| FID | {found['fid']:.2f} |")
    if "kid" in found:
        lines.append(f"| KID | {found['kid']['value']:.4f} (spread of a subset {found['kid']['spread']:.4f}) |")
    if "clip" in found:
        rest = f"(the real images {found['clip']['true']:.1f}, another's caption {found['clip']['another']:.1f})"
        lines.append(f"| CLIP score | {found['clip']['score']:.1f} {rest} |")
    given = ", ".join(found["given"]) or "nothing"
    lines += ["", f"{found['images']} pictures, given {given}, and as many real images."]
    if found["images"] <= found.get("features", 0) and "fid" in found:
        lines.append(f"FID says little here: it wants many more images than the {found['features']} features.")
    return "\n".join(lines) + "\n"
