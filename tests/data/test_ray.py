"""Preparation by the processes of a local Ray: the same shards, though one of the processes is killed."""

import sys

import pytest

from composer.__main__ import main
from tests.data.test_shards import contents, photos  # noqa: F401

ray = pytest.importorskip("ray")

FATAL = """
import os, signal
from pathlib import Path
from decomposers import Palette

class Fatal(Palette):
    def forward(self, batch):
        with Path("processes").open("a") as file:
            print(os.getpid(), file=file)
        if "number 4" in batch["caption"] and not Path("killed").exists():
            Path("killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(batch)
"""


@pytest.fixture
def two_processes():
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_a_killed_process_of_ray_is_replaced_and_the_shards_are_the_same(photos, tmp_path, monkeypatch, two_processes):  # noqa: F811
    (tmp_path / "fatal.py").write_text(FATAL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    args = ["prepare", "photos", "--size", "64", "--shard", "2", "--workers", "1", "-c", "tiny", "--names", "palette"]
    args += ["--plugins", "fatal", "--data.decomposers", "{palette: {class_path: fatal.Fatal}}"]
    (tmp_path / "killed").touch()  # nobody dies here
    assert main([*args, "--out", "here"]) == 0
    for name in ("killed", "processes"):
        (tmp_path / name).unlink()
    assert main([*args, "--out", "there", "--engine", "ray"]) == 0
    assert (tmp_path / "killed").exists()
    assert len(set((tmp_path / "processes").read_text().split())) >= 2  # the one that was killed, and another
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    manifests = [(tmp_path / name / "manifest-1-of-1.json").read_bytes() for name in ("here", "there")]
    assert manifests[0] == manifests[1]
    before = (tmp_path / "processes").read_text()
    assert main([*args, "--out", "there", "--engine", "ray"]) == 0  # nothing is left to do
    assert (tmp_path / "processes").read_text() == before
    sys.modules.pop("fatal")
