"""Reads JSON from untrusted sources, and validates it before anything is built from it.

A schema consists of checks: functions that take a value and its place, and raise a ValueError that says what was
expected and what was found.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from composer.storage.files import printable

Check = Callable[[Any, str], None]
"""Takes a value and its place; raises a ValueError that begins with the place."""

NAME = re.compile(r"[A-Za-z0-9_]{1,100}")
"""Name of a stage, condition, decomposer or reader: it becomes the name of a file or folder."""

DEEPEST = 24
"""Maximum depth of nested JSON that `plain` takes."""


def read_json(path: Path, most: int) -> Any:
    """Reads a JSON file.

    Args:
        path: The file.
        most: Maximum size in bytes.

    Raises:
        FileNotFoundError: There is no such file, or it is not a file.
        ValueError: It is larger, not UTF-8, not JSON, nested too deeply, or contains NaN or an infinity.
    """
    if not path.is_file():
        raise FileNotFoundError(f"expected a file at {path}, found none")
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"{path}: expected at most {most} bytes of JSON, found more")
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def fail(where: str, expected: str, value: Any) -> NoReturn:
    """Raises the error of a check.

    Raises:
        ValueError: Always.
    """
    if isinstance(value, Mapping | list | tuple):
        found = f"{type(value).__name__} of {len(value)}"
    elif isinstance(value, int | float | None):
        found = json.dumps(value) if not isinstance(value, int) or abs(value) < 10**20 else "a longer number"
    else:
        found = printable(repr(value)[:80])
    raise ValueError(f"{where}: expected {expected}, found {found}")


def whole(low: int, high: int) -> Check:
    """A whole number from `low` to `high`."""

    def check(value: Any, where: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            fail(where, f"a whole number from {low} to {high}", value)

    return check


def number(low: float, high: float) -> Check:
    """A number from `low` to `high`; not NaN."""

    def check(value: Any, where: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            fail(where, f"a number from {low:g} to {high:g}", value)

    return check


def text(longest: int, pattern: str | None = None, like: str = "") -> Check:
    """A text of at most `longest` characters that matches the pattern, if any; `like` describes it in errors."""
    compiled = None if pattern is None else re.compile(pattern)

    def check(value: Any, where: str) -> None:
        if not isinstance(value, str) or len(value) > longest:
            fail(where, f"a text of at most {longest} characters", value)
        if compiled is not None and compiled.fullmatch(value) is None:
            fail(where, like, value)

    return check


def one_of(*known: Any) -> Check:
    """One of some values."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, str | None) or value not in known:
            fail(where, f"one of {', '.join(map(str, known))}", value)

    return check


def optional(inner: Check) -> Check:
    """None, or what another check takes."""

    def check(value: Any, where: str) -> None:
        if value is not None:
            inner(value, where)

    return check


def items(inner: Check, least: int, most: int) -> Check:
    """A list of `least` to `most` items."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, list | tuple) or not least <= len(value) <= most:
            fail(where, f"a list of {least} to {most}", value)
        for i, item in enumerate(value):
            inner(item, f"{where}[{i}]")

    return check


def each(*inner: Check) -> Check:
    """A list with one item for each check."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, list | tuple) or len(value) != len(inner):
            fail(where, f"a list of {len(inner)}", value)
        for i, (item, one) in enumerate(zip(value, inner, strict=True)):
            one(item, f"{where}[{i}]")

    return check


def table(inner: Check, most: int = 64, named: re.Pattern[str] | None = NAME) -> Check:
    """A mapping from names to what another check takes; None lets the names be any text of at most 200 characters."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, Mapping) or len(value) > most:
            fail(where, f"a mapping of at most {most} names", value)
        for key, item in value.items():
            if not isinstance(key, str) or len(key) > 200 or (named is not None and named.fullmatch(key) is None):
                fail(where, "names of letters, digits and _" if named else "names of at most 200 characters", key)
            inner(item, f"{where}.{printable(key)}")

    return check


def record(required: Mapping[str, Check], also: Mapping[str, Check] | None = None, closed: bool = False) -> Check:
    """A mapping with certain keys.

    Args:
        required: Keys that must be there.
        also: Keys that may be there.
        closed: Whether to refuse all other keys; otherwise they are ignored.
    """
    known = {**required, **(also or {})}

    def check(value: Any, where: str) -> None:
        if not isinstance(value, Mapping):
            fail(where, f"a mapping with {', '.join(known)}", value)
        if missing := [key for key in required if key not in value]:
            raise ValueError(f"{where} is incomplete: there is no {', '.join(missing)}")
        if closed and (unknown := [key for key in value if key not in known]):
            fail(where, f"no other keys than {', '.join(known)}", unknown[0])
        for key, inner in known.items():
            if key in value:
                inner(value[key], f"{where}.{key}")

    return check


def depending_on(key: str, with_it: Check, without: Check) -> Check:
    """What one check takes where a mapping has a key, and another check where it has not."""

    def check(value: Any, where: str) -> None:
        (with_it if isinstance(value, Mapping) and key in value else without)(value, where)

    return check


def plain(largest: int, most: int) -> Check:
    """Any plain values: texts, finite numbers, booleans, None, and lists and mappings of them, not nested too deeply.

    Args:
        largest: Maximum absolute value of a number.
        most: Maximum number of values in total.
    """

    def check(value: Any, where: str) -> None:
        for count, (depth, item) in enumerate(_walk(value)):
            if count > most:
                raise ValueError(f"{where}: expected at most {most} values, found more")
            if depth > DEEPEST:
                raise ValueError(f"{where}: expected at most {DEEPEST} levels of nested values, found more")
            if isinstance(item, bool | Mapping | list | tuple | None):
                continue
            if isinstance(item, int | float):
                if not (math.isfinite(item) and abs(item) <= largest):
                    fail(where, f"numbers of at most {largest:,}", item)
            elif not isinstance(item, str):
                fail(where, "plain values", type(item).__name__)
            elif len(item) > 10_000:
                raise ValueError(f"{where}: expected texts of at most 10,000 characters, found a longer one")

    return check


def _walk(value: Any) -> Iterator[tuple[int, Any]]:
    """Yields every value and its depth, without recursion, which deep nesting would break."""
    left: list[tuple[int, Any]] = [(0, value)]
    while left:
        depth, item = left.pop()
        yield depth, item
        if isinstance(item, Mapping):
            left += [(depth + 1, inner) for pair in item.items() for inner in pair]
        elif isinstance(item, list | tuple):
            left += [(depth + 1, inner) for inner in item]
