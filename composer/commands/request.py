"""A request to a task: made from a command line, varied by a sheet, and carried out by `commands.drawing`."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from math import prod
from pathlib import Path
from typing import Annotated, Any

from composer.commands.groups import ModelOptions, SamplingOptions
from composer.commands.signature import Line, Option, Parser, Value, explain_group, line_of
from composer.commands.values import Seeds, quote, read_weights, whole
from composer.names import SHIPPED
from composer.storage.finding import askable_conditions

MAX_SETTINGS = 1000
ALIASES = {"seed": "seeds"}
FIXED = ("sheet", "out", "from-png", "model", "autoguidance", "precision", "help")
"""Options that a sheet does not vary."""

CONDITION = Value(metavar="FILE|WORDS", nargs="+", repeats=True)
IMAGES = Value(metavar="IMAGE", nargs="*")


@dataclass(frozen=True)
class PictureOptions:
    """Pictures

    Attributes:
        image_caption: a caption of the (first) picture, for tasks that use one
        region: change only this part of the (first) picture: a mask file (white may change) or left,top,right,bottom
        soften: width in pixels over which the change fades in
    """

    image_caption: Annotated[str, Value(metavar="WORDS")] = ""
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
        out: folder to write to
        from_png: draw this PNG again from the recipe that it carries
        no_limits: allow recipes of --from-png that ask for very large pictures or very many steps
        no_recipe: write no recipe into the PNGs
    """

    out: Path = Path("out")
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

    def line(self, model: str, network: bool = False) -> Line:
        """Its command line with the conditions of a model, of which the configuration alone is read."""
        words = ["IMAGE"] * len(self.pictures) + ["--region R"] * self.needs_region + ["[options]"]
        line = line_of(self.make, self.name, " ".join(words)).with_group("conditions", CONDITIONS, dict)
        if self.pictures:
            line = line.with_options(Option(("images",), IMAGES, ", then ".join(self.pictures), (), positional=True))
        for name, kind in GROUPS.items() if self.pictures else list(GROUPS.items())[1:]:
            line = line.with_group(name, *explain_group(kind, name))
        if self.grows:
            line = replace(line, options=tuple(o for o in line.options if o.path != ("pictures", "region")))
        names = askable_conditions(model, network)
        return line.with_options(*(Option(("conditions", name), CONDITION, "", ()) for name in names))

    def read(self, args: Sequence[str]) -> "Request":
        """Reads a command line; nothing is loaded.

        Args:
            args: What stands behind the command's name.

        Raises:
            FileNotFoundError: There is no such model.
            Mistake: Something is wrong with it.
            ValueError: The model has a condition with the name of another option.
        """
        first = Parser(prog=f"composer {self.name}", add_help=False, allow_abbrev=False)
        first.add_argument("--model", default=SHIPPED)
        model = first.parse_known_args(args)[0].model
        line = self.line(model, "--allow-network" in args)
        asked = ", ".join(o.flags[0] for o in line.options if o.path[0] == "conditions")
        values = line.read(args, f"; the conditions of {model} are {asked}")
        own = {name: values.pop(name) for name in list(values) if name not in ("images", "conditions", *GROUPS)}
        request = Request(self, own, **values)
        if request.files.from_png is None:
            self._check(request, line.parser())
            request.settings()  # a mistake in a sheet shows at once, too
        return request

    def _check(self, request: "Request", parser: Parser) -> None:
        if len(request.images) != len(self.pictures):
            found = " ".join(request.images) or "no picture"
            parser.error(f"expected {' and '.join(self.pictures)} before all options, found {found}")
        if self.needs_region and request.pictures.region is None:
            parser.error("this needs --region: a mask's file, or a box left,top,right,bottom")


GROUPS = {
    "pictures": PictureOptions,
    "drawing": DrawingOptions,
    "sampling": SamplingOptions,
    "files": FileOptions,
    "model": ModelOptions,
}
"""Options of every task; those of pictures only where it takes some."""

CONDITIONS = (
    "Conditions: each is an image's file or words; several values draw several rows. VALUE:0.7@0.2-0.8:mask.png adds a "
    "weight, noise levels and a region, as --strengths does"
)


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

    def vary(self, path: tuple[str, ...], value: Any) -> "Request":
        """The same with another value at a place, as `Option.path` names it."""
        if path[0] == "conditions":
            return replace(self, conditions={**self.conditions, path[1]: value})
        if len(path) == 1:
            return replace(self, arguments={**self.arguments, path[0]: value})
        return replace(self, **{path[0]: replace(getattr(self, path[0]), **{path[1]: value})})

    def settings(self) -> "list[Setting]":
        """The requests of a sheet; one where there is none.

        Raises:
            Mistake: An axis is wrong.
            ValueError: There are too many settings.
        """
        axes = [self._axis(text) for text in self.drawing.sheet]
        if (count := prod(len(axis.values) for axis in axes)) > MAX_SETTINGS:
            raise ValueError(f"expected at most {MAX_SETTINGS:,} settings on a sheet, found {count:,}")
        found = []
        for values in product(*(axis.values for axis in axes)):
            request = self
            for axis, text in zip(axes, values, strict=True):
                request = request.vary(axis.option.path, axis.read(text))
            found.append(Setting(request, tuple(axes), values))
        return found

    def _axis(self, text: str) -> "Axis":
        line = self.task.line(self.model.model, self.model.allow_network)
        name, equals, given = text.partition("=")
        name = name.removeprefix("--")
        values = tuple(value.strip() for value in given.split(";" if ";" in given else ","))
        if not (name and equals and all(values)) or name in FIXED:
            raise ValueError(f"expected an option and values for --sheet, such as guidance=1,3,7, found {quote(text)}")
        flag = f"--{ALIASES.get(name, name)}"
        option = next((o for o in line.options if flag in o.flags and not o.positional), None)
        if option is None:
            line.parser().refuse([flag])
        assert option is not None
        axis = Axis(name, values, option, line.parser())
        for value in values:
            axis.read(value)
        return axis


@dataclass(frozen=True)
class Axis:
    """An option that varies over a sheet.

    Attributes:
        name: As the user wrote it.
        values: As the user wrote them.
        option: What varies.
        parser: Says what is wrong.
    """

    name: str
    values: tuple[str, ...]
    option: Option
    parser: Parser

    def read(self, text: str) -> Any:
        """Reads one of the values, as the option alone does.

        Raises:
            Mistake: It is no value of that option.
        """
        alone = argparse.ArgumentParser(prog=self.parser.prog, add_help=False, allow_abbrev=False)
        alone.error = self.parser.error  # type: ignore[method-assign]
        self.option.add_to(alone)
        found = getattr(alone.parse_args([f"{self.option.flags[0]}={text}"]), ".".join(self.option.path))
        return tuple(found) if isinstance(found, list) else found


@dataclass(frozen=True)
class Setting:
    """One value for each axis of a sheet.

    Attributes:
        request: What is asked for here.
        axes: What varies.
        values: The values here, one per axis.
    """

    request: "Request"
    axes: tuple[Axis, ...]
    values: tuple[str, ...]

    @property
    def suffix(self) -> str:
        """What tells its files from those of other settings; the seed is in their names already."""
        pairs = zip(self.axes, self.values, strict=True)
        return "".join(f"_{axis.name}={_plain(value)}" for axis, value in pairs if axis.option.path[-1] != "seeds")


def _plain(value: str) -> str:
    """A value as a part of a file's name."""
    return "".join(c if c.isalnum() or c in ".-" else "-" for c in Path(value).name)[:40]
