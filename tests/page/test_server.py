"""The page's server, asked as a browser asks it."""

import shlex
import threading
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from composer.__main__ import main
from composer.cascade.options import SampleOptions
from composer.commands.tasks import TASKS
from composer.page import jobs as queue
from composer.page import server as serving
from composer.page.guard import HEADERS
from composer.page.pictures import plain_name
from composer.page.watching import Watching
from tests.page.conftest import HERE, TOKEN, noise, pixels_of, png

RED = {"condition": "palette", "text": "#aa3311 0.6, #224488 0.4"}


def sketch_of(picture, **how):
    return {"condition": "sketch", "picture": picture["id"], **how}


def test_a_stranger_is_refused(page):
    client, ask = page.client, "/api/model"
    assert client.get(ask).status_code == 200
    assert client.get(ask, headers={"Origin": HERE}).status_code == 200
    assert client.get(ask, params={"token": TOKEN}, headers={"X-Token": ""}).status_code == 200
    wrong: list[dict[str, str]] = [
        {"X-Token": "wrong"},
        {"X-Token": ""},
        {"Origin": "http://example.com"},
        {"Origin": "null"},
    ]
    wrong += [{"Origin": "https://127.0.0.1:8311"}, {"Host": "example.com:8311"}, {"Host": "127.0.0.1:80"}]
    for headers in wrong:
        answer = client.get(ask, headers=headers)
        assert answer.status_code == 403 and "error" in answer.json(), headers
        assert HEADERS.items() <= {k: answer.headers.get(k) for k in HEADERS}.items()
    for path, how in (("/api/jobs", {"json": {"task": "compose"}}), ("/api/pictures", {"content": b"x"})):
        assert client.post(path, headers={"X-Token": "wrong"}, **how).status_code == 403
    assert not page.get("jobs").json()


def test_the_pages_files_need_no_token_and_nothing_else_is_a_file(page):
    answer = page.client.get("/", headers={"X-Token": ""})
    assert answer.status_code == 200 and "<!doctype html>" in answer.text.lower()
    assert "script-src" not in answer.headers["Content-Security-Policy"]  # default-src 'self' holds for scripts, too
    for path in ("/../server.py", "/%2e%2e/server.py", "/..%2fserver.py", "/static/../../server.py"):
        assert page.client.get(path).status_code == 404


def test_the_model_is_described(page, eight):
    found = page.get("model").json()
    assert found["name"] == "eight" and found["identity"] == eight.sha256 and found["sizes"] == [16]
    by = {one["name"]: one for one in found["conditions"]}
    assert list(by) == [name for name in eight.names if name != "mask"]
    assert by["sketch"] | {"from_picture": True, "from_words": False, "spatial": True} == by["sketch"]
    assert by["caption"] | {"from_picture": False, "from_words": True, "spatial": False} == by["caption"]
    assert "cube" in found["vocabulary"] and not found["objects"]
    assert found["defaults"] == {"steps": 4, "guidance": 2.0}


def test_a_picture_is_taken_apart_into_tiles(page, eight):
    found = page.give(noise(0), "holiday.png")
    assert (found["width"], found["height"], found["name"]) == (50, 40, "holiday.png")
    tiles = {tile["condition"]: tile for tile in found["tiles"]}
    assert set(tiles) == set(eight.names) - {"mask", "caption"} and found["board"] is None and found["notes"] == []
    for tile in tiles.values():
        assert pixels_of(page.get(tile["url"]).content).shape[2] == 3
    assert pixels_of(page.get(found["thumb"]).content).shape == (40, 50, 3)
    words = tiles["palette"]["words"]
    assert page.post("words", json={"condition": "palette", "text": words})["error"] is None
    assert (pixels_of(page.get(found["url"]).content) == noise(0)).all()
    assert [one["id"] for one in page.get("pictures").json()] == [found["id"]]
    assert page.give(noise(0), "holiday.png")["id"] == found["id"] != page.give(noise(0), "b.png")["id"]


def test_a_picture_is_shown_upright_as_it_is_edited(page):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    found = page.give(png(noise(1, 40, 60), exif=exif))
    assert (found["width"], found["height"]) == (40, 60)
    assert (pixels_of(page.get(found["url"]).content) == np.rot90(noise(1, 40, 60), -1)).all()


