"""Prompts by category, as DrawBench has them: pictures of each, their CLIP score, sheets and tables."""

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from composer.cascade.cascade import Cascade
from composer.cascade.options import SampleOptions
from composer.cascade.parts import Parts
from composer.decomposition import Decomposer
from composer.evaluation.adherence import quantise, with_prior
from composer.evaluation.metrics import clip_score
from composer.evaluation.vote import Pair, vote_page
from composer.images.reading import fit
from composer.images.sheet import Section, html_index, save_png, sheet
from composer.images.table import Table, escape_markdown
from composer.prior import Prior
from composer.storage.files import read_text, write_atomically
from composer.storage.pretrained import locate

LARGEST = 512
"""Side in pixels at which pictures are kept, for sheets and votes."""

_LABEL = 110
"""Characters of a prompt beside its row of a sheet; tables and pages have it whole."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One row of a file of prompts.

    Attributes:
        text: What the model is given.
        category: What the prompt tries.
        meaning: What CLIP compares the pictures with: the text, unless the file says otherwise. A CLIP that cannot read
            a misspelt or rare word says nothing about it.
    """

    text: str
    category: str
    meaning: str


def read_prompts(source: str | Path) -> list[Prompt]:
    """Reads a CSV with the columns ``Prompts`` and ``Category``, as DrawBench has them (Saharia et al. 2022).

    Case and the order of the columns do not matter. Blank rows and further columns are ignored, except ``Meaning``
    (see `Prompt`).

    Args:
        source: A file, or ``asset:scenes_prompts.csv`` for ours.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no CSV in UTF-8, lacks a column or a category, or holds no prompt.
    """
    path = locate(str(source), wanted="a CSV with the columns Prompts and Category", who="the evaluation of prompts")
    try:
        reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
        head = [name.strip().lower() for name in next(reader, [])]
        rows = [(reader.line_num, dict(zip(head, map(str.strip, row), strict=False))) for row in reader if any(row)]
    except csv.Error as error:
        raise ValueError(f"{path} cannot be read as a CSV: {error}") from error
    column = next((name for name in ("prompts", "prompt") if name in head), None)
    if column is None or "category" not in head:
        raise ValueError(f"{path}: expected the columns Prompts and Category, found {', '.join(head) or 'nothing'}")
    prompts = []
    for line, row in rows:
        text, category = row.get(column, ""), row.get("category", "")
        if not (text and category):
            raise ValueError(f"{path}, line {line}: expected a prompt and its category, found {text!r}, {category!r}")
        prompts.append(Prompt(text=text, category=category, meaning=row.get("meaning") or text))
    if not prompts:
        raise ValueError(f"{path} holds no prompts, only the columns {', '.join(head)}")
    return prompts


@dataclass(frozen=True)
class Answers:
    """What one model drew for the prompts.

    Attributes:
        images: 8 bits; the longer side is at most `LARGEST`.
        scores: CLIP score of each (see `clip_score`), at the size that the model draws.
        strangers: CLIP score of each with another prompt, unrelated to it: what chance gives.
        unread: The words of each prompt that the model does not know, or that its length cuts off.
    """

    images: UInt8[Tensor, "p n 3 h w"]
    scores: Float[Tensor, "p n"]
    strangers: Float[Tensor, "p n"]
    unread: list[tuple[str, ...]]

    def images_of(self, i: int) -> Float[Tensor, "n 3 h w"]:
        """The images of one prompt, in [-1, 1]."""
        return self.images[i].float() / 127.5 - 1


def seeds_of(i: int, n: int, seed: int = 0) -> list[int]:
    """The seeds of the i-th prompt's n pictures."""
    return [seed * 1_000_003 + 1000 * i + k for k in range(n)]


