"""Tells of the steps of a drawing, with previews of the running estimate."""

import base64
import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from composer.images.sheet import thumbnail, to_pil
from composer.page.painter import Box, Run

PREVIEWS = 8
"""Previews of each run of a stage, at most."""

PAUSE = 0.1
"""Seconds between two messages of steps, at least."""


class Watching:
    """Tells of steps and previews, and ends the drawing of a request that was cancelled; see `Watcher`.

    Args:
        runs: The runs of stages that there will be, in order.
        seeds: Number of seeds.
        box: Which part of the picture they draw; None is all of it.
        tell: Takes an event's kind and data.
        check: Raises an error where the drawing is to end.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        seeds: int,
        box: Box | None,
        tell: Callable[[str, Mapping[str, Any]], None],
        check: Callable[[], None],
    ):
        self._left, self._box, self._tell, self._check = iter(runs), box, tell, check
        self._urls: list[str | None] = [None] * seeds
        self._run = Run("", ())
        self._every, self._step, self._seen, self._last = 1, 0, -1, 0.0

    def __call__(self, steps: Sequence[int]) -> Iterator[int]:
        """Wraps the steps of the next run."""
        self._run = next(self._left, self._run)
        self._every, self._seen = max(1, len(steps) // PREVIEWS), -1
        for self._step, step in enumerate(steps):
            self._check()
            self._tell_step(self._step, len(steps))
            yield step
        self._check()
        self._tell_step(len(steps), len(steps))

    def see(self, estimate: Callable[[], Tensor]) -> None:
        """Shows every few steps what the picture will be like."""
        self._check()
        if self._step % self._every == self._every - 1 and self._step != self._seen:
            self._seen = self._step  # some samplers estimate twice in a step
            for row, image in zip(self._run.rows, estimate(), strict=False):
                self._urls[row] = to_url(image)
            self._tell("preview", {"stage": self._run.stage, "urls": list(self._urls), "box": self._box})

    def _tell_step(self, done: int, total: int) -> None:
        now = time.monotonic()
        if done == total or now - self._last >= PAUSE:
            self._last = now
            self._tell("step", {"stage": self._run.stage, "done": done, "total": total})


def to_url(image: Tensor) -> str:
    """A small picture (3 h w) as an address that holds it."""
    data = io.BytesIO()
    to_pil(thumbnail(image.detach().float().cpu().nan_to_num())).save(data, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
