"""The judge: a small network that lists the things in an image of a scene, used for evaluation only."""

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from composer.scenes import COLOURS, SHAPES, SIZES
from composer.scenes.captions import FAR, NEAR, place, stand
from composer.scenes.layout import Scene
from composer.scenes.reader import block
from composer.storage.pretrained import load_frozen

STRIDE = 2
"""Pixels per cell: a thing is marked in the cell of its centre."""

LIKELY = 0.4
"""Minimum score of a thing."""

NEAR_ENOUGH = 0.05
"""Tolerance of the bounds of "left", "in front" and so on, as a share of the image's side."""

QUESTIONS = ("kinds", "colours", "bound", "sizes", "places")
"""What can be correct in an image: shapes, colours, both bound together, also with sizes, also with places."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A detected thing: what it is, and where its centre and foot are, from the left and the top, 0 to 1."""

    shape: str
    colour: str
    size: str
    across: float
    foot: float


@dataclass(frozen=True, kw_only=True)
class Marks:
    """The judge's output per cell: whether a thing's centre is there, and what it would be.

    Attributes:
        thing: Logits.
        shape: Logits of `SHAPES`.
        colour: Logits of `COLOURS`.
        size: Logits of `SIZES`.
        where: The centre from the cell's left and top, and the foot from its top, in cells.
    """

    thing: Float[Tensor, "b 1 h w"]
    shape: Float[Tensor, "b s h w"]
    colour: Float[Tensor, "b c h w"]
    size: Float[Tensor, "b z h w"]
    where: Float[Tensor, "b 3 h w"]


class Judge(nn.Module):
    """Detects things as points (Zhou et al. 2019, "Objects as Points"), with an hourglass of convolutions.

    Args:
        width: Channels at half of the image's resolution; they double with each of the two further halvings.
    """

    def __init__(self, width: int = 32):
        super().__init__()
        self.config = {"width": width}
        self.fine = nn.Sequential(_halved(3, width), block(width, width))
        self.middle = nn.Sequential(_halved(width, 2 * width), block(2 * width, 2 * width))
        self.coarse = nn.Sequential(_halved(2 * width, 4 * width), block(4 * width, 4 * width))
        self.deep = nn.Sequential(_halved(4 * width, 4 * width), block(4 * width, 4 * width))
        self.up = nn.ModuleList(nn.Conv2d(a * width, b * width, 1) for a, b in ((4, 4), (4, 2), (2, 1)))
        self.merge = nn.ModuleList(block(n * width, n * width) for n in (4, 2, 1))
        self.head = block(width, 2 * width)
        self.parts = {"thing": 1, "shape": len(SHAPES), "colour": len(COLOURS), "size": len(SIZES), "where": 3}
        self.out = nn.Conv2d(2 * width, sum(self.parts.values()), 1)
        assert self.out.bias is not None
        nn.init.constant_(
            self.out.bias[:1], -4.0
        )  # few cells contain a thing (focal loss, Lin et al. 2017, section 4.1)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Marks:
        """Predicts from images in [-1, 1] whose sides are multiples of 16."""
        fine = self.fine(image)
        middle = self.middle(fine)
        coarse = self.coarse(middle)
        x = self.deep(coarse)
        for finer, up, merge in zip((coarse, middle, fine), self.up, self.merge, strict=True):
            x = merge(finer + F.interpolate(up(x), finer.shape[-2:], mode="nearest"))
        found = self.out(self.head(x)).float().split([*self.parts.values()], 1)
        return Marks(**dict(zip(self.parts, found, strict=True)))


