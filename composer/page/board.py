"""The board: what a person has put together on the page, as JSON. It is not trusted."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from composer.storage.schema import NAME, Check, each, fail, items, number, one_of, optional, record, text, whole

LONGEST = 2000
"""Characters of a caption, or of other words."""

MOST_SEEDS, MOST_CANDIDATES, MOST_SIDE = 16, 64, 2048
"""Pictures of one request, candidates for each, and pixels of a side."""

MOST_SOFTENED = 256
"""Pixels over which an edit fades in."""

TASKS = ("compose", "edit", "outpaint", "vary")
"""What the page offers, of the commands that draw."""

MAX_SEED = (1 << 53) - 1
"""The largest whole number that JavaScript holds exactly."""

ID = "[0-9a-f]{16}"

_ID = text(16, ID, "an id")
_SHARE = number(0, 1)
_NAME = text(100, NAME.pattern, "the name of a condition")
_BOX = each(_SHARE, _SHARE, _SHARE, _SHARE)


def _one_of(what: str, **keys: Check) -> Check:
    """A mapping with exactly one of some keys."""

    def check(value: Any, where: str) -> None:
        found = [key for key in keys if isinstance(value, Mapping) and value.get(key) is not None]
        if len(found) != 1:
            fail(where, what, value)
        keys[found[0]](value[found[0]], f"{where}.{found[0]}")

    return check


_PLACE = _one_of("a box or a mask", box=_BOX, mask=_ID)
_VALUE = _one_of("a picture, a recipe or a text", picture=_ID, recipe=_ID, text=text(LONGEST))
_HOW = record(
    {"condition": _NAME},
    {"weight": optional(number(0, 1000)), "interval": optional(each(_SHARE, _SHARE)), "place": optional(_PLACE)},
)


def _part(value: Any, where: str) -> None:
    _HOW(value, where)
    _VALUE(value, where)


_WORDS = record({"words": text(LONGEST)}, {"weight": optional(number(0, 1000))})
_BOARD = record(
    {"task": one_of(*TASKS)},
    {
        "picture": optional(_ID),
        "region": optional(_PLACE),
        "by": optional(each(*[number(0, 16_384)] * 4)),
        "soften": optional(whole(0, MOST_SOFTENED)),
        "keep": optional(items(_NAME, 0, 64)),
        "parts": optional(items(_part, 0, 64)),
        "away": optional(items(_part, 0, 64)),
        "also": optional(items(_WORDS, 0, 32)),
        "never": optional(items(_WORDS, 0, 32)),
        "objects": optional(items(record({"phrase": text(200), "box": _BOX}), 0, 100)),
        "seeds": optional(items(whole(-MAX_SEED, MAX_SEED), 1, MOST_SEEDS)),
        "best_of": optional(whole(1, MOST_CANDIDATES)),
        "steps": optional(whole(1, 10_000)),
        "guidance": optional(number(-1000, 1000)),
        "until": optional(text(100, NAME.pattern, "the name of a stage")),
        "stages": optional(items(text(500), 0, 16)),
        "size": optional(each(whole(8, MOST_SIDE), whole(8, MOST_SIDE))),
        "parent": optional(_ID),
    },
    closed=True,
)


def check_board(board: Any) -> None:
    """Checks the form of a board; whether the model can draw it is not known yet.

    Raises:
        ValueError: Something in it is not as it should be.
    """
    _BOARD(board, "the board")
    names = [part["condition"] for part in board.get("parts") or ()]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"expected each condition once on the board, found {', '.join(twice)} twice")


@runtime_checkable
class Files(Protocol):
    """Where what a board names by its ids lies."""

    def picture(self, found: str) -> str:
        """The path of a picture.

        Raises:
            KeyError: There is none of that id.
        """

    def mask(self, found: str) -> str:
        """The path of a mask.

        Raises:
            KeyError: There is none of that id.
        """
