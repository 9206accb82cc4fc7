"""The page's server: what the browser asks for, and what it is answered."""

import asyncio
import json
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from composer.images.sheet import to_pil
from composer.mistakes import explain
from composer.page.board import MOST_CANDIDATES, MOST_SEEDS, MOST_SIDE, MOST_SOFTENED, TASKS, check_board
from composer.page.guard import Guard
from composer.page.jobs import ENDS, Event, Full, Job, Jobs
from composer.page.model import describe_model, read_words
from composer.page.painter import Box, Painter, Run
from composer.page.pictures import Pictures, Taken
from composer.page.restoring import restore_board
from composer.page.samples import SAMPLES, draw_sample
from composer.page.watching import Watching

STATIC = Path(__file__).parent / "static"

MOST_UPLOADED, MOST_JSON = 200_000_000, 1_000_000
"""Bytes of a picture, and of JSON."""

PAUSE, SILENCE = 0.05, 10.0
"""Seconds between two looks for events, and after which a sign of life is sent."""

Answer = Callable[[Request], Awaitable[Response]]


class TooLarge(ValueError):
    """More was sent than is read."""


class Server:
    """Answers what the page asks for.

    Attributes:
        is_ending: Whether streams of events are to end.

    Args:
        painter: Draws boards.
        folder: Where pictures and results lie.
    """

    def __init__(self, painter: Painter, folder: Path):
        self.painter, self.folder = painter, folder
        self.pictures = Pictures(painter.model, folder)
        self.jobs = Jobs(self._draw, self._forget)
        self.is_ending: Callable[[], bool] = lambda: False

    def routes(self) -> list[Route]:
        """What it answers."""

        def route(path: str, answer: Answer, *methods: str) -> Route:
            return Route(f"/api/{path}", _plain(answer), methods=list(methods) or ["GET"])

        return [
            route("model", self.get_model),
            route("samples", self.get_samples),
            route("samples/{name}", self.add_sample, "POST"),
            route("pictures", self.get_pictures),
            route("pictures", self.add_picture, "POST"),
            route("pictures/{id}", self.get_picture),
            route("pictures/{id}/board", self.get_board),
            route("pictures/{id}/tiles/{name}", self.get_tile),
            route("pictures/{id}/made/{name}", self.get_made),
            route("masks", self.add_mask, "POST"),
            route("masks/{id}", self.get_mask),
            route("words", self.read_words, "POST"),
            route("jobs", self.get_jobs),
            route("jobs", self.add_job, "POST"),
            route("jobs/{id}", self.cancel_job, "DELETE"),
            route("jobs/{id}/events", self.get_events),
            route("jobs/{id}/files/{name}", self.get_file),
            route("events", self.get_all_events),
            route("results/{name}", self.get_result),
            route("command", self.write_command, "POST"),
        ]

    async def get_model(self, request: Request) -> Response:
        limits = {
            "seeds": MOST_SEEDS,
            "best_of": MOST_CANDIDATES,
            "pixels": MOST_SIDE**2,
            "side": MOST_SIDE,
            "soften": MOST_SOFTENED,
        }
        known = {"tasks": list(TASKS), "away": True, "limits": {**limits, "bytes": MOST_UPLOADED}}
        return JSONResponse({**describe_model(self.painter.model), **known})

    async def get_samples(self, request: Request) -> Response:
        return JSONResponse([{"name": name, "about": about} for name, about in SAMPLES.items()])

    async def add_sample(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in SAMPLES:
            raise KeyError(f"there is no sample of that name; there are {', '.join(SAMPLES)}")
        return await run_in_threadpool(lambda: self._add(f"{name}.png", draw_sample(name)))

    async def get_pictures(self, request: Request) -> Response:
        return JSONResponse([taken.to_json() for taken in self.pictures.all()])

    async def add_picture(self, request: Request) -> Response:
        data = await _body(request, MOST_UPLOADED)
        return await run_in_threadpool(self._add, request.query_params.get("name", ""), data)

    def _add(self, name: str, data: bytes) -> Response:
        taken = self.pictures.add(name, data)
        return JSONResponse({**taken.to_json(), **self._restored(taken)})

    def _restored(self, taken: Taken) -> dict[str, Any]:
        board, notes = restore_board(self.painter.model, taken, self.pictures)
        return {"board": board, "notes": notes}

    async def get_board(self, request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(self._restored, self._picture(request)))

    def _picture(self, request: Request) -> Taken:
        return self.pictures.find(request.path_params["id"])

    async def get_picture(self, request: Request) -> Response:
        path, media = await run_in_threadpool(self.pictures.shown, self._picture(request))
        return FileResponse(path, media_type=media)

    async def get_tile(self, request: Request) -> Response:
        tiles, name = self._picture(request).tiles, request.path_params["name"]
        if name not in tiles:
            raise KeyError("there is no such tile")
        return FileResponse(tiles[name], media_type="image/png")

    async def get_made(self, request: Request) -> Response:
        made = {path.name: path for path in self._picture(request).made.iterdir()}
        name = request.path_params["name"]
        if name not in made:
            raise KeyError("there is no such file")
        return FileResponse(made[name], media_type="image/png")

    async def add_mask(self, request: Request) -> Response:
        data = await _body(request, MOST_UPLOADED)
        return JSONResponse({"id": await run_in_threadpool(self.pictures.add_mask, data)})

    async def get_mask(self, request: Request) -> Response:
        return FileResponse(self.pictures.mask(request.path_params["id"]), media_type="image/png")

    async def read_words(self, request: Request) -> Response:
        asked = await _json(request)
        condition, text = asked.get("condition"), asked.get("text")
        if not (isinstance(condition, str) and isinstance(text, str)):
            raise ValueError("expected a condition and a text")
        return JSONResponse(await run_in_threadpool(read_words, self.painter.model, condition, text))

    async def get_jobs(self, request: Request) -> Response:
        return JSONResponse([job.to_json() for job in self.jobs.all()])

    async def add_job(self, request: Request) -> Response:
        board = await self._board(request)
        read = await run_in_threadpool(self.painter.read, board, self.pictures)
        return JSONResponse({"id": self.jobs.add(board, read).id})

    async def _board(self, request: Request) -> Mapping[str, Any]:
        board = await _json(request)
        check_board(board)
        return board

    async def cancel_job(self, request: Request) -> Response:
        self.jobs.cancel(self._job(request))
        return JSONResponse({})

    def _job(self, request: Request) -> Job:
        return self.jobs.find(request.path_params["id"])

    async def get_events(self, request: Request) -> Response:
        return _stream(self._listen(self._job(request)))

    async def get_all_events(self, request: Request) -> Response:
        return _stream(self._listen())

    async def _listen(self, job: Job | None = None) -> AsyncIterator[str]:
        """Events as they happen, from the first that is kept; of one request until its last."""
        seen, silent = 0, 0.0
        while not self.is_ending():
            found = self.jobs.events(seen, job)
            for event in found:
                yield _sent(event)
                if job is not None and event.kind in ENDS:
                    return
            seen, silent = (found[-1].number, 0.0) if found else (seen, silent + PAUSE)
            if silent >= SILENCE:
                yield ": still here\n\n"
                silent = 0.0
            await asyncio.sleep(PAUSE)

    async def get_file(self, request: Request) -> Response:
        files, name = self._job(request).paths, request.path_params["name"]
        if name not in files:
            raise KeyError("there is no such file")
        return FileResponse(files[name], media_type="image/png")

    async def get_result(self, request: Request) -> Response:
        job, _, name = request.path_params["name"].partition("-")
        files = self.jobs.find(job).paths
        if name not in files:
            raise KeyError("there is no such picture")
        download = {"filename": files[name].name} if "download" in request.query_params else {}
        return FileResponse(files[name], media_type="image/png", **download)

    async def write_command(self, request: Request) -> Response:
        board = await self._board(request)
        command, python = await run_in_threadpool(self.painter.write, board, self.pictures)
        return JSONResponse({"command": command, "python": python})

    def _draw(self, job: Job, tell: Callable[[str, Mapping[str, Any]], None]) -> None:
        seeds = len(job.board.get("seeds") or [0])

        def watch(runs: Sequence[Run], box: Box | None) -> Watching:
            return Watching(runs, seeds, box, tell, job.stop_if_cancelled)

        folder = self.folder / "results" / job.id
        for index, drawn in enumerate(self.painter.draw(job.task, folder, watch)):
            job.stop_if_cancelled()
            job.paths[f"{index}.png"] = drawn.path
            shown: dict[str, dict[str, str]] = {"asked": {}, "got": {}}
            for side, images in (("asked", drawn.asked), ("got", drawn.got)):
                for name, image in images.items():
                    key = f"{index}_{side}_{name}.png"
                    job.paths[key] = folder / "seen" / key
                    job.paths[key].parent.mkdir(parents=True, exist_ok=True)
                    to_pil(image.float()).save(job.paths[key])
                    shown[side][name] = f"/api/jobs/{job.id}/files/{quote(key)}"
            url = f"/api/results/{job.id}-{index}.png"
            own = {"index": index, "seed": drawn.seed, "url": url, "file": drawn.path.name}
            tell("picture", {**own, "closed": dict(drawn.closed), **shown})

    def _forget(self, job: Job) -> None:
        """Removes what lies in the page's own folder of a request."""
        shutil.rmtree(self.folder / "results" / job.id, ignore_errors=True)

    def close(self) -> None:
        """Ends all drawing."""
        self.jobs.close()


def _sent(event: Event) -> str:
    data = json.dumps({**event.data, "job": event.job})
    return f"id: {event.number}\nevent: {event.kind}\ndata: {data}\n\n"


def _stream(events: AsyncIterator[str]) -> Response:
    return StreamingResponse(events, media_type="text/event-stream")


async def _body(request: Request, most: int) -> bytes:
    """What was sent, up to so many bytes."""
    said = request.headers.get("content-length", "0")
    data = bytearray()
    if said.isdecimal() and int(said) <= most:
        async for chunk in request.stream():
            data += chunk
            if len(data) > most:
                break
        else:
            return bytes(data)
    raise TooLarge(f"expected at most {most:,} bytes, found more")


async def _json(request: Request) -> dict[str, Any]:
    data = await _body(request, MOST_JSON)
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError("expected a JSON object")
    return found


def _plain(answer: Answer) -> Answer:
    """Answers a mistake with its words, as the command line says them."""

    async def guarded(request: Request) -> Response:
        try:
            return await answer(request)
        except ClientDisconnect:
            return Response(status_code=400)
        except Exception as error:
            words = explain(error)
            if words is None:
                raise
            return JSONResponse({"error": words}, _status(error))

    return guarded


def _status(error: Exception) -> int:
    if isinstance(error, TooLarge):
        return 413
    if isinstance(error, Full):
        return 429
    return 404 if isinstance(error, KeyError) else 400


def make_app(server: Server, token: str, port: int) -> Guard:
    """Makes the ASGI application: the server's answers and the page's files, guarded."""
    files = Mount("/", StaticFiles(directory=STATIC, html=True))
    return Guard(Starlette(routes=[*server.routes(), files]), token, port)


def temporary_folder() -> "tempfile.TemporaryDirectory[str]":
    """A folder that is removed at the end."""
    return tempfile.TemporaryDirectory(prefix="composer-page-")
