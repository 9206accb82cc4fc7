"""The scripts for SLURM, with stand-ins for its commands."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from composer.commands.data import prepare
from composer.commands.signature import Parser

SCRIPTS = Path(__file__).parents[1] / "scripts" / "slurm"

SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
COMPOSER = """#!/bin/bash
trap 'sleep 0.3; echo saved >> saved; exit 138' USR1 TERM
printf '%s\\n' "$@" > words
[ -e quick ] && exit 3
while true; do sleep 0.05; done
"""
SCONTROL = """#!/bin/bash
cat saved > requeued; echo "$@" >> requeued
"""
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_NTASKS_PER_NODE": "8",
    "SLURM_CPUS_PER_TASK": "4",
    "SLURM_ARRAY_JOB_ID": "5",
    "SLURM_ARRAY_TASK_ID": "12",
    "SLURM_ARRAY_TASK_MIN": "10",
    "SLURM_ARRAY_TASK_COUNT": "4",
}


@pytest.fixture
def submit(tmp_path):
    for name, text in {"srun": SRUN, "composer": COMPOSER, "scontrol": SCONTROL}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def start(script, *words):
        subprocess.run(["bash", "-n", SCRIPTS / script], check=True)
        path = f"{tmp_path}:{os.environ['PATH']}"
        command = ["bash", SCRIPTS / script, *words]
        return subprocess.Popen(command, cwd=tmp_path, env=os.environ | SLURM | {"PATH": path})

    return start


def words_of(folder):
    while not (folder / "words").exists() or not (folder / "words").read_text():
        time.sleep(0.02)
    return (folder / "words").read_text().split()


@pytest.mark.parametrize(("script", "job"), [("fit.sbatch", "7"), ("prepare.sbatch", "5_12")])
def test_a_job_whose_time_is_up_is_queued_again_once_all_is_saved(submit, tmp_path, script, job):
    process = submit(script, "photos", "--size", "64", "--out", "shards")
    words_of(tmp_path)
    process.send_signal(signal.SIGUSR1)
    process.wait(timeout=20)
    assert (tmp_path / "requeued").read_text().split() == ["saved", "requeue", job]


def test_a_job_that_fails_is_not_queued_again(submit, tmp_path):
    (tmp_path / "quick").touch()
    assert submit("fit.sbatch", "-c", "tiny").wait(timeout=20) == 3
    devices = ["--trainer.num_nodes", "2", "--trainer.devices", "8"]
    assert words_of(tmp_path) == ["fit", "-c", "tiny", "--ckpt_path", "last", *devices]
    assert not (tmp_path / "requeued").exists()


def test_each_job_of_an_array_prepares_its_part(submit, tmp_path):
    (tmp_path / "quick").touch()
    assert submit("prepare.sbatch", "photos", "--size", "64", "--out", "shards").wait(timeout=20) == 3
    command, *words = words_of(tmp_path)
    given = Parser.of(prepare, command).read(words)
    assert command == "prepare" and given["part"] == (3, 4) and given["workers"] == 4
