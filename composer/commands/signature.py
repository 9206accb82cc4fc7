"""Command lines from typed functions: the signature defines the options, the docstring explains them.

A parameter before ``*`` is a word at its place, one behind it an option. ``bool`` is a flag, ``Literal`` a choice,
``tuple[X, ...]`` takes several words, and a frozen dataclass is a group of options, explained by its own docstring.
`Value` in ``Annotated`` says what the type alone does not. Light, so that help and mistakes show at once.
"""

import argparse
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from functools import cache
from textwrap import fill
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from composer.mistakes import Mistake, did_you_mean


@dataclass(frozen=True)
class Value:
    """How an option reads its words.

    Attributes:
        read: Makes a value of a word, or of each word where there are several.
        metavar: What stands for the value in the help.
        flags: The option's names where they are not the parameter's.
        nargs: As argparse has it.
        repeats: Whether the option may be given several times, each adding to the ones before.
    """

    read: Callable[[str], Any] = str
    metavar: str | None = None
    flags: tuple[str, ...] = ()
    nargs: str | None = None
    repeats: bool = False


REQUIRED = object()
"""The default of an option that has to be given."""


@dataclass(frozen=True)
class Option:
    """An option, or a word at its place.

    Attributes:
        path: Where its value goes: the names of the group and of the field, or of a parameter alone.
        value: How it reads its words.
        about: What it is for.
        default: Its value when it is not given; `REQUIRED` where it has to be.
        positional: Whether it is a word at its place.
        choices: What it may be.
        switch: Whether it takes no words, and is true when it is given.
    """

    path: tuple[str, ...]
    value: Value
    about: str
    default: Any = REQUIRED
    positional: bool = False
    choices: tuple[str, ...] | None = None
    switch: bool = False

    @property
    def flags(self) -> tuple[str, ...]:
        """Its names on a command line."""
        return self.value.flags or (f"--{self.path[-1].replace('_', '-')}",)

    @property
    def required(self) -> bool:
        """Whether it has to be given."""
        return self.default is REQUIRED

    def add_to(self, parser: "argparse.ArgumentParser | argparse._ArgumentGroup") -> None:
        """Adds it to a parser.

        Raises:
            ValueError: The parser has an option of that name.
        """
        given: dict[str, Any] = {"help": self._help(), "default": self.default if self.switch else None}
        if not self.switch:
            metavar = self.value.metavar or (None if self.choices else self.path[-1].upper())
            given |= {"type": self.value.read, "metavar": metavar, "choices": self.choices, "nargs": self.value.nargs}
        if self.positional:
            optional = {"nargs": "?"} if not self.required and self.value.nargs is None else {}
            parser.add_argument(".".join(self.path), **given | optional)
            return
        actions = {True: "extend" if self.value.nargs else "append", False: "store"}
        given["action"] = "store_true" if self.switch else actions[self.value.repeats]
        try:
            parser.add_argument(*self.flags, dest=".".join(self.path), required=self.required, **given)
        except argparse.ArgumentError as error:
            raise ValueError(f"{self.flags[0]} is the name of two options here") from error

    def _help(self) -> str:
        about = self.about.replace("%", "%%")
        about = about if about.endswith("...") else about.removesuffix(".")
        if self.switch or self.default in (None, "", (), {}, REQUIRED) or "default" in about:
            return about
        default = self.default
        words = default if isinstance(default, tuple) else (default,)
        return f"{about} (default {(' ' if self.value.nargs else ',').join(map(str, words))})"


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and which option was probably meant."""

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


@dataclass(frozen=True)
class Line:
    """The command line of a function.

    Attributes:
        name: Of the command.
        options: All of its options, in order.
        groups: Names of groups -> their titles and the dataclasses that their values make.
        about: What it does.
        examples: What may stand behind its name.
        usage: The line of its usage, behind its name; None lists all options there.
        rest: The parameter that takes words which no option takes; None where they are a mistake.
    """

    name: str
    options: tuple[Option, ...]
    groups: Mapping[str, tuple[str, type]]
    about: str
    examples: tuple[str, ...]
    usage: str | None = None
    rest: str | None = None

    def with_options(self, *options: Option) -> "Line":
        """The same with further options."""
        return replace(self, options=(*self.options, *options))

    def with_group(self, name: str, title: str, kind: type, *options: Option) -> "Line":
        """The same with a further group of options."""
        return replace(self, groups={**self.groups, name: (title, kind)}).with_options(*options)

    def parser(self) -> Parser:
        """Makes its parser, whose help ends in examples."""
        prog = f"composer {self.name}"
        parser = Parser(
            prog=prog,
            usage=self.usage and f"{prog} {self.usage}",
            description=self.about,
            epilog="\n".join(["examples:", *(f"  {prog} {example}".rstrip() for example in self.examples)]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        groups = {name: parser.add_argument_group(*titled(title)) for name, (title, _) in self.groups.items()}
        for option in self.options:
            option.add_to(groups.get(option.path[0], parser) if len(option.path) > 1 else parser)
        return parser

    def read(self, args: Sequence[str], hint: str = "") -> dict[str, Any]:
        """Reads a command line.

        Args:
            args: What stands behind the command's name.
            hint: What to say besides of an option that there is not.

        Returns:
            Values by the names of the function's parameters; a group's are an instance of its dataclass.

        Raises:
            Mistake: Something is wrong with it.
        """
        parser = self.parser()
        if self.rest is None:
            found, unknown = parser.parse_known_intermixed_args(args)
            parser.refuse(unknown, hint)
        else:
            found, unknown = self._read_some(parser, args)
        values = vars(found)
        return self.build({o.path: self._value(o, values[".".join(o.path)]) for o in self.options}, unknown)

    def _read_some(self, parser: Parser, args: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """Reads what the options take; a word at its place that may be left out stands first, or else is a value."""
        optional = [".".join(o.path) for o in self.options if o.positional and not o.required]
        if not optional or (args and not args[0].startswith("-")):
            return parser.parse_known_args(args)
        without = replace(self, options=tuple(o for o in self.options if ".".join(o.path) not in optional)).parser()
        return without.parse_known_args(args, argparse.Namespace(**dict.fromkeys(optional)))

    def build(self, values: Mapping[tuple[str, ...], Any], rest: Sequence[str] = ()) -> dict[str, Any]:
        """Makes the function's arguments of the values of its options, by their paths."""
        made: dict[str, Any] = {path[0]: value for path, value in values.items() if len(path) == 1}
        for name, (_, kind) in self.groups.items():
            made[name] = kind(**{path[1]: value for path, value in values.items() if len(path) > 1 and path[0] == name})
        return made | ({} if self.rest is None else {self.rest: tuple(rest)})

    @staticmethod
    def _value(option: Option, value: Any) -> Any:
        if value is None:
            return option.default
        return tuple(value) if isinstance(value, list) else value


