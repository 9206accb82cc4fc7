"""``composer page``, started as a user starts it."""

import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from composer.__main__ import main


@pytest.fixture
def address(eight_folder, tmp_path):
    """A running page's address, and its process."""
    command = [sys.executable, "-m", "composer", "page", "--no-browser", "--model", str(eight_folder)]
    environment = {"PATH": "", "TMPDIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as ran:
        limit = threading.Timer(120, ran.kill)
        limit.start()
        assert ran.stdout is not None
        yield ran.stdout.readline().removeprefix("open ").strip(), ran
        limit.cancel()
        ran.kill()


def test_it_says_its_address_streams_events_and_leaves_nothing(address, tmp_path):
    opened, ran = address
    base, _, token = opened.partition("/?token=")
    assert base.startswith("http://127.0.0.1:") and len(token) >= 32, opened
    with httpx.Client(base_url=base, headers={"X-Token": token}, timeout=60) as client:
        assert client.get("/").status_code == 200 and client.get("/api/model").json()["name"] == "eight"
        assert httpx.get(f"{base}/api/model").status_code == 403
        board = {"task": "compose", "parts": [{"condition": "palette", "text": "#aa3311"}], "steps": 2}
        with client.stream("GET", f"/api/events?token={token}") as events:
            job = client.post("/api/jobs", json=board).json()["id"]
            told = []
            for line in events.iter_lines():
                told += [line.removeprefix("event: ")] if line.startswith("event: ") else []
                if "done" in told:
                    break
            assert told[0] == "queued" and told[-2:] == ["picture", "done"]
            assert client.get("/api/jobs").json()[0]["id"] == job
            assert len(list(tmp_path.glob("composer-page-*"))) == 1
            ran.send_signal(signal.SIGTERM)  # the stream is still open
            assert ran.wait() == 0
    assert not list(tmp_path.glob("composer-page-*"))
    assert ran.stdout.read().splitlines() == ["Ctrl-C ends it", "ended"]


def test_without_its_extra_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["page", "--no-browser"]) == 1
    assert "pip install 'composer-diffusion[page]'" in capsys.readouterr().err


def test_a_port_that_is_taken_is_said_at_once(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        before = signal.getsignal(signal.SIGTERM)
        try:
            assert main(["page", "--no-browser", "--port", str(taken.getsockname()[1])]) == 1
        finally:
            signal.signal(signal.SIGTERM, before)
    assert "in use" in capsys.readouterr().err
