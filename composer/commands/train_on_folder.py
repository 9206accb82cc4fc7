"""Training on a folder of images from start to end: fit, export, evaluate, and a recombined picture."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from composer.commands.drawing import draw
from composer.commands.evaluating import Measuring
from composer.commands.groups import DataOptions, DrawingOptions, FileOptions, ModelOptions
from composer.commands.models import export
from composer.commands.request import Request
from composer.commands.tasks import TASKS
from composer.commands.training import fit
from composer.data.folder import ImageFolder
from composer.names import GLOBAL, LOCAL
from composer.scenes import write_scenes
from composer.storage.finding import askable_conditions
from composer.terminal import say
from composer.training.cli import Configuration
from composer.training.stage import StageTraining

REHEARSAL = {"train": 256, "val": 16}
"""Scenes that stand in for images where no folder is given."""

MEASURED = 64
"""Images that adherence is measured on, at most."""


def train_on_folder(
    folder: Path | None, config: Path, out: Path, changes: Sequence[str], plugins: Sequence[str] = ()
) -> None:
    """Trains a model on a folder, measures it and draws with it; called again, it continues where it stopped.

    Args:
        folder: Holds the images in ``train`` and some others in ``val``; None trains a toy on Scenes.
        config: Configuration of a stage that begins with noise; the images replace its own.
        out: Where to write the run, the model, the table and the pictures.
        changes: Further options of ``fit``.
        plugins: Modules that the user trusts.

    Raises:
        FileNotFoundError: The folder is not laid out like that.
        ValueError: The configuration trains something else, or there are too few images.
    """
    size = _size(config, changes, plugins)
    if folder is None:
        folder = out / "scenes"
        for part, scenes in REHEARSAL.items():
            write_scenes(part, scenes, size, folder / part)
        changes = ["--data.train.crop", "centre", "--data.train.flip", "false", *changes]  # maps lie beside Scenes
    held_out = _held_out(folder, size)
    run, model, table, pictures = out / "run", out / "model", out / "adherence.json", out / "recombined"

    words = ["-c", str(config), "--trainer.default_root_dir", str(run), "--ckpt_path", "last"]
    for key, part in (("--data.train", "train"), ("--data.validation", "val")):
        words += [key, "ImageFolder", f"{key}.path", str(folder / part)]
        words += [f"{key}.size", str(size), f"{key}.captions", "empty"]
    fit([*words, *changes], plugins)
    export(run, model, plugins=plugins)
    measured = DataOptions(str(folder / "val"), count=min(len(held_out), MEASURED), json=table)
    Measuring(str(model), measured, plugins).run()
    _recombine(model, held_out[:2], pictures, plugins)
    say(f"run in {run}, model in {model}, table in {table}, pictures in {pictures}")


def _size(config: Path, changes: Sequence[str], plugins: Sequence[str]) -> int:
    """The side of the images that a configuration trains on."""
    model = Configuration(["-c", str(config), *changes], plugins).config.model
    module, _, name = model.class_path.rpartition(".")
    if getattr(import_module(module), name) is not StageTraining or "low_res" in model.init_args.conditions:
        raise ValueError(f"expected a configuration of a stage that begins with noise, such as tiny, found {config}")
    size: int = model.init_args.size
    return size


def _held_out(folder: Path, size: int) -> list[str]:
    """The images to measure with."""
    for part in REHEARSAL:
        if not (folder / part).is_dir():
            raise FileNotFoundError(
                f"expected images to train on in {folder / 'train'} and some others, say one in twenty, in "
                f"{folder / 'val'}; there is no folder {folder / part}"
            )
    found = [path for path, _ in ImageFolder(str(folder / "val"), size, captions="empty").items]
    if len(found) < 2:
        raise ValueError(f"expected at least 2 images in {folder / 'val'} to measure with, found {len(found)}")
    return found


def _recombine(model: Path, images: Sequence[str], out: Path, plugins: Sequence[str]) -> None:
    """Draws the layout of one image with the looks of another, of the conditions that the model has."""
    names = askable_conditions(model)
    pairs = [(name, image) for group, image in zip((LOCAL, GLOBAL), images, strict=True) for name in group]
    asked = {name: (image,) for name, image in pairs if name in names}
    if not asked:
        say(f"note: nothing to recombine, the model reads {', '.join(names)}")
        return
    conditions = dict.fromkeys(names, ()) | asked
    drawing, files = DrawingOptions(seeds=(0, 1, 2)), FileOptions(out)
    which = ModelOptions(model=str(model))
    draw(Request(TASKS["compose"], conditions=conditions, drawing=drawing, files=files, model=which), plugins)
