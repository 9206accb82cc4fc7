"""Commands that measure: ``evaluate``, ``report``; light, `commands.evaluating` does the former."""

from collections.abc import Sequence
from pathlib import Path

from composer.commands.groups import (
    DataOptions,
    DistributionOptions,
    MachineOptions,
    ModelOptions,
    PromptOptions,
    SamplingOptions,
    ThingOptions,
)
from composer.commands.values import Model, Out
from composer.names import CLOSED, SHIPPED
from composer.storage.finding import find_model
from composer.terminal import note, say, show


def report(
    picture: Path,
    *,
    image: Path | None = None,
    out: Out = Path("out/report"),
    model: ModelOptions,
    plugins: Sequence[str],
) -> None:
    """Compare a picture with what its recipe asked for, condition by condition.

    closed: 1 is a perfect match, 0 is no better than chance

    Args:
        picture: a PNG that carries its recipe
        image: for an edit: the picture that was edited

    Examples:
        out/compose_seed0.png
        out/edit_photo_seed0.png --image photo.png --out out/report
    """
    from composer.evaluation.reading import strangers_note
    from composer.evaluation.report import report as measure
    from composer.images.reading import PictureFile
    from composer.images.sheet import read_recipe, save_png
    from composer.storage.files import list_written, reserved
    from composer.storage.folder import digest_of
    from composer.tasks.recipe import check_model

    file = PictureFile(picture)
    # before anything is loaded
    check_model(read_recipe(file), digest_of(find_model(model.model, model.allow_network)))
    cascade = model.load(model.model, plugins)
    found = measure(file, cascade, image)
    show(*(table.rich() for table in found.tables()))
    say(CLOSED)
    if missing := strangers_note(cascade):
        note(missing)
    with reserved(out, [f"report_{picture.stem}.png"]) as paths:
        save_png(paths[0], found.picture())
    say(list_written(paths))


def evaluate(
    model: Model = SHIPPED,
    *,
    sample: DataOptions,
    distributions: DistributionOptions,
    prompts: PromptOptions,
    things: ThingOptions,
    sampling: SamplingOptions,
    machine: MachineOptions,
    plugins: Sequence[str],
) -> None:
    """Measure a model: adherence to its conditions, FID, KID, CLIP score, or a list of prompts.

    Examples:
        scenes256 --data scenes:val --count 256 --seed 0 --json adherence.json
        scenes256 --prior scenes_prior_diffusion --alone
        scenes256 --metrics fid kid clip --data scenes:val --count 30000
        scenes256 --prompts asset:scenes_prompts.csv --n 4 --out out/prompts
        models/mine --against scenes256 --prompts prompts.csv
    """
    from composer.commands.evaluating import Measuring

    Measuring(model, sample, plugins, distributions, prompts, things, sampling, machine).run()