def _halved(inputs: int, outputs: int) -> nn.Sequential:
    """Makes a 3x3 convolution of stride 2 with norm and nonlinearity."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, 2, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


@torch.no_grad()
def see(judge: Callable[[Tensor], Marks], image: Float[Tensor, "b 3 h w"]) -> list[list[Seen]]:
    """Lists the things that a judge detects in each image."""
    marks = judge(image)
    likely = marks.thing.sigmoid()
    peak = (likely == F.max_pool2d(likely, 3, 1, 1)) & (likely > LIKELY)
    found: list[list[Seen]] = [[] for _ in range(len(image))]
    side = image.shape[-1] // STRIDE
    names = {"shape": SHAPES, "colour": tuple(COLOURS), "size": tuple(SIZES)}
    for row, y, x in peak[:, 0].nonzero().tolist():
        told = {name: words[int(getattr(marks, name)[row, :, y, x].argmax())] for name, words in names.items()}
        across, _, foot = marks.where[row, :, y, x].tolist()
        found[row].append(Seen(**told, across=(x + across) / side, foot=(y + foot) / side))
    return found


@functools.cache
def load_judge(folder: Path) -> Judge:
    """Loads a frozen judge (see `load_frozen`); the same folder gives the same object within a process."""
    return load_frozen(folder, lambda own: Judge(**own), "the judge of things")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A thing that a caption asks for, and its place in words (see `place`)."""

    shape: str
    colour: str
    size: str
    place: str


MOST = 4
"""Maximum number of things in a scene."""


def tabulate(scene: Scene) -> Float[Tensor, "4 6"]:
    """A scene's things as numbers, one row each; unused rows are -1.

    Returns:
        Indices into `SHAPES`, `COLOURS` and `SIZES`; the thing's centre from the left and from the top, and its foot
        from the top, in [0, 1].
    """
    table = torch.full((MOST, 6), -1.0)
    for number, thing in enumerate(scene.things):
        kind = SHAPES.index(thing.shape), list(COLOURS).index(thing.colour), list(SIZES).index(thing.size)
        _, upper, _, lower = scene.camera.box(thing)
        across, foot = stand(scene.camera, thing)
        table[number] = torch.tensor([*kind, across, (upper + lower) / 2, foot])
    return table


def list_asked(things: Float[Tensor, "k 6"]) -> list[Asked]:
    """Lists what a complete caption of a table of things asks for."""
    rows = [row for row in things.tolist() if row[0] >= 0]
    return [
        Asked(
            shape=SHAPES[int(shape)],
            colour=list(COLOURS)[int(colour)],
            size=list(SIZES)[int(size)],
            place=place(across, foot),
        )
        for shape, colour, size, across, _, foot in rows
    ]


def mark(asked: Sequence[Asked], seen: Sequence[Seen]) -> dict[str, bool]:
    """What is correct in an image, by `QUESTIONS`; a thing too many or too few makes all of them false.

    No two things of a scene agree in shape and colour, so these identify correctly bound things.
    """
    kinds, colours = (_counted(asked, name) == _counted(seen, name) for name in (("shape",), ("colour",)))
    bound = _counted(asked, ("shape", "colour")) == _counted(seen, ("shape", "colour"))
    sizes = _counted(asked, ("shape", "colour", "size")) == _counted(seen, ("shape", "colour", "size"))
    found = {(thing.shape, thing.colour): thing for thing in seen}
    places = bound and all(is_at(found[thing.shape, thing.colour], thing.place) for thing in asked)
    return dict(zip(QUESTIONS, (kinds, colours, bound, sizes, places), strict=True))


def _counted(things: Sequence[Asked] | Sequence[Seen], names: tuple[str, ...]) -> Counter[tuple[str, ...]]:
    return Counter(tuple(getattr(thing, name) for name in names) for thing in things)


def is_at(thing: Seen, words: str) -> bool:
    """Whether a thing is at the place that the words name, within `NEAR_ENOUGH`."""
    columns = {"left": (0.0, 0.4), "middle": (0.4, 0.6), "right": (0.6, 1.0)}
    row = (NEAR, 1.0) if words.startswith("in front") else (0.0, FAR) if words.startswith("behind") else (FAR, NEAR)
    bounds = ((thing.across, columns[words.split()[-1]]), (thing.foot, row))
    return all(low - NEAR_ENOUGH < at < high + NEAR_ENOUGH for at, (low, high) in bounds)
