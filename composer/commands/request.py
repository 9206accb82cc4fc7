"""A request to a task: made from a command line, varied by a sheet, and carried out by `commands.drawing`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from math import prod
from pathlib import Path
from typing import Annotated, Any

from composer.commands.groups import ModelOptions, SamplingOptions
from composer.commands.signature import Parser, Value
from composer.commands.values import Out, Seeds, Words, quote, read_weights, whole
from composer.names import SHIPPED
from composer.storage.finding import askable_conditions

MAX_SETTINGS = 1000
ALIASES = {"seed": "seeds"}
FIXED = ("sheet", "out", "from-png", "model", "autoguidance", "precision", "help")
"""Options that a sheet does not vary."""

Condition = Annotated[tuple[str, ...], Value(metavar="FILE|WORDS", nargs="+", repeats=True)]
Images = Annotated[tuple[str, ...], Value(metavar="IMAGE", nargs="*")]


@dataclass(frozen=True)
class PictureOptions:
    """Pictures

    Attributes:
        image_caption: a caption of the (first) picture, for tasks that use one
        by: how much to add at left,top,right,bottom, in pixels or in shares of the picture's sides
        region: change only this part of the (first) picture: a mask file (white may change) or left,top,right,bottom
        soften: width in pixels over which the change fades in
    """

    image_caption: Words = ""
    by: Annotated[str, Value(metavar="L,T,R,B")] = "0,0,0.5,0"
    region: Annotated[str, Value(metavar="R")] | None = None
    soften: Annotated[int, Value(whole(0, 256), "N")] = 2


@dataclass(frozen=True)
class DrawingOptions:
    """Drawing: prints how well each picture matches what was asked; closed: 1 is a perfect match, 0 is no better than
    chance

    Attributes:
        seeds: one picture per seed, such as 0,1,2
        best_of: draw N per seed and keep the one that matches best (default 1)
        weights: how much each condition counts for --best-of, such as sketch=2,palette=0.5
        strengths: weight of a condition, noise levels (0 to 1) and region at which it counts, such as
            palette=0.7@0.2-0.8:mask.png; each of the three may be left out
        sheet: draw all combinations of these values as one picture, such as guidance=1,3 seed=0,1; separate values that
            contain commas by ';'
    """

    seeds: Seeds = (0,)
    best_of: Annotated[int, Value(whole(1, 1000), "N")] = 1
    weights: Annotated[Mapping[str, float], Value(read_weights, "NAME=W,...")] = field(default_factory=dict)
    strengths: Annotated[tuple[str, ...], Value(metavar="NAME=S", nargs="+", repeats=True)] = ()
    sheet: Annotated[tuple[str, ...], Value(metavar="OPTION=V,V", nargs="+", repeats=True)] = ()


@dataclass(frozen=True)
class FileOptions:
    """Files

    Attributes:
        from_png: draw this PNG again from the recipe that it carries
        no_limits: allow recipes of --from-png that ask for very large pictures or very many steps
        no_recipe: write no recipe into the PNGs
    """

    out: Out = Path("out")
    from_png: Annotated[Path, Value(Path, "FILE")] | None = None
    no_limits: bool = False
    no_recipe: bool = False


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
        for name, kind in GROUPS.items():
            parser.add_group(name, kind)
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
        values = parser.read(args, f"; the conditions of {model} are {', '.join(f'--{name}' for name in names)}")
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


GROUPS = {"drawing": DrawingOptions, "sampling": SamplingOptions, "files": FileOptions, "model": ModelOptions}
"""Options of every task."""

CONDITIONS = (
    "Conditions: each is an image's file or words; several values draw several rows. VALUE:0.7@0.2-0.8:mask.png adds a "
    "weight, noise levels and a region, as --strengths does"
)


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
