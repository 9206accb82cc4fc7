"""Command lines from typed functions: the signature defines the options, the docstring explains them.

A parameter before ``*`` is a word at its place, one behind it an option. ``bool`` is a flag, ``Literal`` a choice,
``tuple[X, ...]`` takes several words, and a frozen dataclass is a group of options, explained by its own docstring.
`Value` in ``Annotated`` says what the type alone does not. Light, so that help and mistakes show at once. On argparse,
since jsonargparse, which trainings use, takes ``--keep=[sketch,depth]`` but not ``--keep sketch depth``.
"""

import argparse
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from textwrap import fill
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NoReturn, Union, get_args, get_origin

from composer.mistakes import Mistake, did_you_mean

REQUIRED = inspect.Parameter.empty
"""The default of an option that has to be given."""


@dataclass(frozen=True)
class Value:
    """How an option reads its words.

    Attributes:
        read: Makes a value of a word, or of each word where there are several.
        metavar: What stands for the value in the help.
        flags: The option's names where they are not the parameter's.
        nargs: As argparse has it.
        repeats: Whether the option may be given several times, each adding to the ones before.
        about: What the option is for, where the docstring does not say it.
    """

    read: Callable[[str], Any] = str
    metavar: str | None = None
    flags: tuple[str, ...] = ()
    nargs: str | None = None
    repeats: bool = False
    about: str = ""


