"""Checkpoints whose bytes are checked, the one before in a damaged one's place, and one training at a time."""

import logging
import os
import random
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from composer.__main__ import main
from composer.training import callbacks, locking
from composer.training import checkpoint as checkpoints
from composer.training.callbacks import EMA, Checkpoints
from composer.training.checkpoint import LAST, PREVIOUS
from tests.training.test_training import Spy, data, interruptible, same, stage, trainer, weights  # noqa: F401, a fixture

pytestmark = pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have", "ignore:.*LeafSpec:FutureWarning")


def flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


@pytest.fixture
def path(tmp_path):
    checkpoints.save({"state_dict": {"w": torch.randn(5000), "n": torch.tensor(1)}, "global_step": 3}, tmp_path / "x")
    return tmp_path / "x"


def test_every_flipped_bit_is_found(path):
    """At 150 random places, and at each of the seal and of the archive's last record."""
    whole = path.read_bytes()
    chance, bits = random.Random(0), 8 * len(whole)
    places = [chance.randrange(bits) for _ in range(150)] + [*range(bits - 8 * 110, bits, 3), *range(32)]
    for bit in places:
        flip(path, bit)
        with pytest.raises(ValueError, match="damaged"):
            checkpoints.load(path)
        path.write_bytes(whole)
    for end in (0, 1, 22, len(whole) - 81, len(whole) - 80, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match="damaged" if end > 1 else "damaged|pickled"):
            checkpoints.load(path)
    path.write_bytes(whole)
    assert checkpoints.load(path)["global_step"] == 3 and zipfile.ZipFile(path).testzip() is None
    assert torch.load(path, weights_only=True)["state_dict"]["w"].shape == (5000,)  # without us, too


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured by /proc")
def test_a_checkpoint_takes_no_memory_of_its_own(tmp_path):
    def taken():
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(lines["RssAnon"].split()[0]) / 1024

    values = torch.randn(1 << 24)  # 64 MiB
    checkpoints.save({"state_dict": {"w": values}}, tmp_path / "x.ckpt")
    before = taken()
    checkpoint = checkpoints.load(tmp_path / "x.ckpt")
    assert torch.equal(checkpoint["state_dict"]["w"], values) and taken() - before < 16
    checkpoint["state_dict"]["w"].zero_()  # the file stays as it is
    assert torch.equal(checkpoints.load(tmp_path / "x.ckpt")["state_dict"]["w"], values)


def test_checkpoints_without_a_hash_are_read_with_a_word(tmp_path, caplog):
    path = tmp_path / "old.ckpt"
    torch.save({"state_dict": {"w": torch.zeros(5000)}}, path)
    assert checkpoints.load(path)["state_dict"]["w"].shape == (5000,)
    assert "old.ckpt has no SHA-256" in caplog.text
    whole = path.read_bytes()
    place = whole.index(bytes(20_000)) * 8
    for _ in range(20):
        flip(path, place + random.randrange(160_000))
        with pytest.raises(ValueError, match="damaged"):
            checkpoints.load(path)
        path.write_bytes(whole)


def test_a_bomb_is_not_unpacked(tmp_path):
    path = tmp_path / "bomb.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10_000_000))
    with pytest.raises(ValueError, match="damaged"):
        checkpoints.load(path)


