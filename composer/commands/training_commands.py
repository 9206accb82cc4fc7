"""The commands ``fit``, ``validate``, ``test`` and ``train``; light, `cli` and `train_on_folder` do them."""

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from composer.commands.parsers import Parser, add_config, add_out, make_parser
from composer.storage.finding import find_config

ALL = "--help=full"
"""Asks for the help that lists every option; Lightning takes a while to write it."""


def fit(args: Sequence[str], plugins: Sequence[str]) -> None:
    """Train a network from a configuration: one YAML, whose values options may change."""
    parser = _parser(
        "fit",
        f"{fit.__doc__} The run goes to runs/NAME.",
        "-c tiny",
        "-c folder64 --data.train.path photos/train --data.batch_size 16",
        "-c tiny --ckpt_path last --trainer.max_steps 600",
    )
    add = parser.add_argument_group("usual options").add_argument
    add("--ckpt_path", metavar="last", help="continue the run where it stopped; starts it where there is none")
    add("--trainer.default_root_dir", metavar="FOLDER", help="the run's folder (default runs/NAME)")
    add("--trainer.max_steps", metavar="N", help="steps of the optimiser in total")
    add("--trainer.devices", metavar="N", help="GPUs (default: all)")
    add("--trainer.precision", metavar="P", help="32-true, bf16-mixed, ...")
    add("--data.batch_size", metavar="N", help="images per batch and device")
    add("--data.workers", metavar="N", help="processes that read images")
    add("--data.train.path", metavar="FOLDER", help="images to train on, of a configuration that reads a folder")
    add("--model.learning_rate", metavar="R", help="of the optimiser")
    add("--model.start_from", metavar="MODEL", help="begin with the weights of a model that is trained already")
    _run(parser, "fit", args, plugins)


def validate(args: Sequence[str], plugins: Sequence[str]) -> None:
    """Measure a run's checkpoint on its validation data."""
    _run(_parser("validate", validate.__doc__, "-c runs/tiny/config.yaml --ckpt_path last"), "validate", args, plugins)


def test(args: Sequence[str], plugins: Sequence[str]) -> None:
    """Measure a run's checkpoint on its test data."""
    _run(_parser("test", test.__doc__, "-c runs/tiny/config.yaml --ckpt_path last"), "test", args, plugins)


def _parser(name: str, about: str | None, *examples: str) -> Parser:
    """The parser that writes the short help; Lightning's own reads the options, of which there are hundreds."""
    about = f"{about}\n\nEvery key of the configuration is an option. `composer {name} {ALL}` lists all of them."
    parser = make_parser(name, about, *examples, usage="-c CONFIG [--KEY VALUE ...]")
    add_config(parser, "`composer doctor CONFIG` says what it needs")
    parser.add_argument("--print_config", action="store_true", help="print the complete configuration, train nothing")
    return parser


def _run(parser: Parser, command: str, args: Sequence[str], plugins: Sequence[str]) -> None:
    if {"-h", "--help"} & set(args):
        parser.parse_args(["--help"])
    words = ["--help" if word == ALL else word for word in _found(args)]
    if not any(word.startswith(("-c", "--config", "--model", "--help")) for word in words):
        parser.error(f"{command} needs -c CONFIG, such as -c tiny")
    from composer.training.cli import run_training

    # The processes that Lightning starts for further devices repeat the command line, and share the environment.
    sys.argv, os.environ["COMPOSER_PLUGINS"] = [sys.argv[0], command, *words], ",".join(plugins)
    run_training(plugins)


def _found(args: Sequence[str]) -> Iterator[str]:
    """The words of a command line, with the names of configurations as paths."""
    named = False
    for word in args:
        option, equals, name = word.partition("=")
        if named:
            yield str(find_config(word))
        elif equals and option == "--config":
            yield f"{option}={find_config(name)}"
        else:
            yield word
        named = word in ("-c", "--config")


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