class Parser(argparse.ArgumentParser):
    """Reads a command line; says what is wrong in one line, and which option was probably meant.

    An option's ``dest`` is the name of its parameter, or ``group.field``.

    Args:
        name: Of the command.
        **how: Further arguments of `argparse.ArgumentParser`.
    """

    def __init__(self, name: str, **how: Any):
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=f"composer {name}", allow_abbrev=False, formatter_class=formatter, **how)
        self.groups: dict[str, type] = {}
        self.takes_rest = False

    @classmethod
    def of(cls, function: Callable[..., Any], name: str, usage: str | None = None) -> "Parser":
        """Makes the command line of a function.

        Parameters called ``given``, ``plugins`` and ``words`` are the caller's business; ``rest`` takes the words that
        no option takes.

        Args:
            function: Its docstring explains the options.
            name: Of the command.
            usage: The line of its usage, behind its name; None lists all options there.
        """
        about, explained, examples = _explain(function)
        shown = "\n".join(["examples:", *(f"  composer {name} {example}".rstrip() for example in examples)])
        parser = cls(name, usage=usage and f"composer {name} {usage}", description=about, epilog=shown)
        for own, parameter in inspect.signature(function).parameters.items():
            hint, positional = parameter.annotation, parameter.kind is not parameter.KEYWORD_ONLY
            if own == "rest":
                parser.takes_rest = True
            elif is_dataclass(hint):
                parser.add_group(own, hint)
            elif own not in ("given", "plugins", "words"):
                parser.add_option(own, hint, explained.get(own, ""), parameter.default, positional)
        return parser

    def add_group(self, name: str, kind: Any, without: Sequence[str] = ()) -> None:
        """Adds a group of options.

        Args:
            name: Of the parameter that takes it.
            kind: A dataclass whose fields all have defaults; its docstring is the title, and explains them.
            without: Fields that are no options here.
        """
        title, explained, _ = _explain(kind)
        group = self.add_titled_group(name, title, kind)
        defaults = vars(kind())
        for one in fields(kind):
            if one.name not in without:
                about = explained.get(one.name, "")
                self.add_option(f"{name}.{one.name}", one.type, about, defaults[one.name], group=group)

    def add_titled_group(self, name: str, title: str, kind: Any) -> "argparse._ArgumentGroup":
        """Adds a group without options; ``Sampling: as far as ...`` is its title and what stands below it."""
        self.groups[name] = kind
        head, _, below = " ".join(title.split()).partition(": ")
        return self.add_argument_group(head.lower(), fill(below, 100) or None)

    def add_option(
        self,
        dest: str,
        hint: Any,
        about: str,
        default: Any,
        positional: bool = False,
        group: "argparse._ArgumentGroup | None" = None,
    ) -> None:
        """Adds an option, or a word at its place.

        Args:
            dest: Where its value goes.
            hint: Its type.
            about: What it is for; empty where the type says it.
            default: Its value when it is not given; `REQUIRED` where it has to be.
            positional: Whether it is a word at its place.
            group: Where the help shows it; None is with the function's own.

        Raises:
            ValueError: There is an option of that name.
        """
        kind, value = _read_hint(hint)
        name, required = dest.split(".", 1)[-1], default is REQUIRED
        given: dict[str, Any] = {"help": _help(about or value.about, default, value), "action": "store_true"}
        if kind is not bool:
            choices = get_args(kind) if get_origin(kind) is Literal else None
            metavar = value.metavar or (None if choices else name.upper())
            given = {"type": value.read, "metavar": metavar, "choices": choices, "nargs": value.nargs} | given
            given["action"] = "store" if not value.repeats else "extend" if value.nargs else "append"
        if positional:
            optional = {} if required or value.nargs else {"nargs": "?"}
            self.add_argument(dest, **given | optional)
            return
        flags = value.flags or (f"--{name.replace('_', '-')}",)
        try:
            (group or self).add_argument(*flags, dest=dest, required=required, **given)
        except argparse.ArgumentError as error:
            raise ValueError(f"{flags[0]} is the name of two options here") from error

    def read(self, args: Sequence[str], hint: str = "") -> dict[str, Any]:
        """Reads a command line.

        Args:
            args: What stands behind the command's name.
            hint: What to say besides of an option that there is not.

        Returns:
            What was given, by the names of the function's parameters; all groups, each made by its dataclass.

        Raises:
            Mistake: Something is wrong with it.
        """
        if self.takes_rest:
            self._expect_a_word_first(args)
            found, rest = self.parse_known_args(args)
        else:
            found, rest = self.parse_known_intermixed_args(args)
            self.refuse(rest, hint)
        groups: dict[str, dict[str, Any]] = {name: {} for name in self.groups}
        own: dict[str, Any] = {"rest": tuple(rest)} if self.takes_rest else {}
        for dest, value in vars(found).items():
            if value is not None:
                *group, name = dest.split(".", 1)
                (groups[group[0]] if group else own)[name] = _frozen(value)
        return own | {name: kind(**groups[name]) for name, kind in self.groups.items()}

    def _expect_a_word_first(self, args: Sequence[str]) -> None:
        """Takes no word that may be left out unless it stands first: else it is the value of an option in the rest."""
        if not args or args[0].startswith("-"):
            for action in self._get_positional_actions():
                action.nargs = argparse.SUPPRESS if action.nargs == "?" else action.nargs

    def read_one(self, flag: str, text: str) -> tuple[str, Any]:
        """Reads one option, of those that need not be given.

        Returns:
            Its ``dest``, and its value.

        Raises:
            Mistake: There is no such option, or it has no such value.
        """
        if flag not in self._option_string_actions:
            self.refuse([flag])
        dest = self._option_string_actions[flag].dest
        return dest, _frozen(getattr(self.parse_args([f"{flag}={text}"]), dest))

    def refuse(self, unknown: Sequence[str], hint: str = "") -> None:
        """Refuses words that no option takes.

        Args:
            unknown: The words.
            hint: What to say besides.

        Raises:
            Mistake: There are any.
        """
        if not unknown:
            return
        wrong = next((word for word in unknown if word.startswith("--")), None)
        if wrong is None:
            self.error(f"nothing here takes {' '.join(unknown)}")
        name = wrong.partition("=")[0]
        self.error(f"no option {name}{did_you_mean(name, self._option_string_actions)}{hint}")

    def error(self, message: str) -> NoReturn:
        raise Mistake(f"{message}\n`{self.prog} --help` explains its options")


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _read_hint(hint: Any) -> tuple[Any, Value]:
    """A type without ``Annotated`` and ``| None``, and how its words are read."""
    if get_origin(hint) in (Union, UnionType):
        return _read_hint(next(one for one in get_args(hint) if one is not NoneType))
    if get_origin(hint) is Annotated:
        return get_args(hint)[0], hint.__metadata__[0]
    if get_origin(hint) is tuple:
        kind, value = _read_hint(get_args(hint)[0])
        return kind, replace(value, nargs="+")
    return hint, Value() if get_origin(hint) is Literal else Value(read=hint)


def _help(about: str, default: Any, value: Value) -> str:
    """What an option is for, and its default where there is one worth telling."""
    about = about.replace("%", "%%")
    about = about if about.endswith("...") else about.removesuffix(".")
    if default is False or default in (None, "", (), {}, REQUIRED) or "default" in about:
        return about
    words = default if isinstance(default, tuple) else (default,)
    return f"{about} (default {(' ' if value.nargs else ',').join(map(str, words))})"


def _explain(what: Callable[..., Any]) -> tuple[str, dict[str, str], list[str]]:
    """What a docstring says: about the whole, about each argument or field, and examples."""
    from docstring_parser import DocstringStyle, parse

    found = parse(inspect.getdoc(what) or "", DocstringStyle.GOOGLE)
    about = "\n\n".join(text for text in (found.short_description, found.long_description) if text)
    explained = {one.arg_name: " ".join((one.description or "").split()) for one in found.params}
    return about, explained, [line.strip() for one in found.examples for line in (one.description or "").splitlines()]
