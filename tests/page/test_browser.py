"""The page in a real browser: Chromium, driven by Playwright, against the real server with a tiny model."""

import base64
import http.client
import io
import json
import os
import shutil
import socket
import threading
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from composer.cascade.cascade import Cascade
from composer.commands.boards import BoardPainter
from composer.commands.groups import ModelOptions
from composer.images.sheet import read_recipe
from composer.page.server import Server, make_app

TOKEN = "a-token-of-the-tests"
NAMES = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
QUIET = ("gpu", "quic", "background-networking", "component-update", "sync")
ARGUMENTS = ["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in QUIET)]
HOSTILE = "<img src=x onerror=\"window.ran='it'\"><script>window.ran='it'</script>"
"""Markup that would run, if it were read as markup."""


expect.set_options(timeout=60_000)  # the machine may do much else


@pytest.fixture(scope="module")
def chromium():
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        why = "there is no Chromium here: install it to test the page (apt-get install chromium)"
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=ARGUMENTS, headless=True)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(eight_folder, tmp_path_factory):
    """The address of a server that runs as `composer page` runs it."""
    options = ModelOptions(model=str(eight_folder))
    serving = Server(BoardPainter(Cascade.load(eight_folder), options, ()), tmp_path_factory.mktemp("page"))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        config = uvicorn.Config(make_app(serving, TOKEN, port), log_level="warning", timeout_graceful_shutdown=1)
        running = uvicorn.Server(config)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"127.0.0.1:{port}"
        serving.close()
        running.should_exit = True
        thread.join()


@pytest.fixture
def tab(chromium, server):
    """A tab with the page; no script error and no breach of its policy may happen in it."""
    context = chromium.new_context(viewport={"width": 1280, "height": 720})
    page = open_tab(context, server)
    yield page
    context.close()
    assert page.wrong == []


def open_tab(context, server):
    page = context.new_page()
    page.server, page.wrong = server, []
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on("console", lambda message: page.wrong.append(message.text) if message.type == "error" else None)
    page.goto(f"http://{server}/?token={TOKEN}")
    page.wait_for_selector("body[data-ready]")
    return page


def ask(server, path, method="GET", body=None, **headers):
    """Asks the server past the page: the status, and what is answered."""
    connection = http.client.HTTPConnection(server, timeout=20)
    connection.request(method, path, body, {"X-Token": TOKEN, **headers})
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    return answer.status, data


def jobs_of(server):
    return {job["id"]: job for job in json.loads(ask(server, "/api/jobs")[1])}