def test_samples_come_as_pictures(page):
    names = [one["name"] for one in page.get("samples").json()]
    assert page.post(f"samples/{names[0]}")["width"] == 256
    assert "no sample" in page.post("samples/none", status=404)["error"]


def test_words_that_the_model_does_not_know_are_named(page):
    found = page.post("words", json={"condition": "caption", "text": "a red cube on xyzzy"})
    assert found["unknown"] == ["xyzzy"] and found["url"].startswith("data:image/") and found["error"] is None
    assert "#aa3311" in page.post("words", json={"condition": "palette", "text": "red"})["error"]
    assert "no condition" in page.post("words", json={"condition": "smell", "text": "red"}, status=404)["error"]
    page.post("words", json={"condition": 1}, status=400)


def test_a_board_is_drawn_as_the_command_draws_it(page, eight_folder, tmp_path, monkeypatch):
    """The board, its command and its Python give the same pixels."""
    a, b = page.give(noise(0)), page.give(noise(1), "b.png")
    picture: dict[str, Any] = {"picture": a["id"], "parts": [RED]}
    mask = np.zeros((40, 50), np.uint8)
    mask[10:30, 15:40] = 255
    compose = [sketch_of(b, weight=0.6, interval=[0.2, 0.9], place={"box": [0, 0, 0.5, 1]}), RED]
    boards: list[dict[str, Any]] = [
        {"parts": compose, "also": [{"words": "a red cube", "weight": 2}], "never": [{"words": "a ball", "weight": 1}]},
        {"parts": [RED], "away": [{"condition": "caption", "text": "a blue ball"}], "seeds": [1, 2], "guidance": 1.5},
        {"task": "edit", **picture, "region": {"mask": page.mask(mask)}, "keep": ["sketch"], "soften": 3},
        {"task": "outpaint", **picture, "by": [0, 0.25, 0.5, 0]},
        {"task": "vary", **picture, "keep": ["depth"], "seeds": [3], "best_of": 2, "size": [32, 16]},
    ]
    for i, board in enumerate(boards):
        board = {"task": "compose", "steps": 2, **board}
        drawn = [one.data for one in page.draw(**board)]
        written = page.post("command", json=board)
        assert main([*shlex.split(written["command"])[1:], f"--out={tmp_path / f'command{i}'}"]) == 0
        (tmp_path / f"python{i}").mkdir()
        monkeypatch.chdir(tmp_path / f"python{i}")
        exec(written["python"], {})
        for folder in (f"command{i}", f"python{i}"):
            paths = sorted(path for path in (tmp_path / folder).glob("*.png") if "sheet" not in path.name)
            again = [path.read_bytes() for path in paths]
            assert len(again) == len(drawn)
            assert all((pixels_of(x) == pixels_of(y)).all() for x, y in zip(drawn, again, strict=True)), (board, folder)


def test_events_tell_steps_previews_and_pictures_and_each_picture_how_well_it_matches(page):
    a = page.give(noise(0))
    job = page.start(task="compose", parts=[sketch_of(a), RED], seeds=[4, 5], steps=4)
    page.wait(job)
    told = page.events(job)
    assert [kind for kind, _ in told] == ["picture", "picture", "done"]
    for i, (_, data) in enumerate(told[:2]):
        assert data["index"] == i and data["seed"] == 4 + i and data["job"] == job
        assert set(data["closed"]) == set(data["asked"]) == set(data["got"]) == {"sketch", "palette"}
        for url in (*data["asked"].values(), *data["got"].values()):
            assert pixels_of(page.get(url).content).ndim == 3
    whole = [line for line in page.client.get("/api/jobs").json() if line["id"] == job]
    assert len(whole[0]["pictures"]) == 2 and whole[0]["board"]["seeds"] == [4, 5]
    downloaded = page.client.get(f"{told[0][1]['url']}?download=1")
    assert 'filename="compose_seed4.png"' in downloaded.headers["Content-Disposition"]


