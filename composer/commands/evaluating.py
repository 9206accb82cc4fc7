"""The command ``evaluate``: adherence, whole distributions, and what comes of a list of prompts."""

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import rich.progress

from composer.cascade.cascade import Cascade
from composer.cascade.options import SampleOptions
from composer.commands.options import load
from composer.commands.parsers import sampling
from composer.commands.priors import prior_for
from composer.data.folder import summarise
from composer.decomposition import Decomposer
from composer.evaluation.adherence import Evaluation
from composer.evaluation.counting import evaluate_things
from composer.evaluation.distribution import features_of, joint_reader, markdown, measure
from composer.evaluation.prompts import answer, read_prompts, write_report
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
            adherence = evaluation.singles() if o.alone else evaluation.table()
            table |= adherence.json()
            texts.append(adherence.markdown())
        if others:
            if last is not first:
                samples.append(open_sample(o.data, o.count, last.size, o.min_side))
            evaluation = Evaluation(
                cascade, samples[-1], **shared, options=SampleOptions(until=last.name) | sampling(o)
            )
            progress.reset(task, total=o.count)
            table["distribution"] = measure(others, evaluation, features, reader)
            texts.append(markdown(table["distribution"]))
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
