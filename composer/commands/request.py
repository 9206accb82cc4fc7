"""A request to a task: made from a command line, varied by a sheet, and carried out by `commands.drawing`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from math import prod
from pathlib import Path
from typing import Annotated, Any

from composer.commands.groups import DrawingOptions, FileOptions, ModelOptions, PictureOptions, SamplingOptions
from composer.commands.signature import Parser, Value
from composer.commands.values import quote
from composer.names import SHIPPED
from composer.storage.finding import askable_conditions

MAX_SETTINGS = 1000
ALIASES = {"seed": "seeds"}
FIXED = ("sheet", "out", "from-png", "model", "autoguidance", "precision", "help")
"""Options that a sheet does not vary."""

Condition = Annotated[tuple[str, ...], Value(metavar="FILE|WORDS", nargs="+", repeats=True)]
Images = Annotated[tuple[str, ...], Value(metavar="IMAGE", nargs="*")]
CONDITIONS = (
    "Conditions: each is an image's file or words; several values draw several rows. VALUE:0.7@0.2-0.8:mask.png adds a "
    "weight, noise levels and a region, as --strengths does"
)


@dataclass(frozen=True)
class Task:
    """A task on the command line.

    Attributes:
        name: Of the command.
        make: Makes labelled compositions of what the command line gives; its other parameters are options.
        pictures: What each of the pictures is that it takes.
        needs_region: Whether it works within a region of the first picture only.
        grows: Whether the canvas of the picture grows by ``--by``.
        between: Whether what it draws lies between the first picture and the last: the frames of a film.
    """

    name: str
    make: Callable[..., Any]
    pictures: tuple[str, ...] = ()
    needs_region: bool = False
    grows: bool = False
    between: bool = False

    def parser(self, model: str, network: bool = False) -> Parser:
        """Its command line with the conditions of a model, of which the configuration alone is read."""
        words = ["IMAGE"] * len(self.pictures) + ["--region R"] * self.needs_region + ["[options]"]
        parser = Parser.of(self.make, self.name, " ".join(words))
        conditions = parser.add_titled_group("conditions", CONDITIONS, dict)
        for name in askable_conditions(model, network):
            parser.add_option(f"conditions.{name}", Condition, "", (), group=conditions)
        if self.pictures:
            parser.add_option("images", Images, ", then ".join(self.pictures), (), positional=True)
            parser.add_group("pictures", PictureOptions, without=["region" if self.grows else "by"])
        parser.add_group("drawing", DrawingOptions)
        parser.add_group("sampling", SamplingOptions)
        parser.add_group("files", FileOptions)
        parser.add_group("model", ModelOptions)
        return parser

    def read(self, args: Sequence[str]) -> "Request":
        """Reads a command line; nothing is loaded.

        Args:
            args: What stands behind the command's name.

        Raises:
            FileNotFoundError: There is no such model.
            Mistake: Something is wrong with it.
            ValueError: The model has a condition with the name of another option.
        """
        first = Parser(self.name, add_help=False)
        first.add_argument("--model", default=SHIPPED)
        model, network = first.parse_known_args(args)[0].model, "--allow-network" in args
        names = askable_conditions(model, network)
        parser = self.parser(model, network)
        asked = ", ".join(f"--{name.replace('_', '-')}" for name in names)
        values = parser.read(args, f"; the conditions of {model} are {asked}")
        values["conditions"] = dict.fromkeys(names, ()) | values["conditions"]
        fields = {name: values.pop(name) for name in ("images", *parser.groups) if name in values}
        request = Request(self, values, **fields)
        if request.files.from_png is None:
            self._check(request, parser)
            request.settings()  # a mistake in a sheet shows at once, too
        return request

    def _check(self, request: "Request", parser: Parser) -> None:
        if len(request.images) != len(self.pictures):
            found = " ".join(request.images) or "no picture"
            parser.error(f"expected {' and '.join(self.pictures)} before all options, found {found}")
        if self.needs_region and request.pictures.region is None:
            parser.error("this needs --region: a mask's file, or a box left,top,right,bottom")


@dataclass(frozen=True)
class Axis:
    """An option that varies over a sheet.

    Attributes:
        name: As the user wrote it.
        words: The values, as the user wrote them.
        dest: The option, named as `Parser` does.
        values: What the words mean.
    """

    name: str
    words: tuple[str, ...]
    dest: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Request:
    """A request to a task; no file of it has been read or loaded yet.

    Attributes:
        task: What is to be done.
        arguments: Those of the task itself.
        images: The pictures' files.
        conditions: Condition -> files or words, one or one per row.
        pictures: Which part of the first picture may change.
        drawing: Seeds, and how to choose.
        sampling: How to sample.
        files: What is written.
        model: The model, and what runs it.
        varied: The axes of a sheet, and the value of each here, as the user wrote it.
    """

    task: Task
    arguments: Mapping[str, Any] = field(default_factory=dict)
    images: tuple[str, ...] = ()
    conditions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    pictures: PictureOptions = field(default_factory=PictureOptions)
    drawing: DrawingOptions = field(default_factory=DrawingOptions)
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    files: FileOptions = field(default_factory=FileOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    varied: tuple[tuple[Axis, str], ...] = ()

    @property
    def suffix(self) -> str:
        """What tells its files from those of others on the sheet; the seed is in their names already."""
        return "".join(f"_{axis.name}={_plain(word)}" for axis, word in self.varied if axis.dest != "drawing.seeds")

    def vary(self, dest: str, value: Any) -> "Request":
        """The same with another value of an option, named as `Parser` does."""
        *group, name = dest.split(".", 1)
        where = group[0] if group else "arguments"
        now = getattr(self, where)
        varied: Any = {**now, name: value} if isinstance(now, Mapping) else replace(now, **{name: value})
        return replace(self, **{where: varied})

    def settings(self) -> "list[Request]":
        """The requests of a sheet; this one where there is none.

        Raises:
            Mistake: An axis is wrong.
            ValueError: There are too many settings.
        """
        axes = [self._axis(text) for text in self.drawing.sheet]
        if (count := prod(len(axis.words) for axis in axes)) > MAX_SETTINGS:
            raise ValueError(f"expected at most {MAX_SETTINGS:,} settings on a sheet, found {count:,}")
        found = []
        for words in product(*(axis.words for axis in axes)):
            request = replace(self, varied=tuple(zip(axes, words, strict=True)))
            for axis, word in request.varied:
                request = request.vary(axis.dest, axis.values[word])
            found.append(request)
        return found

    def _axis(self, text: str) -> Axis:
        name, equals, given = text.partition("=")
        name = name.removeprefix("--")
        words = tuple(word.strip() for word in given.split(";" if ";" in given else ","))
        if not (name and equals and all(words)) or name in FIXED:
            raise ValueError(f"expected an option and values for --sheet, such as guidance=1,3,7, found {quote(text)}")
        parser = self.task.parser(self.model.model, self.model.allow_network)
        read = [parser.read_one(f"--{ALIASES.get(name, name)}", word) for word in words]
        return Axis(name, words, read[0][0], {word: value for word, (_, value) in zip(words, read, strict=True)})


def _plain(value: str) -> str:
    """A value as a part of a file's name."""
    return "".join(c if c.isalnum() or c in ".-" else "-" for c in Path(value).name)[:40]