def answer(
    cascade: Cascade,
    prompts: Sequence[Prompt],
    reader: Decomposer,
    n: int = 4,
    seed: int = 0,
    rows: int = 32,
    progress: Callable[[int], None] = lambda count: None,
    options: SampleOptions | None = None,
    prior: Prior | None = None,
) -> Answers:
    """Draws pictures of prompts and scores them.

    Args:
        cascade: A model that reads captions.
        prompts: At least two, so that each has another one to be compared with.
        reader: Reads images and captions into one space.
        n: Pictures per prompt.
        seed: See `seeds_of`.
        rows: About how many pictures are drawn at a time.
        progress: Called with the number of pictures that were just drawn.
        options: How `Cascade.sample` differs from the model's own.
        prior: Draws the semantics of the prompts, where the model is to be given some.

    Raises:
        ValueError: The model reads no captions, or there are too few prompts or pictures.
    """
    if n < 1 or len(prompts) < 2:
        raise ValueError(f"expected at least 2 prompts and 1 picture of each, found {len(prompts)} and {n}")
    step, found = max(1, rows // n), []
    for start in range(0, len(prompts), step):
        index = range(start, min(start + step, len(prompts)))
        texts = [prompts[i].text for i in index for _ in range(n)]
        parts = from_captions(cascade, texts)
        if not parts:
            raise ValueError(
                f"a list of prompts needs a model that reads captions; this one reads {', '.join(cascade.names)}"
            )
        seeds = [s for i in index for s in seeds_of(i, n, seed)]
        images = quantise(cascade.sample(with_prior(parts, prior, texts, seeds), seeds=seeds, options=options))
        # Another prompt is half the file away: of another category, mostly
        own, other = (
            clip_score(images, [prompts[(i + away) % len(prompts)].meaning for i in index for _ in range(n)], reader)
            for away in (0, len(prompts) // 2)
        )
        found.append((_levels(images), own, other))
        progress(len(seeds))
    images, own, other = (torch.cat(parts) for parts in zip(*found, strict=True))
    shape = (len(prompts), n)
    unread = [_unread(cascade, prompt.text) for prompt in prompts]
    return Answers(images.reshape(*shape, *images.shape[1:]), own.reshape(shape), other.reshape(shape), unread)


def from_captions(cascade: Cascade, captions: list[str]) -> Parts:
    """The representations that a model computes from captions alone; none if it has no such condition."""
    read = cascade.decompose({"caption": captions})
    return Parts({name: value.to(cascade.device) for name, value in read.items() if name in cascade.names})


def _unread(cascade: Cascade, text: str) -> tuple[str, ...]:
    """Words that reach the model through none of the decomposers that read captions."""
    batch = {"caption": [text]}
    reads = [d for name, d in cascade.decomposition.named() if name in cascade.names and d.can_read(batch)]
    lost = [decomposer.unread(text) for decomposer in reads]
    return tuple(word for word in lost[0] if all(word in others for others in lost[1:]))


def _levels(images: Float[Tensor, "b 3 h w"]) -> UInt8[Tensor, "b 3 h2 w2"]:
    h, w = images.shape[-2:]
    if max(h, w) > LARGEST:
        images = fit(images, (round(h * LARGEST / max(h, w)), round(w * LARGEST / max(h, w))))
    return (images * 127.5 + 127.5).round().byte().cpu()


def by_category(prompts: Sequence[Prompt]) -> dict[str, list[int]]:
    """Which prompts each category has, in the file's order."""
    groups: dict[str, list[int]] = {}
    for i, prompt in enumerate(prompts):
        groups.setdefault(prompt.category, []).append(i)
    return groups


@dataclass(frozen=True)
class PromptScore:
    """Scores of some prompts.

    Attributes:
        prompts: How many they are.
        score: Their mean CLIP score.
        error: Its standard error over the prompts.
        another: The score of the same pictures with another prompt.
        words: How many words the prompts have.
        unread: How many of these the model does not read.
        unread_by_clip: How many words of the meanings the CLIP that scores does not read.
    """

    prompts: int
    score: float
    error: float
    another: float
    words: int
    unread: int
    unread_by_clip: int


@dataclass(frozen=True)
class Summary:
    """A model's scores by category, and of all prompts together."""

    categories: dict[str, PromptScore]
    all: PromptScore


def summary(prompts: Sequence[Prompt], answers: Answers, reader: Decomposer) -> Summary:
    """Sums up a model's scores.

    Args:
        prompts: The prompts.
        answers: What the model drew for them.
        reader: The reader that scored the pictures.
    """

    def of(index: list[int]) -> PromptScore:
        mean, error = _mean(answers.scores[index])
        return PromptScore(
            prompts=len(index),
            score=mean,
            error=error,
            another=float(answers.strangers[index].mean()),
            words=sum(len(prompts[i].text.split()) for i in index),
            unread=sum(len(answers.unread[i]) for i in index),
            unread_by_clip=sum(len(reader.unread(prompts[i].meaning)) for i in index),
        )

    categories = {category: of(index) for category, index in by_category(prompts).items()}
    return Summary(categories, of(list(range(len(prompts)))))


def _mean(scores: Float[Tensor, "p n"]) -> tuple[float, float]:
    """Mean, and its standard error over the prompts (0 of a single one)."""
    means = scores.mean(1)
    return float(means.mean()), float(means.std() / len(means) ** 0.5) if len(means) > 1 else 0.0


LEGEND = (
    "CLIP score: 100 max(cos, 0), mean and its standard error over the prompts; then that of the same pictures with "
    "another prompt. Words unread: how many words of the prompts the model does not know or has no room for; by CLIP: "
    "how many of those that it scores with."
)
HEAD = ["category", "prompts", "CLIP score", "with another prompt", "words unread", "by CLIP"]


def make_tables(prompts: Sequence[Prompt], answers: Mapping[str, Answers], reader: Decomposer) -> list[Section]:
    """Makes one table per model; for two models also one of their difference, prompt by prompt.

    Args:
        prompts: The prompts.
        answers: Of one model or two, by their names.
        reader: The reader that scored the pictures.
    """
    made: list[Section] = []
    for name, answer in answers.items():
        found = summary(prompts, answer, reader)
        rows = [_cells(category, score) for category, score in [*found.categories.items(), ("all", found.all)]]
        made.append(Section(title=name, text="" if made else LEGEND, table=Table(HEAD, rows)))
    if len(answers) == 2:
        (first, a), (second, b) = answers.items()
        rows = []
        for category, index in [*by_category(prompts).items(), ("all", list(range(len(prompts))))]:
            one, two, apart = (_mean(scores[index]) for scores in (a.scores, b.scores, a.scores - b.scores))
            rows.append([category, f"{one[0]:.1f}", f"{two[0]:.1f}", f"{apart[0]:+.1f} ± {apart[1]:.1f}"])
        made.append(Section(title="Difference", table=Table(["category", first, second, "difference"], rows)))
    return made


def _cells(category: str, of: PromptScore) -> list[str]:
    scores = [f"{of.score:.1f} ± {of.error:.1f}", f"{of.another:.1f}"]
    return [category, f"{of.prompts}", *scores, f"{of.unread} of {of.words}", f"{of.unread_by_clip}"]


def markdown(sections: Sequence[Section]) -> str:
    """Titles, texts and tables as Markdown."""
    blocks = []
    for section in sections:
        lines = [
            f"## {escape_markdown(section.title)}\n",
            *([f"{escape_markdown(section.text)}\n"] if section.text else []),
        ]
        blocks.append("\n".join([*lines, *([section.table.markdown()] if section.table else [])]))
    return "\n".join(blocks)


def write_report(
    out: Path, prompts: Sequence[Prompt], answers: Mapping[str, Answers], reader: Decomposer, seed: int = 0
) -> dict[str, Any]:
    """Writes the tables (`prompts.md`), one sheet per category and `index.html`; for two models also `vote.html`.

    Args:
        out: Folder.
        prompts: The prompts.
        answers: Of one model or two, by their names.
        reader: The reader that scored the pictures.
        seed: Of the pictures; shuffles the vote's sides too.

    Returns:
        Tables and single scores as plain JSON values.
    """
    sections = make_tables(prompts, answers, reader)
    write_atomically(out / "prompts.md", markdown(sections).encode())
    n = next(iter(answers.values())).images.shape[1]
    for number, (category, index) in enumerate(by_category(prompts).items(), start=1):
        grid = [[image for answer in answers.values() for image in answer.images_of(i)] for i in index]
        labels = [shorten(prompts[i].text, _LABEL, placeholder="...") for i in index]
        path = out / f"{number:02d}_{re.sub(r'[^a-z0-9]+', '_', category.lower()).strip('_')}.png"
        save_png(path, sheet(grid, labels, [f"{name}: {k + 1}" for name in answers for k in range(n)], category))
        sections.append(Section(title=category, pictures=[(path, "; ".join(prompts[i].text for i in index))]))
    if len(answers) == 2:
        (first, a), (second, b) = answers.items()
        pairs = [Pair(p.text, p.category, a.images_of(i), b.images_of(i)) for i, p in enumerate(prompts)]
        vote_page(out / "vote.html", pairs, (first, second), seed)
    html_index(out, sections, "Prompts: " + " and ".join(answers))
    single = [
        {**asdict(prompt), "seeds": seeds_of(i, n, seed)}
        | {name: {"scores": a.scores[i].tolist(), "unread": a.unread[i]} for name, a in answers.items()}
        for i, prompt in enumerate(prompts)
    ]
    return {"models": {name: asdict(summary(prompts, a, reader)) for name, a in answers.items()}, "prompts": single}
