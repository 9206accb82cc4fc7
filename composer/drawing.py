"""What every command that draws shares: options, axes, seeds, the best of several, regions, recipes, contact sheets."""

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from .adherence import distances
from .cascade import Cascade
from .composition import Composition, Source
from .editing import Frame, Original, extend, open_region
from .files import name_of
from .gallery import from_pil, read_recipe, save_png, sheet
from .images import load_rgb
from .options import (
    add_conditions,
    add_model,
    add_out,
    add_sampling,
    askable,
    asked,
    bar,
    load,
    make_parser,
    numbers,
    sampling,
)
from .prior.commands import prior_for
from .recipe import again, frame_of, read, recipe, with_edit
from .reranking import best_of


@dataclass(frozen=True)
class Given:
    """What a command line gives a task.

    Attributes:
        cascade: The model.
        options: All of them.
        sources: The pictures; of the first one the square around the region, where there is a region.
        asked: The conditions, a composition a row.
        plugins: Modules that the user trusts.
    """

    cascade: Cascade
    options: argparse.Namespace
    sources: list[Source]
    asked: list[Composition]
    plugins: Sequence[str]

    @property
    def only(self) -> Composition:
        """The conditions of a task that takes one value each.

        Raises:
            ValueError: A condition has several.
        """
        if len(self.asked) != 1:
            raise ValueError(f"this task takes one value a condition, found {len(self.asked)}")
        return self.asked[0]

    def prior(self, named: str, caption: Composition) -> Any:
        """Loads the prior that is to draw the semantics of a caption."""
        return prior_for(self.cascade, named, caption.parts, self.plugins)


Make = Callable[[Given], Sequence[tuple[str, Composition]]]
"""What a task is on the command line: labelled compositions, a row each."""


@dataclass(frozen=True)
class Drawn:
    """The pictures of one setting.

    Attributes:
        labels: One a row.
        rows: A picture a seed.
        files: Theirs.
        before: What stands before them on the sheet.
    """

    labels: list[str]
    rows: list[list[Tensor]]
    files: list[list[Path]]
    before: list[tuple[str, Tensor]]