def test_a_running_request_tells_where_it_is(page, monkeypatch):
    seen = []
    tell = queue.Jobs._tell
    monkeypatch.setattr(
        queue.Jobs, "_tell", lambda self, job, kind, data: seen.append((kind, data)) or tell(self, job, kind, data)
    )
    page.draw(task="compose", parts=[RED], seeds=[0, 1], steps=4)
    previews = [data for kind, data in seen if kind == "preview"]
    assert len(previews) == 4 and all(len(one["urls"]) == 2 and all(one["urls"]) for one in previews)
    assert previews[0]["stage"] == "base" and previews[0]["box"] is None
    assert [kind for kind, _ in seen if kind not in ("step", "preview")] == ["queued", "picture", "picture", "done"]
    seen.clear()
    page.draw(task="compose", parts=[RED], seeds=[0, 1], best_of=2, steps=4)
    shown = [[bool(url) for url in data["urls"]] for kind, data in seen if kind == "preview"]
    assert shown[0] == [True, False] and shown[-1] == [True, True] and len(shown) == 12


def hold(monkeypatch):
    """Makes each step wait until it may go on."""
    going, reached = threading.Event(), threading.Event()
    wrap = Watching.__call__

    def steps(self, numbers):
        for step in wrap(self, numbers):
            reached.set()
            assert going.wait(60)
            yield step

    monkeypatch.setattr(Watching, "__call__", steps)
    return going, reached


def test_cancelling_ends_within_a_step_and_the_queue_goes_on(page, monkeypatch):
    going, reached = hold(monkeypatch)
    first = page.start(task="compose", parts=[RED], steps=50)
    waiting = page.start(task="compose", parts=[RED])
    last = page.start(task="compose", parts=[RED])
    assert reached.wait(60)
    assert page.client.delete(f"/api/jobs/{waiting}").status_code == 200
    assert page.wait(waiting)["state"] == "cancelled" and page.events(waiting) == [("cancelled", {"job": waiting})]
    page.client.delete(f"/api/jobs/{first}")
    calls = []
    denoise = type(page.server.painter.model.stages[0].denoiser).forward
    monkeypatch.setattr(
        type(page.server.painter.model.stages[0].denoiser), "forward", lambda *a: calls.append(1) or denoise(*a)
    )
    going.set()
    assert page.wait(first)["state"] == "cancelled" and page.wait(last)["state"] == "done"
    assert len(calls) <= 1 + 2, "one step of the first, two of the last"
    assert page.wait(first)["pictures"] == []


def test_requests_of_several_tabs_do_not_mix(page):
    colours = ["#ff0000", "#00ff00", "#0000ff", "#ffffff"]
    boards = [{"parts": [{"condition": "palette", "text": colours[i % 4]}], "seeds": [i]} for i in range(6)]
    made: dict[int, str] = {}

    def ask(i):
        made[i] = page.start(task="compose", **boards[i])

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, board in enumerate(boards):
        (one,) = page.wait(made[i])["pictures"]
        (alone,) = page.draw(task="compose", **board)
        assert one["seed"] == i and page.get(one["url"]).content == alone.data
    assert len(page.get("jobs").json()) == 12


def test_one_stream_tells_of_all_requests(page):
    first, second = (page.start(task="compose", parts=[RED], seeds=[seed]) for seed in (0, 1))
    page.wait(second)
    found = page.server.jobs.events(0)
    assert [(one.job, one.kind) for one in found] == [
        (first, "picture"),
        (first, "done"),
        (second, "picture"),
        (second, "done"),
    ]
    assert page.server.jobs.events(found[1].number) == found[2:] and page.server.jobs.events(found[-1].number) == []


def test_a_failure_is_told_and_the_next_request_is_drawn(page, monkeypatch, capsys):
    monkeypatch.setattr("composer.commands.boards.paint", lambda *_: 1 / 0)
    failed = page.wait(page.start(task="compose", parts=[RED]))
    assert failed["state"] == "failed" and "ZeroDivisionError" in page.events(failed["id"])[-1][1]["error"]
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.undo()
    page.draw(task="compose", parts=[RED])