@pytest.mark.parametrize("how", ["flipped", "missing"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before_and_the_run_ends_the_same(tmp_path, how, caplog):
    whole, broken, resumed = stage(), stage(), stage(seed=0)
    average, again = EMA(0.9), EMA(0.9)
    trainer(tmp_path / "whole", average, max_steps=7).fit(whole, data())
    trainer(tmp_path, EMA(0.9), Checkpoints(2), max_steps=4).fit(broken, data())
    last = tmp_path / "checkpoints" / LAST
    before = last.with_name(PREVIOUS)
    assert [checkpoints.load(path)["global_step"] for path in (last, before)] == [4, 2]
    good = before.read_bytes()
    if how == "flipped":
        flip(last, 8 * last.stat().st_size // 2)
    else:
        last.unlink()
    caplog.set_level(logging.WARNING)
    assert checkpoints.load(last)["global_step"] == 2
    assert f"taking the one before: {before}, of step 2" in caplog.text

    def check(trainer, model):
        if trainer.global_step == 5:  # after the first save, at step 4: what is damaged is not kept
            assert before.read_bytes() == good and checkpoints.is_sound(last)

    trainer(tmp_path, Spy(train=check), again, Checkpoints(2), max_steps=7).fit(resumed, data(), ckpt_path=last)
    assert same(weights(whole), weights(resumed)) and same(average.shadow, again.shadow)
    assert [checkpoints.load(path)["global_step"] for path in (last, before)] == [7, 6]
    for path in (last, before):
        flip(path, 8 * 5000)
    with pytest.raises(ValueError, match=rf"{LAST} is damaged.*{PREVIOUS} is damaged"):
        checkpoints.load(last)


# Signals


@pytest.fixture
def listening(interruptible):  # noqa: F811
    """Puts the handlers back as they were, which Lightning does not, and the output, of which SIGHUP may let go."""
    before, outputs = {number: signal.getsignal(number) for number in callbacks.SIGNALS}, [os.dup(1), os.dup(2)]
    yield
    for handle, output in enumerate(outputs, 1):
        os.dup2(output, handle)
        os.close(output)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("listening")
@pytest.mark.parametrize("slurm", [False, True])
@pytest.mark.parametrize(("names", "status"), [(["SIGUSR1"], 138), (["SIGHUP"], 129), (["SIGINT", "SIGINT"], 130)])
def test_signals_save(tmp_path, names, status, slurm, monkeypatch):
    """Also where Lightning has its own way with SLURM's."""
    if slurm:
        for key in ("NTASKS", "JOB_ID"):
            monkeypatch.setenv(f"SLURM_{key}", "1")
        for key in ("PROCID", "LOCALID", "NODEID"):
            monkeypatch.setenv(f"SLURM_{key}", "0")
        monkeypatch.setenv("SLURM_JOB_NAME", "x")
        monkeypatch.setattr(subprocess, "call", lambda *args, **kwargs: pytest.fail("queued by Lightning"))

    def send(trainer, model):
        if trainer.global_step == 2:
            for name in names:
                os.kill(os.getpid(), getattr(signal, name))

    with pytest.raises(SystemExit) as exit:
        trainer(tmp_path, Spy(train=send), Checkpoints(100), max_steps=5).fit(stage(), data())
    assert exit.value.code == status and [path.name for path in tmp_path.iterdir()] == ["checkpoints"]
    assert checkpoints.load(tmp_path / "checkpoints" / LAST)["global_step"] == 2


@pytest.mark.usefixtures("listening")
def test_a_later_second_interrupt_ends_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(callbacks, "QUICK", -1.0)
    callback = Checkpoints(100)

    def send(trainer, model):
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        callback._signal = 0

    trainer(tmp_path, Spy(train=send), callback, max_steps=1).fit(stage(), data())


@pytest.mark.usefixtures("listening")
def test_nohup_is_respected(tmp_path):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    send = Spy(train=lambda trainer, model: os.kill(os.getpid(), signal.SIGHUP))
    trainer(tmp_path, send, Checkpoints(100), max_steps=3).fit(stage(), data())
    assert checkpoints.load(tmp_path / "checkpoints" / LAST)["global_step"] == 3


HANGUP = """
import os, signal, sys
from composer.callbacks import Checkpoints
print("here", flush=True)
sys.stdin.readline()
for output in sys.argv[1:]:
    if not os.fork():
        os.dup2(int(output), 2)
        callback = Checkpoints()
        callback._speaks = True
        callback._listen()
        print("before", file=sys.stderr, flush=True)
        open(0, closefd=False).readline()
        os.kill(os.getpid(), signal.SIGHUP)
        print("after", file=sys.stderr, flush=True)
        os._exit(callback._signal)
for output in sys.argv[1:]:
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""


def test_after_a_hangup_words_do_no_harm(tmp_path):
    """The process writes to a terminal and a pipe that were closed, and to a file as ever."""
    file, (screen, terminal), (reader, pipe) = tmp_path / "said", os.openpty(), os.pipe()
    outputs = [os.open(file, os.O_WRONLY | os.O_CREAT), terminal, pipe]
    words = [sys.executable, "-c", HANGUP, *map(str, outputs)]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=outputs)
    for handle in outputs:
        os.close(handle)
    assert process.stdout.readline() == b"here\n"
    process.stdin.write(b"\n")
    process.stdin.flush()
    assert os.read(screen, 100).startswith(b"before") and os.read(reader, 100).startswith(b"before")
    os.close(screen)
    os.close(reader)
    said, _ = process.communicate(b"\n\n\n")
    assert said.split() == [b"%d" % signal.SIGHUP] * 3
    assert file.read_text() == "before\n\nSIGHUP: saving after this step\nafter\n"


# Two trainings in one folder

HOLDER = """
import os, runpy, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from composer.locking import lock_folder
with lock_folder(Path(sys.argv[2])):
    if os.fork() == 0:  # a worker of the data loader, which outlives its parent for a while
        time.sleep(3)
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_training_is_refused_until_the_first_is_gone(tmp_path, capsys, monkeypatch):
    root = tmp_path / "run"
    words = [sys.executable, "-c", HOLDER, os.path.dirname(os.path.dirname(locking.__file__)), str(root)]  # noqa: PTH120
    holder = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    (root / "config.yaml").write_text("the first one's")
    monkeypatch.setattr(sys, "argv", ["composer"])
    assert main(["fit", "-c", "configs/tiny.yaml", f"--trainer.default_root_dir={root}"]) == 1
    said = capsys.readouterr().err
    assert f"a training writes to {root} already: process {holder.pid} on " in said and said.count("\n") <= 3
    assert (root / "config.yaml").read_text() == "the first one's" and (root / ".lock").is_file()
    holder.kill()
    holder.wait()
    with locking.lock_folder(root):
        assert str(os.getpid()) in (root / ".lock").read_text()
    holder.stdout.close()
    assert [path.name for path in root.iterdir()] == ["config.yaml"]


def test_a_lock_is_no_way_to_another_file(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / ".lock").symlink_to(tmp_path / "mine")
    with pytest.raises(OSError), locking.lock_folder(tmp_path):
        pytest.fail("it follows links")
    assert (tmp_path / "mine").read_text() == "mine"


def test_without_locks_it_goes_on_with_a_word(tmp_path, monkeypatch, caplog):
    def refuse(handle):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(locking, "_lock", refuse)
    with locking.lock_folder(tmp_path / "run"):
        assert "No locks available" in caplog.text
    assert not (tmp_path / "run").exists()
