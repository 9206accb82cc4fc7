"""Processes that are killed while they write leave what stood there or what they wrote, and nothing for good.

COMPOSER_KILLS is the number of random kills (default 20).
"""

import os
import random
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from composer.cascade.cascade import Cascade
from composer.storage import files
from composer.storage.files import finish_replacing, remove_abandoned, replacing, replacing_all, reserved
from composer.storage.folder import read_model, write_model

KILLS = int(os.environ.get("COMPOSER_KILLS", "20"))
FILES = Path(files.__file__)


HEAD = """
import os, runpy, sys, time
from pathlib import Path
globals().update(runpy.run_path(sys.argv[1]))
"""


def script(code, *args, **kwargs):
    """A process that has the functions of `composer/storage/files.py` at hand, which needs no other module."""
    return subprocess.Popen([sys.executable, "-c", HEAD + code, str(FILES), *map(str, args)], **kwargs)


def killed(text, *args):
    """A process that says so and is killed then."""
    process = script(text + "\nprint('here', flush=True)\ntime.sleep(60)", *args, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "here\n"
    return process


def kill(process):
    process.kill()
    process.wait()
    process.stdout.close()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_next_process_removes_what_a_killed_one_left(tmp_path):
    file = "block = replacing(Path(sys.argv[2]) / 'last.ckpt')\nblock.__enter__().write(bytes(1000))"
    folder = "block = replacing_all(Path(sys.argv[2]))\n(block.__enter__() / 'a').write_bytes(bytes(1000))"
    dead, living = (
        [killed(text, tmp_path) for text in (file, folder)],
        [killed(text, tmp_path) for text in (file, folder)],
    )
    left = names(tmp_path)
    assert len(left) == 4
    theirs = {".last.ckpt.backup00", ".last.ckpt.x", "last.ckpt.abcdefgh.composer", ".composer"}
    for name in theirs:
        (tmp_path / name).write_text("a person's")
    (tmp_path / ".x.abcdefgh.composer").symlink_to(tmp_path / ".composer")
    os.mkfifo(tmp_path / ".y.abcdefgh.composer")
    theirs |= {".x.abcdefgh.composer", ".y.abcdefgh.composer"}
    remove_abandoned(tmp_path)
    assert names(tmp_path) == sorted({*left, *theirs})
    for process in dead:
        kill(process)
    remove_abandoned(tmp_path)
    assert len(names(tmp_path)) == 2 + len(theirs)
    for process in living:
        kill(process)
    assert script("with replacing(Path(sys.argv[2]) / 'last.ckpt') as file: file.write(b'new')", tmp_path).wait() == 0
    assert names(tmp_path) == sorted({"last.ckpt", *theirs})


def test_reserved_names_are_free_after_a_kill(tmp_path):
    (tmp_path / "c.png").touch()  # a person's
    process = killed(
        "block = reserved(Path(sys.argv[2]), ['a.png', 'b.png'])\nblock.__enter__()[0].write_text('x')", tmp_path
    )
    assert [path.name for path in tmp_path.glob("*.png")] != []
    kill(process)
    for i, listed in enumerate((b"", b"..\0../x\0", b"\xff\0[")):
        (tmp_path / f".reserved.abcdefg{i}.composer").write_bytes(listed)
    remove_abandoned(tmp_path)
    assert names(tmp_path) == ["a.png", "c.png"]
    with reserved(tmp_path, ["b.png"]) as paths:
        assert [path.name for path in paths] == ["b.png"]


REPLACE = """
left = int(sys.argv[3])
def stop(event, args):
    global left
    if event.split(".")[0] in ("os", "shutil", "tempfile") or event == "open":
        left -= 1
        if left < 0:
            os._exit(9)
sys.addaudithook(stop)
with replacing_all(Path(sys.argv[2])) as new:
    (new / "in").mkdir()
    for name in ("a", "b", "in/c"):
        write_atomically(new / name, b"new")
"""


def test_a_folder_is_replaced_entirely_or_not_at_all(tmp_path):
    """Stopped at each single thing that it asks of the system, one after the other."""
    outcomes = []
    for step in range(1000):
        folder = tmp_path / str(step)
        (folder / "in").mkdir(parents=True)
        for name in ("a", "b", "in/c", "mine"):
            (folder / name).write_text("old")
        status = script(REPLACE, folder, step).wait()
        finish_replacing(folder)
        found = {name: (folder / name).read_text() for name in ("a", "b", "in/c")}
        assert len({*found.values()}) == 1 and (folder / "mine").read_text() == "old"
        outcomes.append(found["a"])
        remove_abandoned(folder)
        assert names(folder) == ["a", "b", "in", "mine"] and names(folder / "in") == ["c"]
        if status == 0:
            break
        assert status == 9
    assert outcomes == sorted(outcomes, reverse=True) and outcomes.count("new") > 3 < outcomes.count("old")


SAVE = """
import os, sys
from pathlib import Path
import torch
from composer.storage import write_model
folder, n = Path(sys.argv[1]), 0
for _ in sys.stdin:  # each line asks for another process, forked so that PyTorch is imported once
    n += 1000
    if child := os.fork():
        print(child, flush=True)
        os.waitpid(child, 0)
        print("gone", flush=True)
        continue
    while True:
        n += 1
        weights = {f"{part}.safetensors": {"w": torch.full((20_000,), float(n))} for part in ("base", "up")}
        stage = {"size": 8, "denoiser": {"class_path": "composer.Denoiser"}, "conditions": {}}
        stages = [{**stage, "file": name} for name in weights]
        write_model(folder, {"name": str(n), "stages": stages}, weights, f"# {n}")
"""


def test_a_killed_save_leaves_a_model_that_can_be_read(tmp_path):
    folder, chance, seen = tmp_path / "model", random.Random(), set()
    (folder / "words").mkdir(parents=True)
    (folder / "words" / "words.txt").write_text("a person's")
    begun = time.monotonic()
    write_model(folder, {"name": "1", "stages": []}, {}, "# 1")
    write_model(folder, {"name": "1", "stages": []}, {}, "# 1")
    one = time.monotonic() - begun  # of a save of that size, about
    words, pipe = [sys.executable, "-c", SAVE, str(folder)], subprocess.PIPE
    with subprocess.Popen(
        words, stdin=pipe, stdout=pipe, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    ) as server:
        for _ in range(KILLS):
            print("next", file=server.stdin, flush=True)
            child = int(server.stdout.readline())
            time.sleep(chance.random() * 4 * one)
            os.kill(child, signal.SIGKILL)
            assert server.stdout.readline() == "gone\n"
            config, weights, _ = read_model(folder)
            values = {int(tensors["w"].unique().item()) for tensors in weights.values()} or {1}  # the first has none
            assert values == {int(config["name"])} and (folder / "README.md").read_text() == f"# {config['name']}"
            seen |= values
        server.stdin.close()
    assert len(seen) > KILLS / 4 and (folder / "words" / "words.txt").read_text() == "a person's"
    remove_abandoned(folder)
    assert not [name for name in names(folder) if name.startswith(".")]


def test_a_model_of_a_stranger_writes_nowhere_else(saved, tmp_path):
    """As a folder that stopped amid a replacement would."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (saved / "link").symlink_to(outside)
    complete = saved / files.COMPLETE
    (complete / "link").mkdir(parents=True)
    (complete / "link" / ".bashrc").write_text("hostile")
    with pytest.raises(ValueError, match="does not belong to"):
        Cascade.load(saved)
    assert names(outside) == []


def test_an_export_that_fails_leaves_nothing(tmp_path):
    for folder in (tmp_path / "new", tmp_path / "old"):
        with pytest.raises(RuntimeError), replacing_all(folder) as new:
            (new / "a").write_text("half")
            raise RuntimeError
        (tmp_path / "old").mkdir(exist_ok=True)
    assert names(tmp_path) == ["old"] and names(tmp_path / "old") == []


def test_a_saved_model_keeps_the_card_and_files_of_a_person(cascade, saved):
    (saved / "README.md").write_text("my own words")
    (saved / "notes.txt").write_text("mine")
    cascade.save(saved)
    assert (saved / "README.md").read_text() == "my own words" and (saved / "notes.txt").read_text() == "mine"
    Cascade.load(saved)
    cascade.save(saved, "# new\n")
    assert (saved / "README.md").read_text() == "# new\n"


def test_what_is_replaced_may_be_kept(tmp_path):
    for text in ("one", "two", "three"):
        with replacing(tmp_path / "a", keep=tmp_path / "b") as file:
            file.write(text.encode())
    assert (tmp_path / "a").read_text() == "three" and (tmp_path / "b").read_text() == "two"
    assert runpy.run_path(str(FILES))["COMPLETE"] == files.COMPLETE
