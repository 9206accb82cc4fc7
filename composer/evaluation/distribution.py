"""Pictures drawn from captions, compared as a whole with real images: FID, KID, CLIP score."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from composer.cascade.cascade import Cascade
from composer.cascade.parts import Parts
from composer.decomposition import Decomposer
from composer.evaluation.adherence import Evaluation, with_prior
from composer.evaluation.metrics import INCEPTION_FILE, Comparison, Features, Inception, clip_score, read_by
from composer.evaluation.prompts import from_captions
from composer.evaluation.tally import Part, Tally
from composer.images.table import Table


def features_of(cascade: Cascade, source: str) -> Features:
    """Finds a feature extractor by name.

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


SCORES = ("score", "true", "another")
"""CLIP scores: of the pictures, of the real images, of the pictures with another row's caption."""


def measure(
    metrics: Collection[str],
    evaluation: Evaluation,
    features: Features | None = None,
    reader: Decomposer | None = None,
    part: Part | None = None,
) -> dict[str, Any] | None:
    """Draws one picture per row of a sample, from its caption if there is one, and compares the two sets.

    Pictures are discarded as soon as they have been read; see `Comparison` for what is kept of them.

    Args:
        metrics: Some of fid, kid, clip.
        evaluation: Draws, by its seeds. Its sample is the real images, at the size that they are compared at, and
            their captions if they have any.
        features: For FID and KID.
        reader: For the CLIP score.
        part: Which batches to draw, and where sums are kept; None draws all and keeps nothing.

    Returns:
        Plain JSON values: ``images``, their number; ``given``, what the model read; ``fid``; ``kid``, a value and the
        spread of its subsets; ``clip``, the mean of each of `SCORES`. None where other parts are not finished yet.

    Raises:
        ValueError: A CLIP score is asked for, and there are no captions; or the sums are of another evaluation.
    """
    part = part or Part()
    part.missing()  # refuses sums of another evaluation before anything is drawn
    count, tally = evaluation.sample.count, part.resume()
    comparison = Comparison(features, metrics, count) if features is not None else None
    scores = tally.sums.pop("scores", torch.zeros(len(SCORES), dtype=torch.float64))
    if comparison is not None and tally.sums:
        comparison.take_sums(tally.sums)

    def keep(finished: bool = False) -> None:
        tally.sums = {"scores": scores} | (comparison.sums() if comparison is not None and tally.batches else {})
        part.keep(tally, finished)

    for number, span in enumerate(list(evaluation.spans())[part.number - 1 :: part.parts]):
        if number < tally.batches:
            evaluation.progress(len(span))
            continue
        batch = evaluation.read(span)
        real, captions = batch["image"], batch.get("caption", [])
        if reader is not None and not captions:
            raise ValueError("a CLIP score needs captions: these images have none")
        parts = from_captions(evaluation.cascade, captions) if captions else Parts()
        parts = with_prior(parts, evaluation.prior, captions, evaluation.seeds_of(span))
        fake = evaluation.draw(parts, span)
        tally.given, tally.batches = sorted(parts), number + 1
        if comparison is not None:
            comparison.update(real, fake, span[0])
        if reader is not None:
            other = evaluation.sample.read(evaluation.others(span))["caption"]
            pairs = ((fake, captions), (real, captions), (fake, other))
            scores += torch.stack([clip_score(images, texts, reader).double().sum() for images, texts in pairs])
        keep()
    keep(finished=True)
    if part.missing():
        return None
    return _compute(part.join(tally), comparison, count, reader is not None)


def _compute(tally: Tally, comparison: Comparison | None, count: int, scored: bool) -> dict[str, Any]:
    """The figures that sums over all pictures give."""
    found: dict[str, Any] = {"images": count, "given": tally.given}
    if comparison is not None:
        comparison.take_sums(tally.sums)
        found |= comparison.compute()
    if scored:
        found["clip"] = dict(zip(SCORES, (tally.sums["scores"] / count).tolist(), strict=True))
    return found


def markdown(found: dict[str, Any]) -> str:
    """The result of `measure` as Markdown."""
    rows = []
    if "fid" in found:
        rows.append(("FID", f"{found['fid']:.2f}"))
    if "kid" in found:
        rows.append(("KID", f"{found['kid']['value']:.4f} (spread of a subset {found['kid']['spread']:.4f})"))
    if "clip" in found:
        rest = f"(the real images {found['clip']['true']:.1f}, another's caption {found['clip']['another']:.1f})"
        rows.append(("CLIP score", f"{found['clip']['score']:.1f} {rest}"))
    given = ", ".join(found["given"]) or "nothing"
    lines = [f"{found['images']} pictures, given {given}, and as many real images."]
    if found["images"] <= found.get("features", 0) and "fid" in found:
        lines.append(f"FID is unreliable here: it needs many more images than its {found['features']} features.")
    return f"{Table(('metric', 'value'), rows).markdown()}\n" + "\n".join(lines) + "\n"
