"""Scenes on disk: a folder of images and their ground truth, written by several processes, resumable."""

import io
import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TimeRemainingColumn
from rich.text import Text

from composer.images.sheet import from_pil, read_written
from composer.scenes.batch import SPLITS, render_batch
from composer.terminal import bar

LOOK = 1
"""Version of the renderer, so that a folder never mixes two."""

CHUNK = 32
"""Scenes rendered at once."""


def write_scenes(
    split: str, count: int, size: int, out: Path | str, seed: int = 0, workers: int = 2, complete: float = 0.0
) -> None:
    """Writes the first `count` scenes of a split as a folder of images with sidecars.

    A scene is ``000000.png``, ``000000.txt`` (its caption), ``000000.depth.npy`` (float16, (1 h w)),
    ``000000.instances.npy`` (uint8, (2 h w)) and ``000000.boxes.json`` (a list of [xyxy, phrase]); more than 1,000 are
    split into subfolders of 1,000. Each file is written atomically, a scene's image last; scenes whose image exists are
    skipped, so that an interrupted call can be repeated to continue.

    Args:
        split: "train", "val" or "novel".
        count: How many scenes; at least 1.
        size: Height and width in pixels.
        out: The folder; made if absent.
        seed: Another seed gives another world of scenes.
        workers: Processes with one thread each; 0 renders in this process.
        complete: Share of complete captions (see `describe`).

    Raises:
        ValueError: An argument is out of range, or the folder contains other files or scenes of other settings.
    """
    if split not in SPLITS or count < 1 or size < 8 or workers < 0 or not 0 <= complete <= 1:
        raise ValueError(
            f"expected a split of {', '.join(SPLITS)}, count >= 1, size >= 8, workers >= 0 and complete in [0, 1]; "
            f"found {split!r}, {count}, {size}, {workers} and {complete}"
        )
    out = Path(out)
    settings = {"split": split, "size": size, "seed": seed, "count": count, "look": LOOK, "complete": complete}
    _claim(out, settings)
    wanted = [index for index in range(count) if not _stem(out, index, count).with_suffix(".png").exists()]
    chunks = [wanted[at : at + CHUNK] for at in range(0, len(wanted), CHUNK)]
    jobs = [(split, chunk, size, seed, complete, out, count) for chunk in chunks]
    with bar(BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn()) as progress:
        task = progress.add_task("scenes", total=count, completed=count - len(wanted))
        for done in _run(jobs, workers):
            progress.advance(task, done)


def settings_of(out: Path) -> dict[str, Any]:
    """Reads the settings of a folder of scenes: ``split``, ``size``, ``seed``, ``count``, ``look`` and ``complete``.

    Raises:
        FileNotFoundError: It is not a folder of scenes.
    """
    record = out / "scenes.json"
    if not record.exists():
        raise FileNotFoundError(f"expected scenes in {out}, found no scenes.json there: composer scenes")
    found: dict[str, Any] = {"complete": 0.0} | json.loads(record.read_text(encoding="utf-8"))
    return found


def read_scene(out: Path, index: int) -> dict[str, Any]:
    """Reads one scene of a folder as `render_batch` returns it, up to rounding."""
    stem = _stem(out, index, settings_of(out)["count"])
    image = from_pil(read_written(stem.with_suffix(".png")))
    maps = {name: torch.from_numpy(np.load(f"{stem}.{name}.npy")).float() for name in ("depth", "instances")}
    boxes = json.loads(stem.with_suffix(".boxes.json").read_text(encoding="utf-8"))
    caption = stem.with_suffix(".txt").read_text(encoding="utf-8")
    return {"image": image, "caption": caption, "boxes": [(tuple(box), phrase) for box, phrase in boxes]} | maps


class _Rate(ProgressColumn):
    """Images a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.finished_speed or task.speed or 0:.0f} images/s")


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Writes the settings to a new folder, or checks those of an existing one."""
    record = out / "scenes.json"
    if record.exists():
        if (found := settings_of(out)) != settings:
            raise ValueError(f"{out} contains scenes with {found}, not {settings}: choose another folder, or remove it")
        return
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} contains other files and no scenes.json: choose an empty or new folder")
    out.mkdir(parents=True, exist_ok=True)
    _put(record, json.dumps(settings).encode())


def _run(jobs: list[tuple[Any, ...]], workers: int) -> Iterator[int]:
    """Runs the jobs; yields the number of scenes that each wrote."""
    if workers == 0 or not jobs:
        yield from (_write_chunk(*job) for job in jobs)
        return
    context = multiprocessing.get_context("spawn")  # torch's threads don't survive a fork
    with ProcessPoolExecutor(min(workers, len(jobs)), context, torch.set_num_threads, (1,)) as pool:
        futures = [pool.submit(_write_chunk, *job) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _stem(out: Path, index: int, count: int) -> Path:
    folder = out / f"{index // 1000:03d}" if count > 1000 else out
    return folder / f"{index:06d}"


def _write_chunk(split: str, indices: list[int], size: int, seed: int, complete: float, out: Path, count: int) -> int:
    batch = render_batch(split, indices, size, seed, complete=complete)
    images = ((batch["image"] + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    depth, instances = batch["depth"].numpy().astype(np.float16), batch["instances"].numpy().astype(np.uint8)
    for row, index in enumerate(indices):
        stem = _stem(out, index, count)
        stem.parent.mkdir(exist_ok=True)
        _put(stem.with_suffix(".txt"), batch["caption"][row].encode())
        _put(stem.with_suffix(".depth.npy"), _npy(depth[row]))
        _put(stem.with_suffix(".instances.npy"), _npy(instances[row]))
        _put(stem.with_suffix(".boxes.json"), json.dumps(batch["boxes"][row]).encode())
        _put(stem.with_suffix(".png"), _png(images[row]))
    return len(indices)


def _npy(array: Shaped[np.ndarray, "..."]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _png(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    return file.getvalue()


def _put(path: Path, content: bytes) -> None:
    """Writes a file under another name first, so that it is never seen half-written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
