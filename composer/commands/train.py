"""``train``: from a folder of images to a model, its table and a picture; light."""

from collections.abc import Sequence
from pathlib import Path

from composer.commands.values import Config, Out
from composer.storage.finding import find_config


def train(
    folder: Path | None = None,
    *,
    config: Config = Path("tiny"),
    out: Out = Path("out/train"),
    rest: Sequence[str],
    plugins: Sequence[str],
) -> None:
    """Train on a folder of images from start to finish: fit, export, evaluate, and draw recombined pictures.

    FOLDER/train holds the images and FOLDER/val some others to measure with; without FOLDER, a toy model is
    trained on rendered Scenes. Run again, it continues where it stopped.

    Args:
        folder: the folder of images
        config: the training's configuration: a file, or the name of an included one (default tiny, a toy of 32 px;
            folder64 is for a GPU)

    Examples:

        photos --trainer.max_steps 3000
        photos -c folder64 --out out/photos --data.batch_size 16
    """
    from composer.commands.train_on_folder import train_on_folder

    train_on_folder(folder, find_config(str(config)), out, rest, plugins)
