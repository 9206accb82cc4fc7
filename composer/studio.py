"""Shared code of the examples: input pictures, rows of results, and a command line.

An example is a few functions from a `Studio` to an `ExampleRow`. `run` makes a script of them, `gallery.py` a page of
all examples.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from composer.cascade.cascade import Cascade
from composer.cascade.options import SampleOptions
from composer.data.examples import SIZE, example
from composer.devices import pick_device
from composer.diffusion.samplers import Progress
from composer.evaluation.adherence import quantise
from composer.evaluation.best_of import best_of
from composer.evaluation.reading import Reading
from composer.images.reading import PictureFile
from composer.images.sheet import PAPER, from_pil, previews, save_gif, sheet, to_pil
from composer.images.table import Table
from composer.tasks.composition import Composition, Source
from composer.tasks.editing import Frame, Original, extend, open_region
from composer.terminal import say, steps_bar

FILM, LANCZOS = 160, Image.Resampling.LANCZOS
ACROSS = 5
"""Most pictures side by side, so that labels stay readable where a page shows a row at half its size."""

Shown = tuple[str, Tensor]
"""A label, and a picture (3 h w)."""

Closed = Mapping[str, Mapping[str, float]]
"""Label of a result -> condition -> how much of the way to what was asked it goes, see `Reading.closed`."""


@dataclass(frozen=True)
class Picture:
    """An input picture.

    Attributes:
        name: How a command names its file.
        original: Its pixels.
        source: What the model reads from it.
    """

    name: str
    original: Original
    source: Source

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class ExampleRow:
    """One row of an example: its inputs and results.

    Attributes:
        title: A few words.
        claim: What it does, in a sentence.
        commands: The same as commands.
        inputs: Input pictures, and previews of the conditions taken from them.
        results: What each command drew.
        closed: How well each result matches what was asked.
        moving: Whether the results are frames.
    """

    title: str
    claim: str
    commands: Sequence[str]
    inputs: Sequence[Shown]
    results: Sequence[Sequence[Shown]]
    closed: Closed
    moving: bool = False

    def picture(self) -> Image.Image:
        """All of its pictures: the inputs, then the results."""
        drawn = [shown for made in self.results for shown in made]
        lines = [[*self.inputs, *drawn]]
        if len(lines[0]) > ACROSS:
            lines = [x[i : i + ACROSS] for x in (list(self.inputs), drawn) for i in range(0, len(x), ACROSS)]
        sheets = [sheet([[x for _, x in line]], columns=[label for label, _ in line], font=22) for line in lines]
        page = Image.new("RGB", (max(s.width for s in sheets), sum(s.height for s in sheets)), PAPER)
        for i, one in enumerate(sheets):
            page.paste(one, (0, sum(s.height for s in sheets[:i])))
        return page

    def save(self, path: Path) -> None:
        """Writes ``PATH.jpg``, and frames as ``PATH.gif``."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.picture().save(path.with_suffix(".jpg"), quality=88)
        if self.moving:
            frames = [to_pil(x).resize((FILM, FILM), LANCZOS) for made in self.results for _, x in made]
            save_gif(path.with_suffix(".gif"), frames)


def make_table(closed: Closed) -> str:
    """Makes a Markdown table: one column per result, one line per condition."""
    names = list(dict.fromkeys(name for row in closed.values() for name in row))
    rows = [[name, *(f"{row[name]:.2f}" if name in row else "" for row in closed.values())] for name in names]
    return Table(["closed", *closed], rows).markdown().removesuffix("\n") if names else ""


