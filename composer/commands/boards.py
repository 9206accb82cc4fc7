"""Boards of the page as requests: the words that a command line would have, read as one, and drawn as one."""

import math
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from composer.cascade.cascade import Cascade
from composer.cascade.composition import Composition
from composer.commands.drawing import paint
from composer.commands.groups import ModelOptions
from composer.commands.inputs import Inputs, Place
from composer.commands.plans import find_places, make_plan
from composer.commands.python import write_python
from composer.commands.request import Request
from composer.commands.tasks import TASKS
from composer.diffusion.samplers import Watcher
from composer.evaluation.best_of import ROWS
from composer.evaluation.reading import Reading
from composer.evaluation.report import compare
from composer.images.reading import PictureFile
from composer.images.sheet import save_png
from composer.names import SHIPPED
from composer.page.board import Files
from composer.page.model import asked
from composer.page.painter import Box, Drawn, Run
from composer.storage.files import reserved
from composer.tasks.composition import from_words
from composer.tasks.words import ALSO, NEVER, RECIPE, STRENGTH, is_file, read_weighted


class BoardPainter:
    """Draws boards by the code of the commands; see `composer.page.painter.Painter`.

    Args:
        model: The model.
        options: How it was loaded.
        plugins: Modules that the user trusts.
        out: Where results are kept; None leaves that to the server.
    """

    def __init__(self, model: Cascade, options: ModelOptions, plugins: Sequence[str], out: Path | None = None):
        self.model, self.options, self.plugins, self.out = model, options, plugins, out

    def read(self, board: Mapping[str, Any], files: Files) -> Request:
        """Reads the board's command line."""
        request = TASKS[board["task"]].read([*to_words(board, files), *self._own()])
        for part in [*(board.get("parts") or ()), *(board.get("away") or ())]:
            if part.get("text") is not None:
                from_words(self.model, part["condition"], part["text"])
        self.model.settings(None, request.sampling.options)
        return request

    def _own(self) -> list[str]:
        model, network = self.options.model, self.options.allow_network
        return ([] if model == SHIPPED else [f"--model={model}"]) + ["--allow-network"] * network

    def draw(
        self, request: Request, folder: Path, watch: Callable[[Sequence[Run], Box | None], Watcher]
    ) -> Iterator[Drawn]:
        """Draws as the command does, and compares each picture with what was asked."""
        file = cache(PictureFile)
        (place,) = find_places([request], file)
        plan = make_plan(request, place, Inputs(self.model, file, self.plugins, self.options.allow_network))
        if place is not None and plan.frame is None:
            raise ValueError("the region is empty: nothing of the picture may change")
        ((_, composition),) = plan.made
        watcher = watch(list_runs(self.model, request, composition), _box(place))
        painting = paint(self.model, plan, composition, watcher)
        with reserved(self.out or folder, plan.names) as paths:
            for path, picture, made in zip(paths, painting.pictures, painting.recipes, strict=True):
                save_png(path, picture, made)
        for i, path in enumerate(paths):
            rows = compare(painting.best.compositions[i], Reading(self.model, painting.seen[i : i + 1]))
            rows = [row for row in rows if row.name in asked(self.model)]
            yield Drawn(
                seed=painting.best.seeds[i],
                path=path,
                closed={row.name: row.closed for row in rows if row.closed is not None},
                asked={row.name: row.asked for row in rows},
                got={row.name: row.back for row in rows if row.back is not None},
            )

    def write(self, board: Mapping[str, Any], files: Files) -> tuple[str, str]:
        """Writes the board as a command, and as Python that runs it."""
        words = ["composer", board["task"], *to_words(board, files), *self._own()]
        return shlex.join(words), write_python(self.read(board, files), self.model.device.type)


def list_runs(model: Cascade, request: Request, composition: Composition) -> list[Run]:
    """The runs of stages that `best_of` makes, in order."""
    seeds, n = range(len(request.drawing.seeds)), request.drawing.best_of
    stages = list(model.settings(composition, request.sampling.options))
    candidates = [Run(stages[0], [seed]) for seed in seeds for _ in range(math.ceil(n / ROWS))] if n > 1 else []
    return [*candidates, *(Run(stage, seeds) for stage in stages)]


def _box(place: Place | None) -> Box | None:
    """The square that the model draws, in shares of the picture."""
    if place is None or (frame := place.frame) is None:
        return None
    h, w = place.original.image.shape[1:]
    return frame.columns.start / w, frame.rows.start / h, frame.columns.stop / w, frame.rows.stop / h