class Drawing:
    """A command that draws.

    Args:
        name: Of the command.
        about: Its docstring.
        *examples: What stands behind its name in the examples of its help.
        pictures: What each of the pictures is that it takes.
        needs_region: Whether it works within a region of the first picture only.
        grows: Whether the canvas of the picture grows by ``--by``.
    """

    def __init__(
        self,
        name: str,
        about: str | None,
        *examples: str,
        pictures: Sequence[str] = (),
        needs_region: bool = False,
        grows: bool = False,
    ):
        self.parser = make_parser(name, about, *examples)
        self.pictures, self.needs_region, self.grows = list(pictures), needs_region, grows
        add = self.parser.add_argument
        if pictures:
            add("images", nargs="*", metavar="IMAGE", help=", then ".join(pictures))
            add("--image-caption", default="", metavar="WORDS", help="what the (first) picture shows")
            add("--soften", type=int, default=2, help="pixels over which an edit fades in (default 2)")
            if not grows:
                add("--region", help="a mask's file (white = may change) or left,top,right,bottom")
        add_model(self.parser)
        add_out(self.parser)
        add_sampling(self.parser)
        add("--seeds", type=numbers, default=[0], help="such as 0,1,2; one picture each (default 0)")
        add("--best-of", type=int, default=1, metavar="N", help="draw N a seed and keep the one that follows best")
        add("--weights", default={}, type=_weights, metavar="NAME=W,...", help="what counts how much for --best-of")
        add("--sheet", nargs="+", default=[], metavar="OPTION=V1,V2", help="draw all settings: guidance=1,3 seed=0,1")
        add("--from-png", type=Path, help="make the picture that carries this recipe again")
        add("--no-recipe", action="store_true", help="leave no trace of how a picture was made in its PNG")

    def names(self, option: str, default: Sequence[str] | None, about: str) -> None:
        """Adds an option that takes names of conditions."""
        shown = "" if default is None else f" (default {' '.join(default) or 'none'})"
        own = None if default is None else list(default)
        self.parser.add_argument(option, nargs="*", default=own, metavar="NAME", help=about + shown)

    def run(self, args: Sequence[str], plugins: Sequence[str], make: Make) -> list[Drawn]:
        """Parses, draws, saves, and says what came of it.

        Args:
            args: The command line's.
            plugins: Modules that the user trusts.
            make: The task.

        Returns:
            What was drawn, setting by setting, for what a command makes of it besides.
        """
        first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        add_model(first)
        cascade = load(first.parse_known_args(args)[0], plugins)
        add_conditions(self.parser, cascade)
        o = self._parse(args, cascade)
        if o.from_png is not None:
            _again(cascade, o)
            return []
        axes = [_axis(text) for text in o.sheet]
        settings = list(product(*(values for _, values in axes)))
        done = []
        for values in settings:
            chosen = [word for (name, _), value in zip(axes, values, strict=True) for word in (f"--{name}", value)]
            suffix = "".join(f"_{name}={_plain(value)}" for (name, _), value in zip(axes, values, strict=True))
            done.append(self._draw(self._parse([*args, *chosen], cascade), cascade, plugins, make, suffix))
        rows, labels, columns = _arranged(axes, settings, done, o.seeds)
        if sum(len(row) for row in rows) > 1:
            save_png(o.out / "sheet.png", sheet(rows, labels, columns))
            print(f"see {o.out / 'sheet.png'}")
        else:
            print(f"see {done[0].files[0][0]}")
        return done

    def _parse(self, args: Sequence[str], cascade: Cascade) -> argparse.Namespace:
        o, unknown = self.parser.parse_known_args(args)
        if unknown:
            known = ", ".join(f"--{name}" for name in askable(cascade))
            raise ValueError(f"no option {' '.join(unknown)}; the conditions of {o.model} are {known}")
        if o.from_png is None and self.pictures and len(o.images) != len(self.pictures):
            raise ValueError(f"expected {' and '.join(self.pictures)}, found {' '.join(o.images) or 'no picture'}")
        if o.from_png is None and self.needs_region and o.region is None:
            raise ValueError("this needs --region: a mask's file, or a box left,top,right,bottom")
        return o

    def _draw(self, o: argparse.Namespace, cascade: Cascade, plugins: Sequence[str], make: Make, suffix: str) -> Drawn:
        sources = [Source.open(cascade, path, o.image_caption if i == 0 else "") for i, path in enumerate(_images(o))]
        place, frame = self._place(o), None
        if place is not None:
            if not place.region.any():
                return _unchanged(o, suffix)
            frame = Frame.around(place.original, place.region)
            sources[0] = frame.source(cascade, o.image_caption, name_of(Path(o.images[0]).read_bytes()))
        made = make(Given(cascade, o, sources, asked(o, cascade), plugins))
        stem = Path(o.images[0]).stem if self.pictures else ""
        labels, rows, files = [], [], []
        for i, (label, composition) in enumerate(made):
            if frame is not None:
                composition = frame.restrict(cascade, composition)
            name = "_".join(part for part in (stem, f"{i:03d}" if len(made) > 1 or not stem else "") if part)
            pictures, paths = _save(o, cascade, composition, frame, place, f"{name}_seed{{}}{suffix}.png")
            labels.append(label or (f"row {i}" if len(made) > 1 else ""))
            rows.append(pictures)
            files.append(paths)
        before = [(Path(path).name, load_rgb(path).image) for path in _images(o)]
        if frame is not None:
            before.insert(1, ("region", frame.region[0].expand(3, -1, -1) * 2 - 1))
        return Drawn(labels, rows, files, before)

    def _place(self, o: argparse.Namespace) -> "Place | None":
        """Where the first picture may change; None is everywhere."""
        if self.grows:
            sides = four(o.by)
            return Place(*extend(Original.open(o.images[0]), sides), sides)
        if not self.pictures or o.region is None:
            return None
        original = Original.open(o.images[0])
        return Place(original, open_region(o.region, (original.image.shape[1], original.image.shape[2])))


@dataclass(frozen=True)
class Place:
    """Where a picture may change.

    Attributes:
        original: The picture, its canvas grown already.
        region: 1 where it may change.
        sides: By how much the canvas grew; None if it did not.
    """

    original: Original
    region: Tensor
    sides: tuple[float, float, float, float] | None = None