def test_an_edit_keeps_a_large_picture_to_the_last_bit(page):
    large = np.array(Image.fromarray(noise(0, 30, 40)).resize((4000, 3000)))
    mask = np.zeros((3000, 4000), np.uint8)
    mask[1000:1400, 2000:2600] = 255
    given = page.give(png(large, compress_level=1))
    (one,) = page.draw(task="edit", picture=given["id"], region={"mask": page.mask(mask)}, parts=[RED])
    changed = (pixels_of(one.data) != large).any(-1)
    assert changed[mask > 0].mean() > 0.9 and not changed[mask == 0].any()


def test_an_empty_region_says_so(page):
    given, mask = page.give(noise(0)), page.mask(np.zeros((40, 50), np.uint8))
    job = page.wait(page.start(task="edit", picture=given["id"], region={"mask": mask}, parts=[RED]))
    assert "region is empty" in page.events(job["id"])[-1][1]["error"]


WRONG = {
    "nothing": {"task": "compose"},
    "no such task": {"task": "rm"},
    "no task": {},
    "an unknown key": {"task": "compose", "parts": [RED], "out": "/tmp"},
    "no such condition": {"task": "compose", "parts": [{"condition": "smell", "text": "x"}]},
    "a condition twice": {"task": "compose", "parts": [RED, RED]},
    "a file's name as a text": {"task": "compose", "parts": [{"condition": "caption", "text": __file__}]},
    "a recipe as a text": {"task": "compose", "parts": [{"condition": "caption", "text": f"recipe:{__file__}"}]},
    "a file's name as a place": {"task": "compose", "parts": [{"condition": "caption", "text": "a cube:/etc/x.png"}]},
    "a file's name away": {"task": "compose", "parts": [RED], "away": [{"condition": "caption", "text": __file__}]},
    "words for a sketch": {"task": "compose", "parts": [{"condition": "sketch", "text": "a cube"}]},
    "an empty text": {"task": "compose", "parts": [{"condition": "caption", "text": " "}]},
    "a text and a picture": {"task": "compose", "parts": [{**RED, "picture": "0" * 16}]},
    "no such picture": {"task": "vary", "picture": "0" * 16},
    "a path as a picture": {"task": "vary", "picture": "../../etc/passwd"},
    "no picture": {"task": "edit"},
    "a weight in words": {"task": "compose", "parts": [RED], "also": [{"words": "a cube:2", "weight": 3}]},
    "an option as a condition": {"task": "compose", "parts": [RED], "keep": ["--out=/tmp/x"]},
    "a stage's wrong setting": {"task": "compose", "parts": [RED], "stages": ["base:nope=1"]},
    "no such stage": {"task": "compose", "parts": [RED], "until": "nope"},
    "seeds without end": {"task": "compose", "parts": [RED], "seeds": list(range(17))},
    "a weight that is no number": {"task": "compose", "parts": [{**RED, "weight": True}]},
    "a box outside": {"task": "compose", "parts": [{**RED, "place": {"box": [0, 0, 2, 1]}}]},
    "a phrase with a colon": {"task": "compose", "objects": [{"phrase": "a: b", "box": [0, 0, 1, 1]}]},
}


@pytest.mark.parametrize("board", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_board_is_refused_at_once(page, board):
    answer = page.client.post("/api/jobs", json=board)
    assert answer.status_code in (400, 404) and answer.json()["error"], answer.text
    assert not page.get("jobs").json()


def test_a_caption_is_nothing_but_words(page):
    """Markup, an option, or what a shell would run."""
    for text in ("<script>alert(1)</script>", "--out=/tmp/x", "$(touch x) `touch y`; a 'cube'", "a\nb"):
        job = page.wait(page.start(task="compose", parts=[{"condition": "caption", "text": text}, RED]))
        assert job["state"] == "done" and job["board"]["parts"][0]["text"] == text
        written = page.post("command", json=job["board"])
        words = shlex.split(written["command"])[1:]
        assert TASKS[words[0]].read(words[1:]).conditions["caption"] == (text,)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("../../etc/passwd", "etc_passwd.png"),
        ("<script>alert(1)</script>.svg", "script_alert(1)__script_.svg.png"),
        ("a\x00b\n\x1b[31m.png", None),
        ("", "picture.png"),
        ("--out=x.png", "out=x.png"),
        (".hidden", "hidden.png"),
        ("C:\\x\\y.jpg", "C__x_y.jpg"),
        ("ä" * 300 + ".png", None),
        ("x.png:0.7@0.2-0.8", "x.png_0.7@0.2-0.8.png"),
    ],
)
def test_a_hostile_name_becomes_a_plain_one(page, given, name):
    made = plain_name(given, "PNG")
    assert name in (None, made) and len(made.encode()) < 130 and made.isprintable() and not set(made) & set("/\\:<>")
    found = page.post("pictures", params={"name": given}, content=png(noise(2)))
    assert found["name"] == made
    path = page.server.pictures.find(found["id"]).path
    assert path.resolve().is_relative_to((page.server.folder / "pictures").resolve())
    page.draw(task="compose", parts=[{"condition": "sketch", "picture": found["id"]}])


