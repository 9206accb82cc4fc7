"""Commands for training: ``fit``, ``validate``, ``test``, ``doctor``."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from composer.commands.parsers import Parser, add_config, make_parser, whole
from composer.storage.finding import find_config
from composer.terminal import bar, show

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


def doctor(args: Sequence[str], plugins: Sequence[str]) -> None:
    """Say what a configuration needs before anything is trained: parameters, FLOPs, memory, disk."""
    examples = ("configs/folder64.yaml", "configs/imagen1024.yaml --batch 4 --json doctor.json")
    parser = make_parser("doctor", doctor.__doc__, *examples)
    about = "of a training: a file, or the name of one that is shipped; further options change it as in fit"
    parser.add_argument("config", type=find_config, help=about)
    parser.add_argument(
        "--batch", type=whole(1, 1_000_000), help="images a step and device (default: the configuration's)"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="what trains (default cuda)")
    parser.add_argument("--json", type=Path, help="file to write it all to")
    o, changes = parser.parse_known_args(args)
    from composer.training.doctor import RUNS, examine_training
    from composer.training.doctor_tables import tables

    with bar(transient=True) as progress:
        task = progress.add_task("trying it out without memory", total=RUNS + 1)
        found = examine_training(
            ["-c", str(o.config), *changes], plugins, o.batch, o.device, partial(progress.advance, task)
        )
    show(*tables(found))
    if o.json is not None:
        from composer.storage.files import write_atomically

        write_atomically(o.json, (json.dumps(found.as_json(), indent=2) + "\n").encode())