def picture(width, height, seed=0):
    """A picture with shades and an edge, so that its sketch is not empty."""
    y, x = np.mgrid[0:height, 0:width]
    shades = np.stack([x * 255 // width, y * 255 // height, (x + y + 80 * seed) % 256], 2).astype(np.uint8)
    shades[height // 4 : height // 2, width // 4 : width // 2] = [200, 40, 30 * seed]
    return Image.fromarray(shades)


def png(image):
    data = io.BytesIO()
    image.save(data, "PNG", compress_level=1)
    return data.getvalue()


def drop(page: Page, name: str, data: bytes) -> None:
    """Drops a file onto the page, as from a file manager, and waits until it is taken apart."""
    before = page.locator("article.card").count()
    transfer = page.evaluate_handle(
        """([name, text]) => {
            const transfer = new DataTransfer();
            const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
            transfer.items.add(new File([bytes], name, { type: "image/png" }));
            return transfer;
        }""",
        [name, base64.b64encode(data).decode()],
    )
    page.dispatch_event("body", "drop", {"dataTransfer": transfer})
    expect(page.locator("article.card")).to_have_count(before + 1)


def tile(page, name, condition):
    return page.locator(f"article.card[aria-label='{name}'] .tile[data-condition={condition}]")


def set_options(page, **values):
    for name, value in values.items():
        page.fill(f"#{name}", str(value))
        page.press(f"#{name}", "Tab")


def draw(page, **values):
    """Draws, and waits for the end."""
    set_options(page, **values)
    before = page.locator(".entry").count()
    page.click("#draw")
    expect(page.locator(".entry")).to_have_count(before + 1)
    expect(page.locator(".doing")).to_have_text("done")


def download(page, path) -> Path:
    with page.expect_download() as found:
        page.click("#download")
    found.value.save_as(path)
    return Path(path)


def paint(page, points, tool="brush"):
    """Draws a stroke on the canvas; the points are shares of the canvas."""
    page.click(f"[data-tool={tool}]")
    box = page.locator("#canvas").bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=4)
    page.mouse.up()


def edit_painted(page, tmp_path, image, *strokes, **values):
    """Edits a picture under a painted mask: the mask that was sent, and the result, as arrays."""
    drop(page, "photo.png", png(image))
    page.click("article.card >> text=Edit")
    for points, tool in strokes:
        paint(page, points, tool)
    page.click("[data-side=parts][data-slot=caption] .open")
    page.fill(".inspector textarea", "a red cube")
    expect(page.locator("[data-side=parts][data-slot=caption].full")).to_be_visible()
    draw(page, **values)
    mask = last_mask(page)
    with Image.open(download(page, tmp_path / "edited.png")) as edited:
        assert edited.size == mask.size == image.size
        return np.asarray(mask) >= 128, np.asarray(edited.convert("RGB"))


def last_mask(page):
    """The mask of the last request, as the server has it."""
    *_, job = jobs_of(page.server).values()
    return Image.open(io.BytesIO(ask(page.server, f"/api/masks/{job['board']['region']['mask']}")[1])).convert("L")


def test_two_dropped_pictures_compose(tab, server, tmp_path):
    drop(tab, "a.png", png(picture(50, 40)))
    drop(tab, "b.png", png(picture(40, 50, 1)))
    tile(tab, "a.png", "sketch").click()
    source = tile(tab, "b.png", "palette").bounding_box()
    slot = tab.locator("[data-side=parts][data-slot=palette]").bounding_box()
    tab.mouse.move(source["x"] + 10, source["y"] + 10)
    tab.mouse.down()
    tab.mouse.move(slot["x"] + 20, slot["y"] + 20, steps=5)
    tab.mouse.up()
    draw(tab, seeds="3, 4")
    assert tab.locator(".seed").count() == 2
    assert {"sketch", "palette"} == set(tab.locator(".measure span").all_inner_texts())
    tab.locator(".measure").first.focus()
    expect(tab.locator(".pair img")).to_have_count(2)
    *_, job = jobs_of(server).values()
    used = {part["condition"]: part["picture"] for part in job["board"]["parts"]}
    assert used["sketch"] != used["palette"] and [one["seed"] for one in job["pictures"]] == [3, 4]
    found = read_recipe(download(tab, tmp_path / "one.png"))
    assert found["seed"] == 3


def test_pixels_outside_a_painted_region_stay(tab, tmp_path):
    image = picture(120, 90)
    stroke = [(0.4, 0.4), (0.55, 0.5), (0.5, 0.6)]
    mask, edited = edit_painted(tab, tmp_path, image, (stroke, "brush"), ([(0.3, 0.3), (0.35, 0.4)], "box"))
    before = np.asarray(image)
    assert 0.01 < mask.mean() < 0.5
    assert (edited[~mask] == before[~mask]).all()
    assert (edited[mask] != before[mask]).any()


def test_large_pictures_keep_their_pixels(tab, tmp_path):
    image = picture(4000, 3000)
    mask, edited = edit_painted(tab, tmp_path, image, ([(0.4, 0.4), (0.6, 0.4), (0.5, 0.6)], "lasso"), seeds="0")
    before = np.asarray(image)
    assert 0.005 < mask.mean() < 0.2 and mask.shape == (3000, 4000)
    assert (edited[~mask] == before[~mask]).all()
    assert (edited[mask] != before[mask]).any()


def test_strokes_are_undone_and_erased(tab):
    drop(tab, "photo.png", png(picture(60, 60)))
    tab.click("article.card >> text=Edit")

    set_options(tab, seeds="0", steps=1)

    def painted():
        draw(tab)
        return np.asarray(last_mask(tab)) >= 128

    paint(tab, [(0.4, 0.5), (0.6, 0.5)])
    paint(tab, [(0.5, 0.4), (0.5, 0.6)])
    both = painted()
    paint(tab, [(0.5, 0.4), (0.5, 0.6)], "eraser")
    erased = painted()
    assert erased.sum() < both.sum() and not (erased & ~both).any()
    tab.keyboard.press("Control+z")
    tab.keyboard.press("Control+z")
    one = painted()
    assert 0 < one.sum() < both.sum() and (both & one == one).all()
    tab.keyboard.press("Control+Shift+z")
    assert (painted() == both).all()


def test_a_place_is_a_box_of_the_part(tab, server):
    drop(tab, "a.png", png(picture(50, 50)))
    tile(tab, "a.png", "palette").click()
    paint(tab, [(0.4, 0.4), (0.6, 0.6)], "box")
    expect(tab.locator("[data-side=parts][data-slot=palette] .note")).to_contain_text("in a place")
    draw(tab, seeds="0")
    *_, job = jobs_of(server).values()
    left, top, right, bottom = job["board"]["parts"][0]["place"]["box"]
    assert 0.2 < left < right < 0.8 and 0.2 < top < bottom < 0.8


def test_a_dragged_border_continues_the_picture(tab, tmp_path):
    image = picture(64, 64)
    drop(tab, "photo.png", png(image))
    tab.click("text=Outpaint")
    box = tab.locator("#canvas").bounding_box()
    side = min(box["width"], box["height"]) - 24
    right, middle = box["x"] + (box["width"] + side) / 2, box["y"] + box["height"] / 2
    tab.mouse.move(right, middle)
    tab.mouse.down()
    tab.mouse.move(right + side / 2, middle, steps=5)
    tab.mouse.up()
    expect(tab.locator(".growing input").nth(2)).to_have_value("0.5")
    draw(tab, seeds="0")
    with Image.open(download(tab, tmp_path / "wide.png")) as wide:
        assert wide.size == (96, 64)
        assert (np.asarray(wide.convert("RGB"))[:, :64] == np.asarray(image)).all()


def test_cancelling_ends_a_long_drawing(tab, server):
    drop(tab, "a.png", png(picture(50, 40)))
    tile(tab, "a.png", "palette").click()
    set_options(tab, steps=10_000)
    tab.click("#draw")
    expect(tab.locator(".doing")).to_contain_text("/10000")
    tab.click("#cancel")
    expect(tab.locator("#status")).to_have_text("Cancelled.")
    assert list(jobs_of(server).values())[-1]["state"] == "cancelled"
    draw(tab, steps=2)


def test_a_downloaded_picture_restores_the_board(tab, chromium, server, tmp_path):
    drop(tab, "a.png", png(picture(50, 40)))
    tile(tab, "a.png", "sketch").click()
    tab.click("[data-side=parts][data-slot=palette] .open")
    tab.fill(".inspector textarea", "#aa3311 0.6, #eeddcc 0.4")
    expect(tab.locator("[data-side=parts][data-slot=palette].full")).to_be_visible()
    tab.locator("[data-side=parts][data-slot=palette] input").fill("0.5")
    tab.click("text=AND")
    tab.fill(".steering input[type=text]", "a blue ball")
    tab.select_option("#size", "32x32")  # of itself this model's pictures are too small to be read
    draw(tab, seeds="7", guidance=4)
    first = download(tab, tmp_path / "first.png")
    context = chromium.new_context()
    page = open_tab(context, server)
    drop(page, "first.png", first.read_bytes())
    expect(page.locator("#status")).to_contain_text("The board is set")
    assert page.input_value("#seeds") == "7" and page.input_value("#guidance") == "4"
    assert page.locator("[data-side=parts][data-slot=palette] input").input_value() == "0.5"
    assert page.input_value(".steering input[type=text]") == "a blue ball"
    assert page.locator(".slot.full").count() == 2 and page.input_value("#size") == "32x32"
    draw(page)
    again = download(page, tmp_path / "again.png")
    assert (np.asarray(Image.open(first)) == np.asarray(Image.open(again))).all()
    assert page.wrong == []
    context.close()


def test_history_branches_and_returns(tab):
    before = tab.locator(".entry").count()
    drop(tab, "a.png", png(picture(50, 40)))
    tile(tab, "a.png", "palette").click()
    for seed in (11, 12):
        draw(tab, seeds=str(seed))
    tab.locator(".entry").nth(before).click()
    assert tab.input_value("#seeds") == "11"
    draw(tab, seeds="13")
    first, second, branch = (tab.locator(".entry").nth(before + i).bounding_box() for i in range(3))
    assert second["x"] == branch["x"] == first["x"] + 52
    assert second["y"] == first["y"] < branch["y"]
    tab.reload()
    expect(tab.locator(".entry")).to_have_count(before + 3)


def test_hostile_names_and_captions_run_nothing(tab):
    drop(tab, f"{HOSTILE}.png", png(picture(50, 40)))
    expect(tab.locator("article.card .name")).to_contain_text("onerror")
    tab.click("[data-side=parts][data-slot=caption] .open")
    tab.fill(".inspector textarea", HOSTILE)
    expect(tab.locator("[data-side=parts][data-slot=caption].full")).to_be_visible()
    expect(tab.locator(".problem")).to_contain_text("cannot read")
    tab.click("text=NOT")
    tab.fill(".steering input[type=text]", HOSTILE)
    tab.locator("article.card .tile").first.click()
    draw(tab, seeds="0")
    tab.reload()
    tab.wait_for_selector("body[data-ready]")
    assert tab.evaluate("window.ran") is None
    assert tab.locator("script").count() == 1 and tab.locator("img[src=x]").count() == 0


def test_mistakes_are_told_as_on_the_command_line(tab):
    tab.click("#draw")
    expect(tab.locator("#status.error")).to_contain_text("nothing asked")
    tab.wrong.clear()  # the browser reports the answer 400


@pytest.mark.parametrize("path", ["/api/model", "/api/jobs", "/api/pictures"])
def test_a_wrong_token_or_another_site_is_refused(server, path):
    assert ask(server, path)[0] == 200
    assert ask(server, path, **{"X-Token": "wrong"})[0] == 403
    assert ask(server, f"{path}?token=wrong", **{"X-Token": ""})[0] == 403
    assert ask(server, path, Origin="http://evil.example")[0] == 403
    assert ask(server, path, Host="evil.example")[0] == 403


def test_a_page_without_the_token_says_so(chromium, server):
    page = chromium.new_page()
    page.goto(f"http://{server}/?token=wrong")
    expect(page.locator("#status.error")).not_to_be_empty()
    page.close()


def test_twenty_requests_of_two_tabs_all_come_back(tab, server, tmp_path):
    other = open_tab(tab.context, server)
    done = set(jobs_of(server))
    for page, colour in ((tab, "red"), (other, "blue")):
        page.click("[data-side=parts][data-slot=caption] .open")
        page.fill(".inspector textarea", f"a {colour} cube")
        expect(page.locator("[data-side=parts][data-slot=caption].full")).to_be_visible()
    for i in range(10):
        for page, first in ((tab, 100), (other, 200)):
            set_options(page, seeds=first + i)
            page.keyboard.press("Control+Enter")
    for page in (other, tab):
        page.bring_to_front()
        expect(page.locator("#cancel")).to_be_disabled()
    new = [job for found, job in jobs_of(server).items() if found not in done]
    assert len(new) == 20 and {job["state"] for job in new} == {"done"}
    for job in new:
        (seed,) = job["board"]["seeds"]
        colour = "red" if seed < 200 else "blue"
        assert [one["seed"] for one in job["pictures"]] == [seed]
        assert job["board"]["parts"][0]["text"] == f"a {colour} cube"
        (tmp_path / "one.png").write_bytes(ask(server, job["pictures"][0]["url"])[1])
        assert read_recipe(tmp_path / "one.png")["seed"] == seed
    other.close()


def test_keys_alone_compose(tab):
    drop(tab, "a.png", png(picture(50, 40)))

    def go_to(selector):
        for _ in range(200):
            if tab.evaluate("(selector) => document.activeElement.matches(selector)", selector):
                return
            tab.keyboard.press("Tab")
        pytest.fail(f"no way by Tab to {selector}")

    go_to(".tile[data-condition=palette]")
    tab.keyboard.press("Enter")
    go_to("[data-side=parts][data-slot=palette] input")
    tab.keyboard.press("ArrowRight")
    go_to("#canvas")
    tab.keyboard.press("r")  # the box
    tab.keyboard.press("Enter")
    for _ in range(5):
        tab.keyboard.press("ArrowRight")
        tab.keyboard.press("ArrowDown")
    tab.keyboard.press("Enter")
    expect(tab.locator("[data-side=parts][data-slot=palette] .note")).to_contain_text("1.05 in a place")
    go_to("#seeds")
    tab.keyboard.type("5")
    before = tab.locator(".entry").count()
    tab.keyboard.press("Control+Enter")
    expect(tab.locator(".entry")).to_have_count(before + 1)
    expect(tab.locator(".doing")).to_have_text("done")
    controls = "[...document.querySelectorAll('button, input:not([hidden]), select, textarea')]"
    assert tab.evaluate(f"{controls}.every((one) => one.title && (one.ariaLabel || one.textContent))")
