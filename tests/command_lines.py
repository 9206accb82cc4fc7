"""Draws odd command lines from the parsers' own options: a function of the seed alone."""

import argparse
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from composer.commands import signature
from composer.commands.registry import COMMANDS

NUMBERS = ["0", "1", "2", "-1", "1e9", "1000000000", "-1000000000", "9" * 30, "1" + "0" * 400, "nan", "inf", "-inf"]
NUMBERS += ["1e400", "0.5", "0x10", "1_000", "٣", "²", "1,2", "0,0,0,0", "0,,1", "nan,0,1,1", "0.1,0.1,0.9,0.9"]
WORDS = [
    "",
    " ",
    "a",
    "é 日本",
    "run [red]",
    "[/b]",
    "[link=file:///etc/passwd]",
    "\x1b[31mred\x1b[0m",
    "\x07\r\x9b2J",
    "\u202egnp",
]
WORDS += [
    "\udcff\udcfe",
    "a" * 5000,
    "../../..",
    "~",
    "%s {0} {x.__class__}",
    "--",
    "-1",
    "<script>",
    "a\nb\nc\nd\ne\nf",
    "$(id)",
    "| id",
]
WORDS += [
    "asset:../secret",
    "model:../x",
    "x=y",
    "=",
    ":",
    "a:b:c",
    "@",
    "a:1@0-2",
    "#aa3311 0.6",
    "#aa3311 " + "9" * 400,
]
WORDS += [
    "scenes:nowhere",
    "scenes:val",
    "NaN",
    "null",
    "{}",
    "[]",
    "${oc.env:HOME}",
    "None",
    "up256:steps=1",
    "base:steps=nan,guidance=inf",
]

LONG = ("demo", "page", "train")
"""Commands that draw or train for minutes, or serve until they are ended, with few options of their own."""

SLOW = ("fit", "validate", "doctor", "cache", "pca", "embed", "decomposers")
"""Commands that take a second or more to read a training's configuration; they come up less often."""


def options_of(command: str, always: Sequence[str] = ()) -> Sequence[argparse.Action]:
    """What the parser of a command takes; those of Lightning's commands are a few of hundreds."""
    taken: list[Sequence[argparse.Action]] = []

    class Taken(BaseException):
        pass

    def take(parser: Any, args: Any, *_: Any) -> Any:
        if not parser.add_help:  # one that only looks which model it is
            return argparse.ArgumentParser.parse_known_args(parser, args)
        taken.append(parser._actions)
        raise Taken

    methods = ("parse_known_args", "parse_known_intermixed_args")
    kept = {name: signature.Parser.__dict__.get(name) for name in methods}
    for name in methods:
        setattr(signature.Parser, name, take)
    try:
        with suppress(Taken):
            COMMANDS[command]([*always, "--help"], [])
    finally:
        for name, method in kept.items():
            if method is None:
                delattr(signature.Parser, name)
            else:
                setattr(signature.Parser, name, method)
    return taken[0]


@dataclass(frozen=True)
class Things:
    """What command lines name.

    Attributes:
        good: A picture, a folder of pictures and so on: an option's name -> a value that it takes.
        odd: Paths of files, folders and other things.
        always: Words that every line of a command ends in.
    """

    good: Mapping[str, str]
    odd: Sequence[str]
    always: Mapping[str, Sequence[str]]


def lines(count: int, seed: int, things: Things) -> Iterator[list[str]]:
    """Draws command lines: most of their options are well, a few are odd, missing or double."""
    dice = random.Random(seed)
    actions = {name: options_of(name, things.always.get(name, ())) for name in COMMANDS if name not in LONG}
    for _ in range(count):
        name = dice.choices(list(actions), [0.08 if name in SLOW else 1 for name in actions])[0]
        words = [name, *_words(dice, actions[name], things), *things.always.get(name, ())]
        if dice.random() < 0.05:
            words = ["--plugins", dice.choice([*WORDS, "os", "nosuch", "json,nosuch"]), *words]
        if dice.random() < 0.05:
            words.insert(dice.randrange(len(words)), dice.choice(WORDS))
        yield words


def name_of(action: argparse.Action) -> str:
    """An option's name without that of its group."""
    return action.dest.rpartition(".")[2]


def _words(dice: random.Random, actions: Sequence[argparse.Action], things: Things) -> Iterator[str]:
    required = [a for a in actions if a.required or not a.option_strings]
    rest = [a for a in actions if a not in required and name_of(a) not in ("help", "version", "print_config")]
    chosen = [a for a in required if dice.random() < 0.97 or name_of(a) == "out"] + dice.sample(
        rest, min(len(rest), dice.randrange(4))
    )
    oddities = dice.choice([0.1, 0.5])
    for action in chosen:
        if action.option_strings:
            yield dice.choice(action.option_strings)
        if action.nargs == 0 or dice.random() < 0.02:
            continue
        many = dice.randrange(1, 3) if action.nargs in ("+", "*") else 1
        if name_of(action) == "images" and dice.random() < 0.9:
            many = 1 + str(action.help).count(", then ")
        for _ in range(many):
            yield _odd(dice, action, things) if dice.random() < oddities else _plausible(dice, action, things)


def _plausible(dice: random.Random, action: argparse.Action, things: Things) -> str:
    if action.choices is not None:
        return str(dice.choice(list(action.choices)))
    if name_of(action) in things.good:
        return things.good[name_of(action)]
    return things.good[""] if action.type in (Path, None) else dice.choice(["1", "2", "0.5"])


def _odd(dice: random.Random, action: argparse.Action, things: Things) -> str:
    kinds = [NUMBERS, WORDS, things.odd, things.odd if action.type in (Path, None) else NUMBERS]
    if name_of(action) in ("out", "json"):  # where a person says to write is written to
        kinds = [NUMBERS, [word for word in WORDS if not word.startswith("..")]]
    return dice.choice(dice.choice(kinds))
