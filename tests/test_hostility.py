"""The harness for hostile input: it lets through what keeps the promises, and finds a breach of each."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hostility import run


def say(text, status=1):
    print(text, file=sys.stderr)
    return status


@pytest.fixture
def place(tmp_path):
    (tmp_path / "kept.txt").write_text("kept")
    return tmp_path / "out"


def write_inside():
    Path("deep").mkdir()
    Path("deep/a.txt").write_text("a")
    Path("deep/a.txt").rename("b.txt")
    shutil.rmtree("deep")
    Path("b.txt").unlink()
    return 0


@pytest.mark.parametrize(
    "does",
    [
        lambda: 0,
        lambda: say("note: so\nerror: what was found\nwhat to do"),
        lambda: sys.exit(0),
        lambda: Path("../kept.txt").read_text() and 0,
        write_inside,
    ],
)
def test_what_keeps_the_promises_passes(place, does):
    outcome = run(["words"], place, seconds=20, call=lambda words: does())
    assert not outcome.broken, outcome


def loop():
    while True:
        pass


def swallow():
    try:
        Path("../a").write_text("a")
    except Exception:
        return 0


def link_out():
    Path("link").symlink_to(Path("../kept.txt").resolve())
    Path("link").write_text("a")


BREACHES = {
    "traceback": lambda: {"a": 1}["missing"],
    "traceback was printed": lambda: say("error: a\nTraceback (most recent call last)"),
    "control characters": lambda: say("error: \x1b[31mred"),
    r"control characters: \[.*202e": lambda: print("\u202egnp.exe"),
    "error of 6 lines": lambda: say("error: 1\n2\n3\n4\n5\n6"),
    "error of 1 lines, 3": lambda: say("error: " + "a" * 3000),
    "says nothing": lambda: say("error: "),
    "exit 1 with 0 errors": lambda: 1,
    "exit 1 with 2 errors": lambda: say("error: a\nerror: b"),
    "UnicodeEncodeError": lambda: print("\udcff"),
    "open outside": swallow,
    "open outside.*kept": link_out,
    "open outside.*c": lambda: os.open("../c", os.O_CREAT),
    "os.mkdir outside": lambda: Path("../a").mkdir(),
    "os.rename outside": lambda: Path("../kept.txt").rename("mine.txt"),
    "os.remove outside": lambda: Path("../kept.txt").unlink(),
    "os.link outside": lambda: os.link("../kept.txt", "../more.txt"),
    "os.symlink outside": lambda: Path("../link").symlink_to("kept.txt"),
    "started a program": lambda: subprocess.run(["true"]),
    "program: .*echo": lambda: os.system("echo"),
    "went to the network: socket.connect": lambda: socket.socket().connect(("127.0.0.1", 9)),
    "went to the network: socket.getaddrinfo": lambda: socket.getaddrinfo("localhost", 80),
    "asked a question": lambda: input("run it? [y/N]"),
    "took longer than 1 s": loop,
}


@pytest.mark.parametrize("says", BREACHES)
def test_each_breach_is_found_and_not_done(place, says):
    outcome = run(["words"], place, seconds=1, call=lambda words: BREACHES[says]() or 0)
    assert outcome.broken
    with pytest.raises(AssertionError, match=f"(?s){says}"):
        assert not outcome.broken, outcome
    assert (place.parent / "kept.txt").read_text() == "kept"
    assert {path.name for path in place.parent.iterdir()} == {"kept.txt", "out"}


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured on Linux alone")
def test_memory_is_measured_and_kept_from_running_away(place):
    outcome = run([], place, megabytes=200, call=lambda words: len(b"a" * 300_000_000) and 0)
    assert "took " in outcome.broken[0], outcome
    outcome = run([], place, megabytes=200, call=lambda words: len(b"a" * 40_000_000_000))
    assert "MemoryError" in outcome.broken[0], outcome
    assert not run([], place, megabytes=200, call=lambda words: 0).broken


def test_what_passes_by_python_is_found_afterwards(place):
    import numpy as np

    kept = np.memmap(place.parent / "kept.txt", np.uint8, "r+")  # opened before: writing to it raises no event

    def call(words):
        kept[0] = 65
        kept.flush()
        os.utime(place.parent / "kept.txt")
        return 0

    assert "changed outside" in run([], place, call=call).broken[0]


def test_a_real_command_passes_and_the_process_is_as_before(place):
    path, environment = sys.path[:], dict(os.environ)
    for words in (["--help"], ["nonsense"], ["compose", "--steps", "many"]):
        outcome = run(words, place)
        assert not outcome.broken, outcome
    assert (sys.path, dict(os.environ)) == (path, environment)
