"""What the commands say: nothing is read as markup, nothing acts on the terminal, and nobody prints otherwise."""

import ast
import logging
import warnings
from pathlib import Path

import pytest
from rich.table import Table

import composer
from composer import terminal
from composer.__main__ import main
from composer.commands.registry import COMMANDS
from composer.storage.files import printable

PACKAGES = [
    Path(composer.__file__).parent,
    *(Path(composer.__file__).parents[1] / n for n in ("decomposers", "conditions")),
]
BAD = "run [red] [/b] :smile: \x1b[31m\x07 \x9b1m \u202egnp \udcff é"
SHOWN = "run [red] [/b] :smile:  [31m   1m  gnp \ufffd é"


def test_nobody_prints_otherwise():
    """A print or a console of rich elsewhere would show a stranger's text as it is."""
    found = []
    for path in (path for package in PACKAGES for path in package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call | ast.ImportFrom):
                continue
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            names = (
                [n.name for n in node.names]
                if isinstance(node, ast.ImportFrom) and node.module in ("rich.console", "rich.progress")
                else []
            )
            if (
                called == "print"
                or called.endswith(("Console", "stdout.write", "stderr.write"))
                or {"Console", "Progress", "track"} & set(names)
            ):
                found.append(f"{path.name}:{node.lineno}")
    assert {place.partition(":")[0] for place in found} == {"terminal.py"}


def test_texts_are_said_as_they_are(capsys):
    terminal.say(BAD, "next\nlines")
    terminal.note(BAD)
    said = capsys.readouterr()
    assert said.out == f"{SHOWN}\nnext\nlines\n" and said.err == f"{SHOWN}\n"


def test_tables_and_bars_show_texts_as_they_are(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    table = Table(BAD, title=BAD)
    table.add_row(BAD)
    terminal.show(table)
    with terminal.bar() as progress:
        progress.update(progress.add_task(BAD, total=1), completed=1)
    assert list(terminal.track([1, 2], BAD)) == [1, 2]
    said = capsys.readouterr().out
    assert said.count("run [red] [/b] :smile:") == 4
    assert all(c.isprintable() or c == "\n" for c in said)


def test_on_a_terminal_the_bar_still_moves(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with terminal.bar() as progress:
        progress.update(progress.add_task(BAD, total=1), completed=1)
    said = capsys.readouterr().out
    assert "\x1b[2K" in said and "[red] [/b]" in said  # rich's own codes pass, a stranger's do not
    assert "\x07" not in said and "\x9b" not in said


def test_an_error_is_a_few_lines(capsys):
    terminal.complain("\n\n".join(f"{i} \x1b[2J" for i in range(20)), "hint")
    terminal.complain("a" * 10_000)
    terminal.complain("")
    lines = capsys.readouterr().err.splitlines()
    assert lines[:5] == ["error: 0  [2J", "1  [2J", "2  [2J", "...", "hint"]
    assert len(lines[5]) < 500 and lines[6] == "error: str"


def test_warnings_and_logs_are_shown_as_they_are(capsys, monkeypatch):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    monkeypatch.setattr(logging, "lastResort", vars(logging)["_StderrHandler"](logging.WARNING))
    terminal.set_up_output()
    shown = warnings.formatwarning(BAD, UserWarning, "a.py", 1, "")
    assert shown.endswith(f"{SHOWN}\n")
    logging.lastResort.handle(logging.LogRecord("", logging.WARNING, "a.py", 1, "%s", (BAD,), None))
    assert capsys.readouterr().err == f"{SHOWN}\n"


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (KeyError("file"), "error: what was read holds no 'file', which is needed here"),
        (KeyError(101), "error: what was read holds no 101, which is needed here"),
        (KeyError("no such condition"), "error: no such condition"),
        (ValueError(), "error: ValueError"),
        (MemoryError(), "error: there is not enough memory for this"),
        (
            RuntimeError("CUDA out of memory. Tried"),
            "error: there is not enough memory for this (CUDA out of memory. Tried)",
        ),
        (OSError(28, "No space left on device", "a\x1b[2J"), "No space left on device: 'a\\x1b[2J'"),
    ],
)
def test_every_error_says_something(monkeypatch, capsys, error, says):
    def fail(args, plugins):
        raise error

    monkeypatch.setitem(COMMANDS, "demo", fail)
    assert main(["demo"]) == 1
    assert says in capsys.readouterr().err


def test_an_error_of_our_own_making_keeps_its_traceback(monkeypatch):
    def fail(args, plugins):
        raise RuntimeError("a mistake in the program")

    monkeypatch.setitem(COMMANDS, "demo", fail)
    with pytest.raises(RuntimeError, match="a mistake"):
        main(["demo"])


def test_a_text_that_is_printable_stays():
    assert printable("é 日本 ✓ [b]") == "é 日本 ✓ [b]"


@pytest.mark.parametrize("names", ["nosuch", "nosuch.part", ".", ".here", "a..b", "[red]", "os,nosuch", "\udcff"])
def test_plugins_that_are_not_there_are_named_by_every_command(capsys, monkeypatch, names):
    monkeypatch.setenv("COMPOSER_PLUGINS", "")
    assert main(["--plugins", names, "decomposers"]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: --plugins names {printable(names.split(',')[-1])}, which is neither")
