"""A page's server on the tiny model of all conditions."""

import io
import json
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from composer.commands.boards import BoardPainter
from composer.commands.groups import ModelOptions
from composer.page.server import Server, make_app

TOKEN, PORT = "right-token", 8311
HERE = f"http://127.0.0.1:{PORT}"


def png(pixels, **how):
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG", **how)
    return data.getvalue()


def pixels_of(data):
    return np.array(Image.open(io.BytesIO(data)))


def noise(seed, height=40, width=50):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


class Page:
    """A browser's side of the server."""

    def __init__(self, server, client):
        self.server, self.client = server, client

    def post(self, path, status=200, **how) -> Any:
        answer = self.client.post(f"/api/{path}", **how)
        assert answer.status_code == status, answer.text
        return answer.json()

    def get(self, path, status=200) -> Any:
        answer = self.client.get(path if path.startswith("/") else f"/api/{path}")
        assert answer.status_code == status, answer.text
        return answer

    def give(self, pixels, name="a.png"):
        return self.post(
            "pictures", params={"name": name}, content=pixels if isinstance(pixels, bytes) else png(pixels)
        )

    def mask(self, pixels):
        return self.post("masks", content=png(pixels))["id"]

    def start(self, **board):
        return self.post("jobs", json={"steps": 2, **board})["id"]

    def events(self, job):
        """All events of a request, until its end."""
        lines = self.get(f"jobs/{job}/events").text.splitlines()
        kinds = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
        data = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
        return list(zip(kinds, data, strict=True))

    def wait(self, job):
        """The request, once it has ended."""
        for _ in range(6000):
            found = next(one for one in self.get("jobs").json() if one["id"] == job)
            if found["state"] not in ("queued", "drawing"):
                return found
            time.sleep(0.01)
        raise AssertionError("it does not end")

    def draw(self, **board):
        """The pictures of a board, once they are there: what is told of each, and its pixels."""
        done = self.wait(self.start(**board))
        assert done["state"] == "done", self.events(done["id"])
        return [SimpleNamespace(**one, data=self.get(one["url"]).content) for one in done["pictures"]]


@pytest.fixture
def make_page(tmp_path):
    """Makes pages of models."""
    made = []

    def make(model, folder, out=None):
        painter = BoardPainter(model, ModelOptions(model=str(folder)), (), out)
        server = Server(painter, tmp_path / f"page{len(made)}")
        made.append(server)
        client = TestClient(make_app(server, TOKEN, PORT), base_url=HERE, headers={"X-Token": TOKEN})
        return Page(server, client)

    yield make
    for server in made:
        server.close()


@pytest.fixture
def page(make_page, eight, eight_folder):
    return make_page(eight, eight_folder)