def test_what_is_no_picture_is_refused(page):
    assert "not an image" in page.post("pictures", status=400, content=b"<svg onload=alert(1)>")["error"]
    assert "shorter than" in page.post("pictures", status=400, content=png(noise(0, 20, 20)))["error"]
    assert "damaged" in page.post("pictures", status=400, content=png(noise(0))[:2000])["error"]
    assert "coloured" in page.post("masks", status=400, content=png(noise(0)))["error"]
    assert list((page.server.folder / "pictures").iterdir()) == [], "nothing is left of them"


def test_what_is_too_large_is_refused_before_it_is_read(page, monkeypatch):
    monkeypatch.setattr(serving, "MOST_UPLOADED", 10_000)
    sent = []

    def chunks():
        for _ in range(100):
            sent.append(1)
            yield b"x" * 5000

    assert "10,000 bytes" in page.post("pictures", status=413, content=chunks())["error"]
    assert "10,000 bytes" in page.post("masks", status=413, content=b"x" * 10_001)["error"]
    assert "bytes" in page.post("jobs", status=413, content=b"[" * 1_000_001)["error"]
    assert "JSON" in page.post("jobs", status=400, content=b"[" * 1_000_000)["error"]


def test_ids_are_no_paths(page):
    for path in (
        "pictures/..%2f..%2fx",
        "pictures/0/tiles/..%2fx",
        "results/..%2f..%2fx.png",
        "masks/..",
        "jobs/x/events",
    ):
        assert page.client.get(f"/api/{path}").status_code == 404


def test_the_queue_has_an_end_and_old_requests_are_forgotten(page, monkeypatch):
    monkeypatch.setattr(queue, "MOST_KEPT", 2)
    pictures = [page.draw(task="compose", parts=[RED], seeds=[i])[0] for i in range(4)]
    assert len(page.get("jobs").json()) == 3, "those that had ended when the last was made, and the last"
    assert page.client.get(pictures[0].url).status_code == 404
    assert len(list((page.server.folder / "results").iterdir())) == 3
    going, reached = hold(monkeypatch)
    monkeypatch.setattr(queue, "MOST_WAITING", 2)
    page.start(task="compose", parts=[RED])
    assert reached.wait(60)
    page.start(task="compose", parts=[RED])
    page.start(task="compose", parts=[RED])
    assert "wait already" in page.post("jobs", status=429, json={"task": "compose", "parts": [RED]})["error"]
    going.set()


def test_results_are_kept_where_they_are_wanted(make_page, eight, eight_folder, tmp_path):
    page = make_page(eight, eight_folder, tmp_path / "kept")
    for _ in range(2):
        page.draw(task="compose", parts=[RED])
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["compose_seed0-2.png", "compose_seed0.png"]


def test_watching_changes_no_bit(eight):
    """A sampler with a watcher draws what it draws without."""
    seen = []

    class Watcher:
        def __call__(self, steps):
            return steps

        def see(self, estimate):
            seen.append(estimate())

    for sampler in ("euler", "heun", "dpmpp_2m", "ancestral"):
        how = SampleOptions(sampler=sampler, steps=3)
        asked = eight.ask(palette="#aa3311")
        plain, watched = (eight.sample(asked, [0, 1], how, progress=by) for by in (None, Watcher()))
        assert torch.equal(plain, watched)
        assert seen and all(one.shape == plain.shape for one in seen)
        if sampler == "dpmpp_2m":
            assert torch.equal(seen[-1], watched), "its last estimate is the picture"
        seen.clear()
