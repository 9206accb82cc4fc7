"""Commands for training: ``fit``, ``validate``, ``test``, ``doctor``; light."""

import os
import sys
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from composer.commands.signature import REQUIRED, Parser, Value
from composer.commands.values import Config, Json, whole
from composer.storage.finding import find_config
from composer.terminal import advancing, show

ALL = "--help=full"
"""Asks for the help that lists every option; Lightning takes a while to write it."""

USUAL = {
    "--ckpt_path": ("last", "continue the run where it stopped, or start it if there is none"),
    "--trainer.default_root_dir": ("FOLDER", "the run's folder (default runs/NAME)"),
    "--trainer.max_steps": ("N", "steps of the optimiser in total"),
    "--trainer.devices": ("N", "GPUs (default: all)"),
    "--trainer.precision": ("P", "32-true, bf16-mixed, ..."),
    "--data.batch_size": ("N", "images per batch and device"),
    "--data.workers": ("N", "processes that read images"),
    "--data.train.path": ("FOLDER", "images to train on, if the configuration reads a folder"),
    "--model.learning_rate": ("R", "peak learning rate"),
    "--model.start_from": ("MODEL", "start from the weights of a trained model"),
}
"""The options of ``fit`` that its short help names, of hundreds."""


def fit(words: Sequence[str], plugins: Sequence[str]) -> None:
    """Train a network from a configuration, a YAML file; options change its values.

    The run is written to runs/NAME.

    Examples:
        -c tiny
        -c folder64 --data.train.path photos/train --data.batch_size 16
        -c tiny --ckpt_path last --trainer.max_steps 600
    """
    run_lightning("fit", words, plugins)


def validate(words: Sequence[str], plugins: Sequence[str]) -> None:
    """Measure a run's checkpoint on its validation data.

    Examples:
        -c runs/tiny/config.yaml --ckpt_path last
    """
    run_lightning("validate", words, plugins)


def doctor(
    config: Config,
    *,
    batch: Annotated[int, Value(whole(1, 1_000_000), "N")] | None = None,
    device: Literal["cuda", "cpu"] = "cuda",
    json: Json | None = None,
    rest: Sequence[str],
    plugins: Sequence[str],
) -> None:
    """Estimate what a training needs before it starts: parameters, FLOPs, memory, disk.

    Args:
        batch: images per batch and device (default: the configuration's)
        device: device to estimate for

    Examples:
        configs/folder64.yaml
        configs/imagen1024.yaml --batch 4 --json doctor.json
    """
    from composer.storage.files import write_json
    from composer.training.doctor import RUNS, estimate_training_needs
    from composer.training.doctor_tables import make_tables

    with advancing("dry runs", RUNS + 1) as advance:
        found = estimate_training_needs(["-c", str(config), *rest], plugins, batch, device, advance)
    show(*make_tables(found))
    if json is not None:
        write_json(json, found.as_json())


def run_lightning(command: str, words: Sequence[str], plugins: Sequence[str]) -> None:
    """Hands a command line to Lightning's own, which has an option for every key of a configuration."""
    parser = _short_help(command)
    if {"-h", "--help"} & set(words):
        parser.parse_args(["--help"])
    found = ["--help" if word == ALL else word for word in _find_configs(words)]
    if not any(word.startswith(("-c", "--config", "--model", "--help")) for word in found):
        parser.error(f"{command} needs -c CONFIG, such as -c tiny")
    from composer.training.cli import run_training

    # The processes that Lightning starts for further devices repeat the command line, and share the environment.
    sys.argv, os.environ["COMPOSER_PLUGINS"] = [sys.argv[0], command, *found], ",".join(plugins)
    run_training(plugins)


def _short_help(command: str) -> Parser:
    """Makes the short help; Lightning's own reads the options, of which there are hundreds."""
    parser = Parser.of({"fit": fit, "validate": validate}[command], command, "-c CONFIG [--KEY VALUE ...]")
    every = f"Every key of the configuration is an option. `composer {command} {ALL}` lists all of them."
    parser.description = f"{parser.description}\n\n{every}"
    about = "the configuration: a file, or the name of an included one; `composer doctor CONFIG` says what it needs"
    parser.add_option("config", Config, about, REQUIRED)
    parser.add_argument(
        "--print_config", action="store_true", help="print the complete configuration and train nothing"
    )
    if command == "fit":
        usual = parser.add_argument_group("usual options")
        for flag, (metavar, about) in USUAL.items():
            usual.add_argument(flag, metavar=metavar, help=about)
    return parser


def _find_configs(words: Sequence[str]) -> Iterator[str]:
    """The words of a command line, with the names of configurations as paths."""
    named = False
    for word in words:
        option, equals, name = word.partition("=")
        if named:
            yield str(find_config(word))
        elif equals and option == "--config":
            yield f"{option}={find_config(name)}"
        else:
            yield word
        named = word in ("-c", "--config")