def titled(title: str) -> tuple[str, str | None]:
    """``Sampling: as far as ...`` -> its title and what stands below it in the help."""
    head, _, below = " ".join(title.split()).partition(": ")
    return head.lower(), fill(below, 100) or None


@cache
def line_of(function: Callable[..., Any], name: str, usage: str | None = None) -> Line:
    """Reads a function's signature and docstring.

    Parameters called ``given``, ``plugins`` and ``words`` are the caller's business; ``rest`` takes the words that no
    option takes.
    """
    about, explained, examples = _explain(function)
    parameters = inspect.signature(function).parameters
    options, groups = list[Option](), dict[str, tuple[str, type]]()
    for parameter in parameters.values():
        if parameter.name in ("given", "plugins", "words", "rest"):
            continue
        hint = parameter.annotation
        if isinstance(hint, str):
            hint = eval(hint, inspect.unwrap(function).__globals__)
        if is_dataclass(group := _bare(hint)):
            assert isinstance(group, type)
            title, kind, *own = explain_group(group, parameter.name)
            groups[parameter.name] = (title, kind)
            options += own
        else:
            default = REQUIRED if parameter.default is parameter.empty else parameter.default
            positional = parameter.kind is not inspect.Parameter.KEYWORD_ONLY
            options.append(_option((parameter.name,), hint, explained[parameter.name], default, positional))
    rest = "rest" if "rest" in parameters else None
    return Line(name, tuple(options), groups, about, examples, usage, rest)


@cache
def explain_group(kind: type, name: str) -> tuple[Any, ...]:
    """The title of a dataclass, the dataclass, and the options that its fields are; what `Line.with_group` takes."""
    (title, explained, _), hints = _explain(kind), get_type_hints(kind, include_extras=True)
    options = []
    for one in fields(kind):
        made = one.default if one.default_factory is MISSING else one.default_factory()
        default = REQUIRED if made is MISSING else made
        options.append(_option((name, one.name), hints[one.name], explained[one.name], default, positional=False))
    return (title, kind, *options)


def _option(path: tuple[str, ...], hint: Any, about: str, default: Any, positional: bool) -> Option:
    """An option as a type says it."""
    value = next((x for x in _metadata(hint) if isinstance(x, Value)), None)
    kind = _bare(hint)
    if kind is bool:
        return Option(path, value or Value(), about, default, switch=True)
    if get_origin(kind) is tuple and value is None:
        inner = get_args(kind)[0]
        single = _option(path, inner, about, default, positional)
        return replace(single, value=replace(single.value, nargs=single.value.nargs or "+"))
    if get_origin(kind) is Literal:
        found = value or Value(metavar=None)
        return Option(path, found, about, default, positional, choices=get_args(kind))
    return Option(path, value or Value(read=kind), about, default, positional)


def _metadata(hint: Any) -> list[Any]:
    """What ``Annotated`` says, also within ``X | None``."""
    if get_origin(hint) is Annotated:
        return list(hint.__metadata__)
    if get_origin(hint) in (Union, UnionType):
        return [x for arg in get_args(hint) for x in _metadata(arg)]
    return []


def _bare(hint: Any) -> Any:
    """A type without ``Annotated`` and ``| None``."""
    if get_origin(hint) is Annotated:
        return _bare(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        return _bare(next(arg for arg in get_args(hint) if arg is not NoneType))
    return hint


@cache
def _explain(what: Callable[..., Any]) -> tuple[str, dict[str, str], tuple[str, ...]]:
    """What a docstring says: about the whole, about each argument or field, and examples."""
    from docstring_parser import DocstringStyle, parse

    found = parse(inspect.getdoc(what) or "", DocstringStyle.GOOGLE)
    about = "\n\n".join(text for text in (found.short_description, found.long_description) if text)
    explained = {one.arg_name: " ".join((one.description or "").split()) for one in found.params}
    examples = [line for one in found.examples for line in (one.description or "").splitlines()]
    return about, explained, tuple(line.strip() for line in examples)
