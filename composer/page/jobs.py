"""Requests in a queue, drawn one after the other by one thread; each tells what happens to it as events."""

import itertools
import secrets
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

from composer.mistakes import explain
from composer.terminal import complain, note

MOST_WAITING, MOST_KEPT = 500, 500
"""Requests that may wait, and finished ones that are remembered."""

ENDS = ("done", "failed", "cancelled")


class Cancelled(Exception):
    """The request was cancelled."""


class Full(ValueError):
    """Too many requests wait."""


@dataclass(frozen=True)
class Event:
    """Something that happened to a request.

    Attributes:
        number: Later events have larger ones, whatever their request.
        job: Id of the request.
        kind: What happened.
        data: Plain JSON values.
    """

    number: int
    job: str
    kind: str
    data: Mapping[str, Any]


@dataclass(eq=False)
class Job:
    """A request.

    Attributes:
        board: As the page sent it.
        task: What draws it.
        id: Its id.
        made: When it was made, in ISO's form.
        state: ``queued``, ``drawing``, or one of `ENDS`.
        pictures: What came out so far.
        paths: Name of a file that belongs to it -> its path.
    """

    board: Mapping[str, Any]
    task: Any
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    made: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    state: str = "queued"
    pictures: list[dict[str, Any]] = field(default_factory=list)
    paths: dict[str, Any] = field(default_factory=dict)
    _events: dict[str, Event] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)

    def to_json(self) -> dict[str, Any]:
        """What the page's history shows of it."""
        parent = self.board.get("parent")
        own = {"id": self.id, "board": self.board, "state": self.state, "pictures": self.pictures}
        return {**own, "parent": parent, "made": self.made}

    def stop_if_cancelled(self) -> None:
        """Ends the drawing of a request that was cancelled.

        Raises:
            Cancelled: It was.
        """
        if self._stop.is_set():
            raise Cancelled


Draw = Callable[[Job, Callable[[str, Mapping[str, Any]], None]], None]
"""Draws a request; tells what happens by calling the function with an event's kind and data."""


class Jobs:
    """The requests: those that wait, the one that is drawn, and the latest finished ones.

    Args:
        draw: Draws a request.
        forget: Is told of a finished request that is no longer remembered.
    """

    def __init__(self, draw: Draw, forget: Callable[[Job], None]):
        self._draw, self._forget = draw, forget
        self._jobs: dict[str, Job] = {}
        self._waiting: list[Job] = []
        self._numbers, self._latest = itertools.count(1), 0
        self._changed = threading.Condition(threading.RLock())
        self._closed = False
        self._worker = threading.Thread(target=self._work, name="drawing", daemon=True)
        self._worker.start()

    def add(self, board: Mapping[str, Any], task: Any) -> Job:
        """Appends a request to the queue.

        Raises:
            Full: Too many wait.
        """
        job = Job(board, task)
        with self._changed:
            if len(self._waiting) >= MOST_WAITING:
                raise Full(f"{MOST_WAITING} requests wait already: let some of them be drawn first")
            self._jobs[job.id] = job
            self._waiting.append(job)
            self._tell(job, "queued", {"position": len(self._waiting)})
            self._forget_oldest()
        return job

    def find(self, found: str) -> Job:
        """A request by its id.

        Raises:
            KeyError: There is none, or it is no longer remembered.
        """
        with self._changed:
            if found not in self._jobs:
                raise KeyError("there is no such request, or it is too old to be remembered")
            return self._jobs[found]

    def all(self) -> list[Job]:
        """All requests that are remembered, the oldest first."""
        with self._changed:
            return list(self._jobs.values())

    def cancel(self, job: Job) -> None:
        """Cancels a request; one that is being drawn ends within a step."""
        with self._changed:
            job._stop.set()
            if job in self._waiting:
                self._waiting.remove(job)
                self._end(job, "cancelled", {})
                self._tell_positions()

    def close(self) -> None:
        """Cancels everything, and waits for the thread."""
        with self._changed:
            self._closed = True
            for job in [*self._waiting, *(job for job in self._jobs.values() if job.state == "drawing")]:
                self.cancel(job)
            self._changed.notify_all()
        self._worker.join()

    def events(self, after: int, job: Job | None = None) -> list[Event]:
        """The events behind a number: of one request, or of all.

        Of steps, previews and places in the queue only the latest are kept.
        """
        with self._changed:
            if self._latest <= after:
                return []
            jobs = self._jobs.values() if job is None else [job]
            return sorted((e for j in jobs for e in j._events.values() if e.number > after), key=lambda e: e.number)

    def _work(self) -> None:
        while (job := self._next()) is not None:
            began = time.monotonic()
            try:
                job.stop_if_cancelled()
                self._draw(job, partial(self._tell, job))
                self._end(job, "done", {"seconds": round(time.monotonic() - began, 2)})
            except Cancelled:
                self._end(job, "cancelled", {})
            except Exception as error:  # whatever it is, the next request is drawn
                if (words := explain(error)) is None:
                    note(*traceback.format_exc().splitlines())
                    words = f"unexpected, the terminal shows where: {type(error).__name__}: {error}"
                complain(words)
                self._end(job, "failed", {"error": words})
            job.task = None

    def _next(self) -> Job | None:
        """Waits for a request; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if self._closed:
                return None
            job = self._waiting.pop(0)
            job.state = "drawing"
            self._tell_positions()
            return job

    def _tell(self, job: Job, kind: str, data: Mapping[str, Any]) -> None:
        with self._changed:
            if kind == "picture":
                job.pictures.append(dict(data))
            self._latest = next(self._numbers)
            key = f"{kind} {data['index']}" if kind == "picture" else kind
            job._events[key] = Event(self._latest, job.id, kind, data)
            self._changed.notify_all()

    def _tell_positions(self) -> None:
        for i, job in enumerate(self._waiting):
            self._tell(job, "queued", {"position": i + 1})

    def _end(self, job: Job, state: str, data: Mapping[str, Any]) -> None:
        with self._changed:
            job.state = state
            for passing in ("queued", "step", "preview"):
                job._events.pop(passing, None)
            self._tell(job, state, data)

    def _forget_oldest(self) -> None:
        ended = [job for job in self._jobs.values() if job.state in ENDS]
        for job in ended[: max(0, len(ended) - MOST_KEPT)]:
            del self._jobs[job.id]
            self._forget(job)