def to_words(board: Mapping[str, Any], files: Files) -> list[str]:
    """The words of the command line that asks for what is on a board, without the task's name.

    Args:
        board: See `composer.page.board.check_board`.
        files: Where its pictures and masks lie.

    Raises:
        KeyError: A picture or a mask is not here.
        ValueError: Words would be read as something else.
    """
    words = []
    if board["task"] == "compose" and not any(board.get(row) for row in ("parts", "objects", "also", "never")):
        raise ValueError("nothing asked: put something on the board")
    if board["task"] != "compose":
        if board.get("picture") is None:
            raise ValueError("expected a picture to work on, found none")
        words.append(files.picture(board["picture"]))
        words += _named("region", board.get("region"), lambda place: _place(place, files))
        words += _named("by", board.get("by") if board["task"] == "outpaint" else None, _join)
        words += _named("soften", board.get("soften"), str)
        if (keep := board.get("keep")) is not None:
            words += ["--keep", *keep]
    for part in board.get("parts") or ():
        words.append(f"--{_flag(part['condition'])}={_value(part, files)}")
    words += [f"--strengths={text}" for part in board.get("parts") or () if (text := _strength(part, files))]
    if board.get("objects"):
        words.append(f"--objects={_objects(board['objects'])}")
    words += [f"--away={part['condition']}={_value(part, files)}" for part in board.get("away") or ()]
    words += [f"--and={_weighted(one, ALSO)}" for one in board.get("also") or ()]
    words += [f"--not={_weighted(one, NEVER)}" for one in board.get("never") or ()]
    words += _named("seeds", board.get("seeds"), _join)
    words += _named("best-of", board.get("best_of"), str)
    words += _named("steps", board.get("steps"), str)
    words += _named("guidance", board.get("guidance"), _number)
    words += _named("until", board.get("until"), str)
    words += [f"--stage={text}" for text in board.get("stages") or ()]
    words += _named("size", board.get("size"), lambda size: f"{size[0]}x{size[1]}")
    return words


def _named(name: str, value: Any, write: Callable[[Any], str]) -> list[str]:
    return [] if value is None else [f"--{name}={write(value)}"]


def _flag(name: str) -> str:
    return name.replace("_", "-")


def _number(value: float) -> str:
    """The shortest text that reads as exactly this number, without an exponent."""
    return np.format_float_positional(value, trim="-")


def _join(values: Sequence[float]) -> str:
    return ",".join(map(_number, values))


def _place(place: Mapping[str, Any], files: Files) -> str:
    return _join(place["box"]) if place.get("box") is not None else files.mask(place["mask"])


def _value(part: Mapping[str, Any], files: Files) -> str:
    if part.get("picture") is not None:
        return files.picture(part["picture"])
    if part.get("recipe") is not None:
        return f"{RECIPE}{files.picture(part['recipe'])}"
    return _plain(part["text"])


def _plain(text: str) -> str:
    """Words, as they are.

    Raises:
        ValueError: They would be read as a file's name: only what was given to the page is read.
    """
    found = STRENGTH.fullmatch(text)
    named = text.startswith(RECIPE) or is_file(text) or (found is not None and found[5] and "," not in found[5])
    if not text.strip() or named:
        raise ValueError(f"expected words, found {text!r}: to take something from a picture, give it to the page")
    return text


def _strength(part: Mapping[str, Any], files: Files) -> str:
    """How much, when and where a condition counts; empty where it counts fully."""
    weight, interval, place = part.get("weight"), part.get("interval"), part.get("place")
    how = "" if weight in (None, 1) else _number(weight)
    how += "" if interval is None or tuple(interval) == (0, 1) else f"@{_number(interval[0])}-{_number(interval[1])}"
    how += "" if place is None else f"{':' if how else ''}{_place(place, files)}"
    return f"{part['condition']}={how}" if how else ""


def _weighted(one: Mapping[str, Any], usual: float) -> str:
    """Words with their weight.

    Raises:
        ValueError: They end in what would be read as a weight.
    """
    words, weight = one["words"].strip(), float(usual if one.get("weight") is None else one["weight"])
    written = words if weight == usual else f"{words}:{_number(weight)}"
    if not words or read_weighted(written, usual) != (words, weight):
        raise ValueError(f"expected words without a number behind them, found {words!r}: the number is its weight")
    return written


def _objects(objects: Sequence[Mapping[str, Any]]) -> str:
    if wrong := [one["phrase"] for one in objects if not one["phrase"].strip() or set(one["phrase"]) & set(";:")]:
        raise ValueError(f"expected phrases without ; and :, found {wrong[0]!r}")
    return "; ".join(f"{one['phrase'].strip()}: {_join(one['box'])}" for one in objects)