class Studio:
    """The model, settings and folder with which examples draw.

    Args:
        model: The model.
        folder: Pictures that no file is given for are written to its ``inputs``.
        files: Replace the examples' own pictures, in order.
        seed: The first of the seeds.
        progress: Wraps the steps.
        options: See `Cascade.sample`.
    """

    def __init__(
        self,
        model: Cascade,
        folder: Path,
        files: Sequence[str] = (),
        seed: int = 0,
        progress: Progress | None = None,
        options: SampleOptions | None = None,
    ):
        self.model, self.folder, self.files = model, folder, list(files)
        self.seed, self.progress, self.options = seed, progress, options

    @property
    def inverting(self) -> dict[str, Any]:
        """Options of tasks that invert pictures."""
        steps = {} if self.options is None or self.options.steps is None else {"steps": self.options.steps}
        return {"progress": self.progress, **steps}

    def pictures(self, *names: str, caption: str = "") -> list[Picture]:
        """Opens files, or where there is none the named pictures; `caption` is what the first one shows.

        Args:
            *names: ``scene04`` is a Scene of the split val, ``chelsea`` a photograph of scikit-image, ``drawing`` ours.
            caption: What the first one shows.
        """
        paths = [Path(path) for path in self.files[: len(names)]]
        paths += [self._input(name) for name in names[len(paths) :]]
        return [self._open(path, caption if i == 0 else "") for i, path in enumerate(paths)]

    def _input(self, name: str) -> Path:
        path = self.folder / "inputs" / f"{name}.jpg"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            to_pil(example(name)).save(path, quality=92, subsampling=0)
        return path

    def _open(self, path: Path, caption: str) -> Picture:
        own = path.parent == self.folder / "inputs"
        file = PictureFile(path)
        source = Source.open(self.model, file, caption)
        return Picture(f"inputs/{path.name}" if own else str(path), Original.open(file), source)

    def within(self, picture: Picture, box: str) -> tuple[Picture, Frame]:
        """Restricts what is drawn to a region of a picture: left,top,right,bottom, or a mask's file."""
        _, h, w = picture.original.image.shape
        return self._framed(picture, picture.original, open_region(box, (h, w)))

    def beyond(self, picture: Picture, *sides: float) -> tuple[Picture, Frame]:
        """Extends a picture at left, top, right and bottom, by fractions of its size, and draws only there."""
        left, top, right, bottom = sides
        return self._framed(picture, *extend(picture.original, (left, top, right, bottom)))

    def _framed(self, picture: Picture, original: Original, region: Tensor) -> tuple[Picture, Frame]:
        frame = Frame.around(original, region)
        return Picture(picture.name, picture.original, frame.source(self.model)), frame

    def taken(self, picture: Picture, *names: str) -> list[Shown]:
        """A picture, and previews of the representations that are taken from it."""
        return [(Path(picture.name).stem, picture.original.image), *self.preview(picture.source.has, *names)]

    def preview(self, composition: Composition, *names: str) -> list[Shown]:
        """Previews of some representations."""
        shown = previews(self.model.decomposition, composition.parts.pick(*names), SIZE)
        return [(name, image[0]) for name, image in shown.items()]

    def row(
        self,
        title: str,
        claim: str,
        commands: str | Sequence[str],
        inputs: Sequence[Shown],
        made: Composition | Sequence[tuple[str, Composition]],
        *,
        count: int = 1,
        best: int = 1,
        frame: Frame | None = None,
        moving: bool = False,
    ) -> ExampleRow:
        """Draws, and measures how well the results match what was asked.

        Args:
            title: See `ExampleRow`.
            claim: See `ExampleRow`.
            commands: Without seeds and the best of several; one for each of `made`, or one for all of them.
            inputs: See `ExampleRow`.
            made: What to draw, with labels.
            count: Pictures of each, with seeds that follow each other.
            best: Draws this many per seed and keeps the one that follows best.
            frame: Where in a picture to draw.
            moving: See `ExampleRow`.
        """
        made = [("", made)] if isinstance(made, Composition) else list(made)
        commands = [commands] if isinstance(commands, str) else list(commands)
        seeds = [self.seed + i for i in range(count)]
        told = f" --seeds {','.join(map(str, seeds))}" if seeds != [0] else ""
        told += f" --best-of {best}" if best > 1 else ""
        drawn: list[list[Shown]] = []
        far: dict[str, dict[str, float]] = {}
        for label, composition in made:
            labels = [", ".join(x for x in (label, f"seed {s}" if count > 1 or not label else "") if x) for s in seeds]
            images, found = self._draw(composition, seeds, best, frame)
            drawn.append(list(zip(labels, images, strict=True)))
            far |= {label: {name: float(x[i]) for name, x in found.items()} for i, label in enumerate(labels)}
        if frame is not None:
            inputs = [*inputs, ("may change", frame.region[0].expand(3, -1, -1) * 2 - 1)]
        if len(commands) != len(made):
            drawn = [[shown for one in drawn for shown in one]]
        commands = [f"composer {command}{told}" for command in commands]
        return ExampleRow(title, claim, commands, inputs, drawn, far, moving)

    def _draw(
        self, composition: Composition, seeds: Sequence[int], best: int, frame: Frame | None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        held = composition if frame is None else frame.restrict(self.model, composition)
        drawn = best_of(self.model, held, seeds, best, {}, self.options, self.progress)
        found = Reading(self.model, quantise(drawn.images)).closed(composition.wanted)
        pasted = drawn.images if frame is None else map(from_pil, frame.paste(drawn.images))
        return list(pasted), found


Example = Callable[[Studio], ExampleRow]


def run(about: str | None, *examples: Example, args: Sequence[str] | None = None) -> None:
    """Draws examples' rows, saves each as a picture, and prints what it is and how well it matches what was asked."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="*", help="image files to use instead of the example's own pictures")
    parser.add_argument("--model", default="scenes256", help="a model's folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="sampling steps (default: the model's)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="inside the network")
    parser.add_argument("--out", type=Path, default=Path("out/examples"), help="folder to write to")
    o = parser.parse_args(args)
    precision = torch.bfloat16 if o.precision == "bf16" else None
    model = Cascade.load(o.model).to(pick_device(), precision)
    studio = Studio(model, o.out, o.images, o.seed, steps_bar("drawing"), SampleOptions(steps=o.steps))
    for make in examples:
        row = make(studio)
        row.save(o.out / make.__name__)
        say(f"{row.title}: {row.claim}", *row.commands, make_table(row.closed))
        say(f"see {o.out / make.__name__}.jpg")
