"""Explains in one or two lines what is wrong in a training's configuration, where jsonargparse needs seventy."""

import inspect
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from composer.mistakes import did_you_mean

LONGEST = 300
"""Characters of a value that is shown."""

SUBCOMMAND = re.compile(r"\b(?:fit|validate|test)\.(?=[a-z])")
KEY = re.compile(r"Parser key \"([^\"]+)\"")
CLASS = re.compile(r"Problem with given class_path '([^']+)'")
UNKNOWN = re.compile(r"(?:Subcommand '\w+' does not accept option '|Option ')([^']+)'|unrecognized arguments: --(\S+)")
NO_CLASS = re.compile(r"Expected a dot import path string: (\S+)")
TYPE = re.compile(r"Expected a (.+)\. Got value: (.*)")
REFUSED = re.compile(r"Importing '([^']+)' is not allowed")
UNION = re.compile(
    r"Subtypes: \[[^\n]*\]\s*Errors:\s*((?:- *Expected an? [^\n]*\n\s*)+)"
    r"Given value type: [^\n]*\s*Given value: ([^\n]*)"
)
"""The innermost union of plain types, none of which the value has."""

WRONG_KIND = re.compile(r"Subtypes: \[<class '([^']+)'>, <class 'NoneType'>\]\s*Errors:\s*- Expected a dot import path")
NOISE = re.compile(
    r"\s*(-?\s*Parser key|-?\s*Problem with given class_path|Does not validate|Subtypes|Errors|Given value)"
)


def explain(message: str, keys: Iterable[str], files: Sequence[str | Path], packages: Sequence[str]) -> str:
    """Shortens an error of jsonargparse to the key, what was expected, and where it is in the file.

    Args:
        message: What jsonargparse says.
        keys: All keys that the parser knows, such as ``data.batch_size``.
        files: The configurations that were given.
        packages: Whose classes a configuration may name.
    """
    whole = SUBCOMMAND.sub("", message)
    message = whole.partition("Given value type:")[0]  # then comes the whole section, on one line
    key = ".".join(dict.fromkeys(KEY.findall(message)))
    classes = CLASS.findall(message)
    where = f"{key} ({classes[-1]})" if classes else key
    if found := UNKNOWN.search(message):
        wrong = (found[1] or found[2]).partition("=")[0]
        known = _arguments(classes[-1]) if classes else keys
        section = "" if classes else ".".join(wrong.split(".")[:-1])
        inside = f" in {classes[-1]}" if classes else ""
        says = f"no key {wrong}{inside}{did_you_mean(wrong, known) or _known(known, section)}"
        return says + _where(files, [rf"\b{re.escape(wrong.rpartition('.')[2])}\s*:"])
    if found := NO_CLASS.search(message):
        known, kind = _class_names(packages), WRONG_KIND.search(message)
        says = f"{key}: no class {found[1]}{did_you_mean(found[1], known)}"
        if found[1] in known and kind is not None:
            says = f"{key}: expected a {_short(kind[1])}, which {found[1]} is not"
        return says + _where(files, [rf"[\s:]['\"]?{re.escape(found[1])}['\"]?\s*(?:[,}}]|$)"])
    if found := TYPE.search(message):
        return _wanted(where, found[1].replace("<class '", "").replace("'>", ""), found[2], files)
    if found := UNION.search(whole):
        kinds = [_short(kind) for kind in re.findall(r"Expected an? (?:<class ')?([^'>\n]+)", found[1])]
        return _wanted(where, " or ".join(kind for kind in kinds if kind != "NoneType"), found[2], files)
    if found := REFUSED.search(message):
        return f"{key}: importing {found[1]} is not allowed; --plugins MODULE allows a module that you trust"
    lines = [line.strip(" -") for line in message.splitlines() if line.strip() and not NOISE.match(line)]
    lines = [line[:LONGEST] for line in lines if line != "Expected a <class 'NoneType'>"]
    named = f"\nin {', '.join(map(str, files))}" if files else ""
    return (f"{where}: " if key else "") + "\n".join(dict.fromkeys(lines)) + named


def _wanted(where: str, expected: str, value: str, files: Sequence[str | Path]) -> str:
    """Says what a key, with its class in brackets, should have been, and in which line of a file it is."""
    name, shown = where.partition(" ")[0].rpartition(".")[2], value[:LONGEST]
    place = _where(files, [rf"\b{re.escape(name)}\s*:\s*['\"]?{re.escape(shown)}"])
    return f"{where}: expected {expected}, found {shown}{place}"


def _short(path: str) -> str:
    """A class without its module."""
    return path.rpartition(".")[2]


def _arguments(path: str) -> list[str]:
    """What the class of that name is built from."""
    module, _, name = path.rpartition(".")
    cls = getattr(sys.modules.get(module), name, None)
    return list(inspect.signature(cls).parameters) if inspect.isclass(cls) else []


def _known(keys: Iterable[str], section: str) -> str:
    """Lists what a class is built from, or the keys of a section."""
    inside = [key for key in keys if key.startswith(section) and key.count(".") <= (section + ".").count(".")]
    return f"; there are {', '.join(inside)}" if inside and len(inside) <= 30 else ""


def _class_names(packages: Sequence[str]) -> set[str]:
    """Names of all classes that were imported from some packages."""
    modules: list[Any] = [m for name, m in list(sys.modules.items()) if name.partition(".")[0] in packages]
    return {name for module in modules for name, value in vars(module).items() if inspect.isclass(value)}


def _where(files: Sequence[str | Path], patterns: Sequence[str]) -> str:
    """The line of a configuration that a pattern is found in, where it is only one."""
    for file in files:
        lines = Path(file).read_text(encoding="utf-8").splitlines() if Path(file).is_file() else []
        for pattern in patterns:
            found = [i for i, line in enumerate(lines, 1) if re.search(pattern, line.partition("#")[0])]
            if len(found) == 1:
                return f"\n{file}, line {found[0]}: {lines[found[0] - 1].strip()[:LONGEST]}"
    return ""
