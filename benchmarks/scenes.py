"""How many Scenes a second: rendered in one process, and written to disk by one and by two.

    python benchmarks/scenes.py --json scenes.json

Each process has one thread. What is written is counted from the call to the return, the start of processes included.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch

from composer.scenes import render_batch, write_scenes


def rendered(size: int, count: int) -> float:
    render_batch("train", [0], size)  # bakes the textures
    start = time.perf_counter()
    for at in range(0, count, 32):
        render_batch("train", range(at, min(at + 32, count)), size)
    return count / (time.perf_counter() - start)


def written(size: int, count: int, processes: int) -> float:
    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        write_scenes("train", count, size, Path(out) / "scenes", workers=processes)
        return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also save the rows here")
    parser.add_argument("--count", type=int, default=2000, help="scenes of 64 px; larger ones are fewer")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256], help="sides in pixels (default 64 256)")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="that write; 0: this one")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for size in arguments.sizes:
        count = max(min(32, arguments.count), arguments.count * 64**2 // size**2)
        rates = [("render", 1, rendered(size, count))]
        rates += [("write", processes, written(size, count, processes)) for processes in arguments.processes]
        for name, processes, rate in rates:
            rows.append({"name": name, "size": size, "images_per_s": round(rate, 1), "processes": processes})
            print(f"{name:8}{size:6} px{processes:4} processes{rate:8.1f} images/s")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
