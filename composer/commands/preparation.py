"""A preparation as plain values, which processes of a Ray cluster carry out shard by shard."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from composer.data.preparing import Preparation, Work, shard_path
from composer.data.shards import index_path
from composer.data.sources import Source, open_source
from composer.decomposition import Decomposition
from composer.devices import pick_device
from composer.training.configured_data import build_decomposers

RETRIES = 20
"""How often a shard whose process died is begun again."""

AHEAD = 1000
"""Shards that are handed to Ray at a time."""


@dataclass(frozen=True)
class Task:
    """What is prepared, and how; for all but these see `commands.data.prepare`.

    Attributes:
        words: Of the training's command line: ``-c FILE`` and what it changes; empty without representations.
        folder: Where the other paths begin.
    """

    images: Path
    out: Path
    how: Preparation
    shard: int
    words: tuple[str, ...]
    names: tuple[str, ...]
    plugins: tuple[str, ...]
    device: str | None
    workers: int
    rows: int
    folder: Path = field(default_factory=Path.cwd)

    def open(self) -> tuple[Source, Decomposition, dict[str, Any]]:
        """Finds the images, builds the decomposers, and says how."""
        source = open_source(self.images, self.shard)
        if not self.names:
            return source, Decomposition({}), {}
        return source, *build_decomposers(self.words, self.names, self.plugins)


def write_by_ray(task: Task, source: Source, numbers: Iterable[int], progress: Callable[[int], object]) -> None:
    """Writes shards by the processes of a Ray cluster; one that dies is replaced, and its shard begun again.

    Each takes as many CPUs as it has threads that decode, and a GPU if it computes representations where there are any.

    Args:
        task: What is prepared; all machines see its files under the same paths.
        source: Its images.
        numbers: Of the shards; complete ones are passed over.
        progress: Called with the number of images that were just finished.

    Raises:
        ValueError: Ray is not installed.
        RuntimeError: The process of a shard died again and again.
    """
    try:
        import ray
    except ImportError as error:
        raise ValueError("--engine ray needs Ray: pip install composer-diffusion[ray]") from error
    ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level="warning")
    wants_gpu = task.names and (task.device or "cuda").startswith("cuda") and ray.cluster_resources().get("GPU", 0)
    write = ray.remote(num_cpus=task.workers, num_gpus=int(bool(wants_gpu)), max_retries=RETRIES)(_write_shard)
    missing, running = _missing(task, source, numbers, progress), dict[Any, int]()
    while running or (running := {write.remote(task, n): n for n in islice(missing, AHEAD)}):
        (done,), _ = ray.wait(list(running), num_returns=1)
        number = running.pop(done)
        try:
            progress(ray.get(done))
        except ray.exceptions.WorkerCrashedError as error:
            raise RuntimeError(
                f"the process of shard {number} died {RETRIES + 1} times: see Ray's logs, then run the command again"
            ) from error
        except ray.exceptions.RayTaskError as error:  # what the process itself said is all that a user needs
            raise error.cause from None
        running |= {write.remote(task, n): n for n in islice(missing, 1)}


def _missing(task: Task, source: Source, numbers: Iterable[int], progress: Callable[[int], object]) -> Iterator[int]:
    """The numbers of the shards that are not complete."""
    for number in numbers:
        if index_path(shard_path(task.out, number)).exists():
            progress(source.count(number))
        else:
            yield number


def _write_shard(task: Task, number: int) -> int:
    """Writes a shard in a process of Ray's; gives the number of its images."""
    work = _open(task)
    ((_, index, _),) = work.write(task.out, [number])
    return len(index.items) + len(index.refused)


@lru_cache(1)
def _open(task: Task) -> Work:
    os.chdir(task.folder)
    if str(task.folder) not in sys.path:
        sys.path.insert(0, str(task.folder))  # plugins lie where people work
    source, decomposition, specs = task.open()
    return Work(source, task.how, decomposition, pick_device(task.device), task.workers, task.rows, specs=specs)
