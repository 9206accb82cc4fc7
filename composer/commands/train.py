"""``train``: from a folder of images to a model, its table and a picture."""

from collections.abc import Sequence
from pathlib import Path

from composer.commands.parsers import add_config, add_out, make_parser


def train(args: Sequence[str], plugins: Sequence[str]) -> None:
    """Train on a folder of images from start to end: fit, export, evaluate, and draw a recombined picture."""
    parser = make_parser(
        "train",
        f"{train.__doc__}\n\nFOLDER/train holds the images and FOLDER/val some others to measure with; without FOLDER "
        "it rehearses\non rendered Scenes. Run again, it continues where it stopped.",
        "",
        "photos --trainer.max_steps 3000",
        "photos -c folder64 --out out/photos --data.batch_size 16",
        usage="[FOLDER] [-c CONFIG] [--out FOLDER] [--KEY VALUE ...]",
    )
    about = "default tiny, a toy of 32 px; folder64 is for a GPU; further options go to fit"
    add_config(parser, about, default="tiny")
    add_out(parser, "out/train")
    folder = next((word for word in args[:1] if not word.startswith("-")), None)  # later words may be options' values
    o, changes = parser.parse_known_args(args if folder is None else args[1:])
    from composer.commands.train_on_folder import train_on_folder

    train_on_folder(None if folder is None else Path(folder), o.config, o.out, changes, plugins)
