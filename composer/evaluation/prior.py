"""Measures a prior: its embeddings against those of true images, and pictures drawn with and without it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from composer.cascade.cascade import Cascade
from composer.cascade.options import SampleOptions
from composer.cascade.parts import Parts
from composer.decomposition import Batch, Decomposer
from composer.evaluation.adherence import quantise
from composer.images.table import Table
from composer.prior.interface import SEMANTICS, Prior, text_embedding


@dataclass(frozen=True)
class EmbeddingScore:
    """Embeddings of captions, made in one way.

    Attributes:
        to_image: Their mean cosine with the true image's.
        to_text: With the text embedding.
        found: The share whose nearest true image is their own.
        among_draws: The mean cosine of two embeddings of a caption; None where there is only one.
    """

    to_image: float
    to_text: float
    found: float
    among_draws: float | None = None


@dataclass(frozen=True)
class PictureScore:
    """Pictures of captions, asked for in one way.

    Attributes:
        adherence: The mean cosine of picture and caption as the model's reader of captions has it.
        spread: 1 less the mean cosine of two pictures of a caption as its reader of semantics has it; None where there
            is one picture.
        pixels: The root mean square difference of two such pictures, in [0, 2].
    """

    adherence: float
    spread: float | None = None
    pixels: float | None = None


ROWS = 64
"""Embeddings or pictures drawn at a time."""


def mean_pairwise_cosine(groups: Float[Tensor, "n k d"]) -> float:
    """The mean cosine of two different vectors of a group, over pairs and groups; 1 where all of a group are the same.

    Args:
        groups: n groups of k vectors, k at least 2.
    """
    unit = F.normalize(groups, dim=2)
    pairs = [(unit[:, i] * unit[:, j]).sum(1) for i, j in combinations(range(groups.shape[1]), 2)]
    return float(torch.stack(pairs).mean())


def measure_embeddings(
    prior: Prior,
    images: Decomposer,
    batch: Batch,
    draws: int = 4,
    guidances: Sequence[float] = (1.0,),
    progress: Callable[[int], object] = lambda done: None,
    retold: Float[Tensor, "n k 3 h w"] | None = None,
) -> dict[str, EmbeddingScore]:
    """Compares drawn embeddings with those of the true images.

    Were a prior perfect at guidance 1, with neither choice among candidates nor a percentile, the true image would be
    one draw among others: ``to_image`` would equal ``among_draws``.

    Args:
        prior: What is measured.
        images: Reads the embeddings of images, as in the prior's training.
        batch: Images with captions, at least 2.
        draws: Embeddings per caption, at least 2.
        guidances: Weights of guidance to measure.
        progress: Called with the number of embeddings that were just drawn.
        retold: Other true images of the same captions, at least 2 each, where the world can make such.

    Returns:
        For draws at each guidance, the middle of the draws, other images of the caption where they are known, the text
        embedding itself and another caption's image.

    Raises:
        ValueError: There are too few images or draws, or something has no caption.
    """
    captions = batch.get("caption", [])
    if len(batch["image"]) < 2 or draws < 2 or not captions or not all(captions):
        raise ValueError(
            f"expected at least 2 images, each with a caption, and 2 draws, found {len(batch['image'])} images, "
            f"{sum(map(bool, captions))} captions and {draws} draws"
        )
    if prior.encode is None:
        raise ValueError("this prior has no caption encoder: use Prior.load, or set one by prior.reads(...)")
    true = images({"image": batch["image"]}).float().cpu()
    text = text_embedding(prior.encode({"caption": captions}), prior.dim).cpu()
    table: dict[str, EmbeddingScore] = {}
    for w in guidances:
        drawn = torch.cat([_draw(prior, captions, k, w, progress) for k in range(draws)], dim=1)
        table[f"prior, guidance {w:g}"] = _score(drawn, true, text)
        table[f"prior, guidance {w:g}, middle of {draws}"] = _score(F.normalize(drawn, dim=2).mean(1, True), true, text)
    if retold is not None:
        others = images({"image": retold.flatten(0, 1)}).float().cpu().unflatten(0, retold.shape[:2])
        table["other images of the caption"] = _score(others, true, text)
    table["text embedding itself"] = _score(text[:, None], true, text)
    table["image of another caption"] = _score(true.roll(1, 0)[:, None], true, text)
    return table


def _draw(
    prior: Prior, captions: Sequence[str], k: int, w: float, progress: Callable[[int], object]
) -> Float[Tensor, "n 1 d"]:
    done = []
    for start in range(0, len(captions), ROWS):
        some = captions[start : start + ROWS]
        seeds = range(k * len(captions) + start, k * len(captions) + start + len(some))
        done.append(prior.sample(some, seeds=seeds, guidance=w).cpu())
        progress(len(some))
    return torch.cat(done)[:, None]


def _score(drawn: Float[Tensor, "n k d"], true: Float[Tensor, "n d"], text: Float[Tensor, "n d"]) -> EmbeddingScore:
    nearest = (F.normalize(drawn, dim=2) @ F.normalize(true, dim=1).T).argmax(2)
    return EmbeddingScore(
        to_image=float(F.cosine_similarity(drawn, true[:, None], dim=2).mean()),
        to_text=float(F.cosine_similarity(drawn, text[:, None], dim=2).mean()),
        found=float((nearest == torch.arange(len(true))[:, None]).float().mean()),
        among_draws=mean_pairwise_cosine(drawn) if drawn.shape[1] > 1 else None,
    )


def measure_pictures(
    prior: Prior,
    cascade: Cascade,
    batch: Batch,
    draws: int = 4,
    guidance: float | None = None,
    progress: Callable[[int], object] = lambda done: None,
    options: SampleOptions | None = None,
) -> tuple[dict[str, PictureScore], dict[str, Float[Tensor, "n k 3 h w"]]]:
    """Draws pictures of captions with and without the prior, by a model that reads ``caption`` and ``semantics``.

    Args:
        prior: What is measured.
        cascade: What draws.
        batch: Images with captions.
        draws: Pictures per caption, at least 2.
        guidance: The prior's; None is its own.
        progress: Called with the number of pictures that were just drawn.
        options: How `Cascade.sample` differs from the model's own.

    Returns:
        The score of each way of asking, of the true images and of another image's caption; and the pictures.

    Raises:
        ValueError: The model lacks one of the conditions, or reads embeddings of another width.
    """
    if missing := [name for name in ("caption", SEMANTICS) if name not in cascade.names]:
        raise ValueError(f"expected a model that reads captions and semantics; this one lacks {', '.join(missing)}")
    captions = batch["caption"]
    parts, n = cascade.decompose({"image": batch["image"], "caption": captions}), len(captions)
    if parts[SEMANTICS].shape[1] != prior.dim:
        raise ValueError(
            f"the model reads embeddings of width {parts[SEMANTICS].shape[1]}, the prior draws width {prior.dim}: they "
            "belong to different CLIPs"
        )
    assert prior.encode is not None
    drawn = torch.cat([prior.sample([c], draws, range(draws), guidance) for c in captions])
    text = prior.captions.sentence(prior.encode({"caption": captions}))
    ways: dict[str, Parts] = {
        "caption": _each(parts.pick("caption"), draws),
        "caption + prior": _each(parts.pick("caption"), draws) | {SEMANTICS: drawn},
        "prior": Parts({SEMANTICS: drawn}),
        "caption + text embedding": _each(parts.pick("caption") | {SEMANTICS: text}, draws),
        "caption + true embedding": _each(parts.pick("caption", SEMANTICS), draws),
    }
    wanted = cascade.read({"caption": captions})["caption"]
    table, pictures = dict[str, PictureScore](), {}
    for way, asked in ways.items():
        done = []
        for i in range(n):
            rows = asked.rows(slice(i * draws, (i + 1) * draws))
            done.append(quantise(cascade.sample(rows, seeds=range(draws), options=options).cpu()))
            progress(draws)
        pictures[way] = torch.stack(done)
        table[way] = _look(cascade, pictures[way], wanted)
    true = batch["image"][:, None]
    table["true image"] = PictureScore(_adherence(cascade, true, wanted))
    table["true image of another caption"] = PictureScore(_adherence(cascade, true.roll(1, 0), wanted))
    return table, pictures


def _each(parts: Mapping[str, Tensor], times: int) -> Parts:
    return Parts({name: value.repeat_interleave(times, 0) for name, value in parts.items()})


def _look(cascade: Cascade, pictures: Float[Tensor, "n k 3 h w"], wanted: Tensor) -> PictureScore:
    seen = cascade.read({"image": pictures.flatten(0, 1)})[SEMANTICS].view(*pictures.shape[:2], -1)
    pairs = combinations(range(pictures.shape[1]), 2)
    apart = torch.stack([(pictures[:, i] - pictures[:, j]).square().mean((1, 2, 3)).sqrt() for i, j in pairs])
    return PictureScore(
        adherence=_adherence(cascade, pictures, wanted),
        spread=1 - mean_pairwise_cosine(seen),
        pixels=float(apart.mean()),
    )


def _adherence(cascade: Cascade, pictures: Float[Tensor, "n k 3 h w"], wanted: Tensor) -> float:
    reader = dict(cascade.readers.named())["caption"]
    got = cascade.read({"image": pictures.flatten(0, 1)})["caption"]
    return 1 - float(reader.distance(wanted.repeat_interleave(pictures.shape[1], 0), got).mean())


def as_json(table: Mapping[str, EmbeddingScore | PictureScore]) -> dict[str, dict[str, float]]:
    """Way -> measure -> value, without measures that do not apply."""
    rows = {way: asdict(score) for way, score in table.items()}
    return {way: {name: value for name, value in row.items() if value is not None} for way, row in rows.items()}


def markdown(table: Mapping[str, EmbeddingScore | PictureScore]) -> str:
    """A table as Markdown; a dash where a measure does not apply."""
    found = as_json(table)
    columns = list(dict.fromkeys(name for row in found.values() for name in row))
    rows = [[way, *(f"{row[name]:.3f}" if name in row else "-" for name in columns)] for way, row in found.items()]
    return Table(["", *(name.replace("_", " ") for name in columns)], rows).markdown()
