"""The command ``evaluate``: adherence, whole distributions, and what comes of a list of prompts."""

import argparse
import json
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import rich.progress
import torch

from composer.cascade.cascade import Cascade
from composer.cascade.options import SampleOptions
from composer.cascade.parts import Parts
from composer.commands.options import load
from composer.commands.parsers import sampling
from composer.commands.priors import prior_for
from composer.data.folder import summarise
from composer.decomposition import Decomposer
from composer.evaluation.adherence import Evaluation, markdown, with_prior
from composer.evaluation.counting import evaluate_things
from composer.evaluation.metrics import INCEPTION_FILE, Comparison, Features, Inception, clip_score, read_by
from composer.evaluation.prompts import answer, from_captions, read_prompts, write_report
from composer.evaluation.samples import open_sample
from composer.prior import Prior
from composer.storage.files import write_atomically
from composer.terminal import bar, note, say
from decomposers import Agreement


def evaluate(o: argparse.Namespace, plugins: Sequence[str]) -> None:
    """Measure adherence, whole distributions (FID, KID, CLIP score), or what comes of a list of prompts."""
    cascade = load(o, plugins)
    prior = _prior(o, cascade, plugins)
    about = {name: getattr(o, name) for name in ("seed", "precision")} | {"sampling": sampling(o).said()}
    about |= {"prior": prior.sha256} if prior is not None else {}
    about["autoguidance"] = cascade.weaker and cascade.weaker.sha256
    if o.prompts is not None:
        return _evaluate_prompts(o, cascade, prior, plugins, about)
    if o.things is not None:
        return evaluate_things(o, cascade, about, sampling(o))
    table, texts = _measure(o, cascade, prior)
    say(*texts)
    if o.json is not None:
        table["about"] = about | {"model": cascade.sha256, "data": o.data, "count": o.count}
        write_atomically(o.json, (json.dumps(table, indent=2) + "\n").encode())
    return None


def _measure(o: argparse.Namespace, cascade: Cascade, prior: Prior | None) -> tuple[dict[str, Any], list[str]]:
    """Adherence and distributions, as tables and as Markdown."""
    first, last = cascade.stages[0], cascade.stages[-1]
    samples = [open_sample(o.data, o.count, first.size, o.min_side)]
    table, texts = dict[str, Any](), list[str]()
    others = [metric for metric in o.metrics if metric != "adherence"]
    features = features_of(cascade, o.features) if {"fid", "kid"} & set(others) else None
    reader = _caption_reader(o, cascade) if "clip" in others else None
    if prior is not None and "caption" not in samples[0].read([0]):
        raise ValueError(f"--prior draws the semantics of captions, and there are none in {o.data}")
    with _bar() as progress:
        task = progress.add_task("drawing")
        shared = {"seed": o.seed, "rows": o.rows, "progress": partial(progress.advance, task), "prior": prior}
        if "adherence" in o.metrics:
            evaluation = Evaluation(cascade, samples[0], **shared, options=sampling(o))
            progress.update(task, total=o.count * len(evaluation.scored) if o.alone else evaluation.count())
            table |= evaluation.singles() if o.alone else evaluation.table()
            texts.append(markdown(table))
        if others:
            if last is not first:
                samples.append(open_sample(o.data, o.count, last.size, o.min_side))
            evaluation = Evaluation(
                cascade, samples[-1], **shared, options=SampleOptions(until=last.name) | sampling(o)
            )
            progress.reset(task, total=o.count)
            table["distribution"] = measure(others, evaluation, features, reader)
            texts.append(_markdown(table["distribution"]))
    if prior is not None:
        texts.append(f"Captions that came without semantics went through the prior {o.prior}.\n")
    refused = {path: why for sample in samples if sample.ledger for path, why in sample.ledger.listed.items()}
    if refused:
        note(f"note: {summarise(refused.values())}")
    return table, texts


def _prior(o: argparse.Namespace, cascade: Cascade, plugins: Sequence[str]) -> Prior | None:
    """The prior that the options name, if it suits the model."""
    return None if o.prior is None else prior_for(cascade, o.prior, {"caption"}, plugins, o.allow_network)


