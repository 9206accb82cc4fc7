"""Limits on a configuration's YAML: a few lines of aliases can expand to more than any memory holds."""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import yaml

from composer.storage.files import printable

MODE = "omegaconf+"
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
MAX_CHARACTERS, MAX_VALUES = 4_000_000, 100_000
"""Of a configuration, its aliases spelled out."""

_REFERENCE = re.compile(r"\$\{([\w.]+)\}")


class TooLarge(ValueError):
    """A configuration expands to too many values."""


@cache
def bound_configurations() -> None:
    """Makes jsonargparse check each text that it reads as YAML, files and values alike."""
    import jsonargparse
    from jsonargparse._loaders_dumpers import get_loader_exceptions, set_omegaconf_loader

    set_omegaconf_loader(MODE)
    usual = jsonargparse.get_loader(MODE)

    def load(text: str) -> Any:
        check_size(text)
        return usual(text)

    jsonargparse.set_loader(MODE, load, get_loader_exceptions("yaml"))


def check_size(text: str) -> None:
    """Checks that a YAML text does not expand to more values than any configuration needs.

    Raises:
        TooLarge: It has too many characters; with its aliases it has too many values; or its interpolations multiply:
            one that takes several others takes only values that take none.
    """
    if len(text) > MAX_CHARACTERS:
        raise TooLarge(f"expected a configuration of at most {MAX_CHARACTERS:,} characters, found {len(text):,}")
    if "*" in text and "&" in text:
        _count(yaml.compose(text, LOADER), {})
    if text.count("${") > 1:
        _check_interpolations(yaml.load(text, LOADER))


def _count(node: yaml.Node | None, known: dict[int, int]) -> int:
    """Number of values of a node, those of its aliases counted each time."""
    if (count := known.get(id(node), 0)) > 0:
        return count
    if count < 0:
        raise TooLarge("a value of the configuration contains itself")
    known[id(node)] = -1  # until its parts are counted
    parts = node.value if isinstance(node, yaml.CollectionNode) else []
    inside = [part for pair in parts for part in pair] if isinstance(node, yaml.MappingNode) else parts
    count = 1 + sum(_count(part, known) for part in inside)
    if count > MAX_VALUES:
        raise TooLarge(f"the aliases of the configuration stand for more than {MAX_VALUES:,} values")
    known[id(node)] = count
    return count


def _check_interpolations(root: Any) -> None:
    for text in _texts(root):
        if (count := text.count("${")) == 0:
            continue
        found = _REFERENCE.findall(text)
        targets = [_lookup(root, path) for path in found]
        many = count > 1 or any(isinstance(target, dict | list) for target in targets)
        if many and (len(found) < count or any("${" in inner for target in targets for inner in _texts(target))):
            raise TooLarge(f"expected interpolations that take plain values, found {printable(text[:80])!r}")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)


def _lookup(root: Any, path: str) -> Any:
    """What a path such as ``let.size`` names; None where that is nothing."""
    for name in path.split("."):
        root = root.get(name) if isinstance(root, dict) else None
    return root