def four(text: str) -> tuple[float, float, float, float]:
    """Reads ``left,top,right,bottom``.

    Raises:
        ValueError: Something else is written.
    """
    try:
        left, top, right, bottom = (float(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"expected four numbers left,top,right,bottom, found {text!r}") from error
    return left, top, right, bottom


def _images(o: argparse.Namespace) -> list[str]:
    return list(getattr(o, "images", []))


def _save(
    o: argparse.Namespace,
    cascade: Cascade,
    composition: Composition,
    frame: Frame | None,
    place: Place | None,
    name: str,
) -> tuple[list[Tensor], list[Path]]:
    """Draws and saves one row; says how far its pictures are from what was asked."""
    how = sampling(o)
    drawn = best_of(cascade, composition, o.seeds, o.best_of, o.weights, bar("drawing"), **how)
    pictures: list[Any] = list(drawn.images) if frame is None else frame.paste(drawn.images, o.soften)
    shown, paths = [], []
    for i, (seed, picture) in enumerate(zip(o.seeds, pictures, strict=True)):
        made = recipe(cascade, drawn.compositions[i], drawn.seeds[i], how)
        if frame is not None and place is not None:
            made = with_edit(made, Path(o.images[0]), frame, o.soften, place.sides)
        path = o.out / name.format(seed)
        save_png(path, picture, None if o.no_recipe else made)
        paths.append(path)
        shown.append(picture if isinstance(picture, Tensor) else from_pil(Image.open(path)))
    far = distances(cascade, composition.wanted, drawn.images)
    if far:
        print(f"{paths[0].stem}: " + ", ".join(f"{what} off by {float(d.mean()):.3f}" for what, d in far.items()))
    return shown, paths


def _unchanged(o: argparse.Namespace, suffix: str) -> Drawn:
    """An empty region: the file's own pixels."""
    original = Original.open(o.images[0])
    print("note: the region is empty; the picture stays as it is", file=sys.stderr)
    paths = [o.out / f"{Path(o.images[0]).stem}_seed{seed}{suffix}.png" for seed in o.seeds]
    for path in paths:
        save_png(path, original.picture)
    return Drawn([""], [[original.image] * len(paths)], [paths], [])


def _again(cascade: Cascade, o: argparse.Namespace) -> None:
    """Draws a recipe's picture again, and says whether it is the same."""
    found = read_recipe(o.from_png)
    if "edit" in found:
        if not _images(o):
            raise ValueError(f"{o.from_png} is an edit: give the picture that was edited, too")
        frame, soften = frame_of(found, Path(o.images[0]))
        redo = read(cascade, found)
        composition = redo.composition.but(locked=frame.restrict(cascade, redo.composition).locked)
        image = composition.draw(cascade, [redo.seed], progress=bar("drawing"), **redo.how)
        picture: Any = frame.paste(image, soften)[0]
    else:
        picture = again(cascade, found, bar("drawing"))[0].cpu()
    save_png(o.out / o.from_png.name, picture, found)
    before, after = (from_pil(Image.open(io.BytesIO(p.read_bytes()))) for p in (o.from_png, o.out / o.from_png.name))
    off = (after - before).abs() * 127.5
    share = float((off > 0.5).float().mean())
    same = "the same, bit for bit" if share == 0 else f"{share:.2%} of the values differ"
    print(f"{o.out / o.from_png.name}: {same}")
    if float(off.max()) > 1.5:
        print(f"warning: they differ by up to {float(off.max()):.0f} of 255", file=sys.stderr)


def _axis(text: str) -> tuple[str, list[str]]:
    """``guidance=1,3,7`` -> ("guidance", ["1", "3", "7"]); a semicolon separates values that have commas."""
    name, equals, values = text.partition("=")
    name = {"seed": "seeds"}.get(name.removeprefix("--"), name.removeprefix("--"))
    parts = [value.strip() for value in values.split(";" if ";" in values else ",")]
    if not (name and equals and all(parts)) or name in ("sheet", "out", "from-png"):
        raise ValueError(f"expected an axis such as guidance=1,3,7, found {text!r}")
    return name, parts


def _plain(value: str) -> str:
    """A value as a part of a file's name."""
    return "".join(c if c.isalnum() or c in ".-" else "-" for c in Path(value).name)[:40]


def _weights(text: str) -> dict[str, float]:
    pairs = [pair.partition("=") for pair in text.split(",")]
    try:
        return {name: float(weight) for name, _, weight in pairs}
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected NAME=WEIGHT,..., such as palette=2, found {text!r}") from error


def _arranged(
    axes: Sequence[tuple[str, list[str]]], settings: Sequence[tuple[str, ...]], done: Sequence[Drawn], seeds: list[int]
) -> tuple[list[list[Tensor | None]], list[str], list[str]]:
    """A sheet's rows, their labels and those of the columns: the last axis runs across, the seeds where there is none.

    What stands before the pictures, such as the picture to edit, comes first in every row.
    """
    before = done[0].before
    lead, heads = [image for _, image in before], [name for name, _ in before]
    if not axes:
        labels = done[0].labels if any(done[0].labels) else []
        columns = [*heads, *(f"seed {seed}" for seed in seeds)]
        return [[*lead, *row] for row in done[0].rows], labels, columns
    across = len(axes[-1][1])
    rows: list[list[Tensor | None]] = []
    labels = []
    for start in range(0, len(done), across):
        group = done[start : start + across]
        fixed = [f"{name} {value}" for (name, _), value in zip(axes[:-1], settings[start][:-1], strict=True)]
        for i, label in enumerate(group[0].labels):
            for k in range(len(group[0].rows[i])):
                rows.append([*lead, *(one.rows[i][k] for one in group)])
                many = [f"{k + 1}."] if len(group[0].rows[i]) > 1 else []
                labels.append(" ".join([*fixed, *([label] if label else []), *many]))
    return rows, labels if any(labels) else [], [*heads, *(f"{axes[-1][0]} {value}" for value in axes[-1][1])]