def _bar() -> rich.progress.Progress:
    """A bar with the time that is left; by default it forgets after 30 s, and drawing some rows may take longer."""
    return bar(transient=True, speed_estimate_period=3600)


def _caption_reader(o: argparse.Namespace, cascade: Cascade) -> Decomposer:
    if o.clip is None:
        return joint_reader(cascade)
    return Agreement(weights=o.clip)


def _evaluate_prompts(
    o: argparse.Namespace, cascade: Cascade, prior: Prior | None, plugins: Sequence[str], about: dict[str, Any]
) -> None:
    """Draws and scores a list of prompts, with one model or two."""
    models = {Path(o.model).resolve().name: cascade}
    if o.against is not None:
        name = Path(o.against).resolve().name
        name = f"{name} (2)" if name in models else name
        models[name] = load(argparse.Namespace(**{**vars(o), "model": o.against, "autoguidance": None}), plugins)
        _prior(o, models[name], plugins)  # which refuses a model that it does not suit
    asked, reader = read_prompts(o.prompts), _caption_reader(o, cascade)
    with _bar() as progress:
        task = progress.add_task("drawing", total=len(models) * len(asked) * o.n)
        advance = partial(progress.advance, task)
        answers = {
            name: answer(model, asked, reader, o.n, o.seed, o.rows, advance, sampling(o), prior)
            for name, model in models.items()
        }
    found = write_report(o.out, asked, answers, reader, o.seed)
    found["about"] = about | {"models": {name: model.sha256 for name, model in models.items()}}
    write_atomically(o.json or o.out / "prompts.json", (json.dumps(found, indent=2) + "\n").encode())
    say((o.out / "prompts.md").read_text(encoding="utf-8"))
    say(f"open {o.out / 'index.html'}" + (f", vote in {o.out / 'vote.html'}" if o.against else ""))


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
    features: Features | None = None,
    reader: Decomposer | None = None,
) -> dict[str, Any]:
    """Draws a picture a row of a sample, from its caption where there is one, and compares the two sets.

    Pictures are let go of as soon as they have been read; see `Comparison` for what is kept of them.

    Args:
        metrics: Some of fid, kid, clip.
        evaluation: Draws, by its seeds. Its sample is the real images, at the size that they are compared at, and
            their captions if they have any.
        features: For FID and KID.
        reader: For the CLIP score.

    Returns:
        Plain JSON values: ``images``, their number; ``given``, what the model read; ``fid``; ``kid``, a value and the
        spread of its subsets; ``clip``, the mean score of the pictures (`score`), of the real images (`true`), and of
        the pictures with another row's caption (`another`).

    Raises:
        ValueError: A CLIP score is asked for, and there are no captions.
    """
    count = evaluation.sample.count
    comparison = Comparison(features, metrics, count) if features is not None else None
    found: dict[str, Any] = {"images": count}
    totals = dict.fromkeys(("score", "true", "another"), 0.0)
    for span in evaluation.spans():
        batch = evaluation.read(span)
        real, captions = batch["image"], batch.get("caption", [])
        if reader is not None and not captions:
            raise ValueError("a CLIP score wants captions: these images have none")
        parts = from_captions(evaluation.cascade, captions) if captions else Parts()
        parts = with_prior(parts, evaluation.prior, captions, evaluation.seeds_of(span))
        fake = evaluation.draw(parts, span)
        found["given"] = sorted(parts)
        if comparison is not None:
            comparison.update(real, fake)
        if reader is not None:
            other = evaluation.sample.read(evaluation.others(span))["caption"]
            asked = {"score": (fake, captions), "true": (real, captions), "another": (fake, other)}
            for name, pair in asked.items():
                totals[name] += float(clip_score(*pair, reader).double().sum())
    if comparison is not None:
        found |= comparison.compute()
    if reader is not None:
        found["clip"] = {name: total / count for name, total in totals.items()}
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
