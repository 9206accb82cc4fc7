"""Images a second that a training can be given: from a folder, prepared, and prepared with representations.

Photographs of 1500 x 1000 pixels are made as JPEGs of random crops of the real ones that scikit-image ships, then read
as a training at 64 pixels reads them, by one process, with three representations: sketch, palette and semantics:

    python benchmarks/data.py --json benchmarks/results/data.json

`reading` is the time that a row takes to read, `representations` that of the extraction, in ms an image. The last table
is an index of 100 million images that exists as numbers alone: what it takes to open it, and to find an image's place.
"""

import argparse
import json
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from common import save_json, show
from PIL import Image
from rich.progress import track

from composer.data import ImageDataset, ImageFolder, Photographs, ShardFolder, collate
from composer.data.preparing import Preparation, prepare
from composer.data.sources import open_source
from composer.decomposition import Decomposition
from composer.images.sheet import to_pil
from decomposers import Palette, Semantics, Sketch

SIZE, ROWS = 64, 32
SHARDS, ITEMS = 10_000, 10_000


def decomposition() -> Decomposition:
    clip = Semantics(weights="asset:scenes_clip")
    return Decomposition({"sketch": Sketch(), "palette": Palette(), "semantics": clip})


def write_photographs(folder: Path, count: int) -> None:
    photographs = Photographs(1000)
    folder.mkdir()
    for i in track(range(count), "photographs"):
        square = to_pil(photographs.row(i % len(photographs), i)["image"])
        square.resize((1500, 1000), Image.Resampling.BICUBIC).save(folder / f"{i:05d}.jpg", quality=92)


def measure(dataset: ImageDataset, extracted: Decomposition, count: int) -> dict[str, float]:
    """Milliseconds an image, of reading and of representations, and images a second."""
    reading = extraction = 0.0
    for start in range(0, count, ROWS):
        begun = time.perf_counter()
        batch = collate([dataset[i, i] for i in range(start, min(start + ROWS, count))])
        read = time.perf_counter()
        extracted(batch)
        reading, extraction = reading + read - begun, extraction + time.perf_counter() - read
    ms = {"reading": 1000 * reading / count, "representations": 1000 * extraction / count}
    return {**ms, "images_per_second": count / (reading + extraction)}


def compare(folder: Path, count: int) -> list[dict[str, Any]]:
    names, by = folder / "photographs", decomposition()
    write_photographs(names, count)
    took = {}
    for name, columns in {"prepared": Decomposition({}), "with representations": by}.items():
        begun = time.perf_counter()
        prepare(open_source(names, 1000), folder / name, Preparation(SIZE), columns)
        took[name] = 1000 * (time.perf_counter() - begun) / count
    sources: dict[str, ImageDataset] = {
        "a folder": ImageFolder(str(names), SIZE, captions="empty", crop="random", flip=True),
        **{name: ShardFolder(str(folder / name), SIZE, crop="random", flip=True) for name in took},
    }
    rows = []
    for name, dataset in sources.items():
        found = measure(dataset, by, count)
        rows.append({"images": name, **found, "preparing": took.get(name, 0.0)})
    return rows


def simulate(folder: Path) -> dict[str, Any]:
    """Opens an index of many shards of which none exists."""
    shards = [{"file": f"{i:06d}.tar", "items": ITEMS} for i in range(SHARDS)]
    manifest = {"size": SIZE, "source": 1000, "columns": [], "part": 1, "parts": 1, "shards": shards}
    (folder / "manifest-1-of-1.json").write_text(json.dumps(manifest))
    tracemalloc.start()
    begun = time.perf_counter()
    data = ShardFolder(str(folder), SIZE)
    order = data.order(0)
    opened, (held, _) = time.perf_counter() - begun, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    begun = time.perf_counter()
    for place in range(10_000):
        order[place]
    place_us = (time.perf_counter() - begun) * 100
    return {"items": len(data), "open_s": opened, "bytes_per_item": held / len(data), "place_us": place_us}


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500, help="photographs (default 500)")
    parser.add_argument("--json", type=Path, help="file to write the rows to")
    found = parser.parse_args(args)
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        rows = compare(Path(folder), found.count)
    with TemporaryDirectory() as folder:
        index = simulate(Path(folder))
    show(rows, number=".2f")
    show([index], number=".4f")
    if found.json:
        save_json(found.json, {"about": {"count": found.count, "size": SIZE}, "rows": rows, "index": index})


if __name__ == "__main__":
    main()
