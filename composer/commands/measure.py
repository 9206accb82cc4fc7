"""Commands that measure: ``evaluate``, ``report``; light, `commands.evaluating` does the former."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from composer.commands.groups import Machine, Model, ModelName, Sampling
from composer.commands.signature import Value
from composer.commands.values import MAX_SIDE, Count, Rows, Seed, whole
from composer.names import CLOSED, SHIPPED
from composer.storage.finding import find_model
from composer.terminal import note, say, show


def report(
    picture: Path,
    *,
    image: Path | None = None,
    out: Path = Path("out/report"),
    model: Model,
    plugins: Sequence[str],
) -> None:
    """Compare a picture with what its recipe asked for, condition by condition: what was asked, what came back.

    closed: 1 is exactly what was asked, 0 no nearer to it than other pictures are by chance

    Args:
        picture: a PNG that carries its recipe
        image: for an edit: the picture that was edited
        out: folder to write to
        model: The model, and what runs it.
        plugins: Modules that the user trusts.

    Examples:
        out/compose_seed0.png
        out/edit_photo_seed0.png --image photo.png --out out/report
    """
    from composer.evaluation.reading import strangers_note
    from composer.evaluation.report import examine
    from composer.images.reading import PictureFile
    from composer.images.sheet import read_recipe, save_png
    from composer.storage.files import reserved, written
    from composer.storage.folder import digest_of
    from composer.tasks.recipe import check_model

    file = PictureFile(picture)
    # before anything is loaded
    check_model(read_recipe(file), digest_of(find_model(model.model, model.allow_network)))
    cascade = model.load(model.model, plugins)
    found = examine(cascade, file, image)
    show(*(table.rich() for table in found.tables()))
    say(CLOSED)
    if missing := strangers_note(cascade):
        note(missing)
    with reserved(out, [f"report_{picture.stem}.png"]) as paths:
        save_png(paths[0], found.picture())
    say(written(paths))


@dataclass(frozen=True)
class Distributions:
    """Distributions: pictures drawn from the captions, compared with the images as a whole. None is kept: 30,000 take
    no more memory than 256, but for KID, which keeps the features of both, 246 MB each for 30,000 and Inception's 2048.

    Attributes:
        metrics: what to measure
        features: for FID and KID: a reader, or Inception's file
        clip: weights for the CLIP score (default: the model's own reader of captions)
    """

    metrics: tuple[Literal["adherence", "fid", "kid", "clip"], ...] = ("adherence",)
    features: Annotated[str, Value(metavar="NAME")] = "semantics"
    clip: Annotated[str, Value(metavar="WEIGHTS")] | None = None


@dataclass(frozen=True)
class Prompts:
    """Prompts

    Attributes:
        prompts: a CSV with the columns Prompts and Category; asset:scenes_prompts.csv is ours
        against: a second model, for a blind vote
        n: pictures per prompt
        out: folder to write to
    """

    prompts: Annotated[str, Value(metavar="FILE")] | None = None
    against: ModelName | None = None
    n: Annotated[int, Value(whole(1, 1000), "N")] = 4
    out: Path = Path("out/prompts")


@dataclass(frozen=True)
class Things:
    """Things

    Attributes:
        things: instead of all else, count what pictures of one to three things show, by this judge's folder
        captions: captions to count with
    """

    things: Annotated[str, Value(metavar="JUDGE")] | None = None
    captions: Literal["complete", "short"] = "complete"


@dataclass(frozen=True)
class Sample:
    """What is measured, and on what

    Attributes:
        data: scenes:val, scenes:novel, or a folder of images
        count: number of images
        min_side: a folder's images with a shorter side below N pixels are refused (default: the side they are measured
            at)
        seed: what the pictures' seeds are computed from
        rows: images read and pictures drawn at a time
        prior: a prior, such as scenes_prior_diffusion: wherever a caption is asked for without semantics, it draws them
        alone: only every condition alone: half the work
        json: file to write the table to
    """

    data: Annotated[str, Value(metavar="DATA")] = "scenes:val"
    count: Count = 256
    min_side: Annotated[int, Value(whole(0, MAX_SIDE), "N")] | None = None
    seed: Seed = 0
    rows: Rows = 32
    prior: Annotated[str, Value(metavar="NAME")] | None = None
    alone: bool = False
    json: Path | None = None


def evaluate(
    model: ModelName = SHIPPED,
    *,
    sample: Sample,
    distributions: Distributions,
    prompts: Prompts,
    things: Things,
    sampling: Sampling,
    machine: Machine,
    plugins: Sequence[str],
) -> None:
    """Measure adherence, whole distributions (FID, KID, CLIP score), or what comes of a list of prompts.

    Args:
        model: a model's folder, or owner/name@revision on the Hugging Face hub
        sample: What is measured, and on what.
        distributions: How distributions are.
        prompts: A list of prompts.
        things: What counts things.
        sampling: How pictures are sampled.
        machine: What runs it.
        plugins: Modules that the user trusts.

    Examples:
        scenes256 --data scenes:val --count 256 --seed 0 --json adherence.json
        scenes256 --prior scenes_prior_diffusion --alone
        scenes256 --metrics fid kid clip --data scenes:val --count 30000
        scenes256 --prompts asset:scenes_prompts.csv --n 4 --out out/prompts
        models/mine --against scenes256 --prompts prompts.csv
    """
    from composer.commands.evaluating import Measuring

    Measuring(model, sample, distributions, prompts, things, sampling, machine, plugins).run()
