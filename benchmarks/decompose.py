"""How long it takes to take an image apart without networks.

Times the palette against the straightforward way (scikit-image's Lab, all distances, a bin count; then the same with
the distances as a matrix product) in one run, and every decomposer without weights on a batch of 64 pixel images:
processor time, the best of several rounds, torch with one thread. Then image operations that are written out, beside
those of five libraries (`libraries.py`): the median of several rounds in turns.

    python benchmarks/decompose.py --json benchmarks/results/decompose.json
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from libraries import compare
from rich.console import Console
from rich.table import Table
from skimage import data
from skimage.color import rgb2lab
from torch import Tensor
from torch.nn import functional as F

from composer.decomposition import Batch, Decomposition
from decomposers import Intensity, Mask, Palette, Sketch

BATCHES = {64: 32, 256: 8}  # side of the photographs -> how many at once
LIMIT = 241  # the stride that keeps a side below it, on both sides of the comparison


def milliseconds(call: Callable[[], object], rounds: int, calls: int) -> float:
    """Best time of one call over `rounds` rounds of `calls` calls."""
    call()
    best = float("inf")
    for _ in range(rounds):
        start = time.process_time()
        for _ in range(calls):
            call()
        best = min(best, (time.process_time() - start) / calls)
    return best * 1e3


def photographs(b: int, side: int) -> Tensor:
    """Square crops of four photographs, reduced; 8 bits, (b 3 side side)."""
    crops = []
    for i in range(b):
        picture = torch.from_numpy((data.astronaut, data.chelsea, data.coffee, data.rocket)[i % 4]())
        at = i // 4 * 5
        crop = picture.permute(2, 0, 1)[None, :, at : at + 256, at : at + 256].float()
        crops.append(F.interpolate(crop, (side, side), mode="area").round())
    return torch.cat(crops)


def by_skimage(palette: Palette, product: bool) -> Callable[[np.ndarray], np.ndarray]:
    """The palette of one 8-bit picture (h w 3), as scikit-image and numpy give it.

    Args:
        palette: Whose colours and smoothing to take.
        product: Whether to expand the squared distances into a matrix product, the fastest way that numpy has.
    """
    code = rgb2lab(palette.rgb.double().numpy()[None])[0]
    squares, spread = (code**2).sum(1), palette.spread.double().numpy()

    def measure(picture: np.ndarray) -> np.ndarray:
        picture = picture[:: picture.shape[0] // LIMIT + 1, :: picture.shape[1] // LIMIT + 1]
        lab = rgb2lab(picture).reshape(-1, 3)
        distances = squares - 2 * lab @ code.T if product else ((lab[:, None] - code) ** 2).sum(-1)
        smooth = spread @ (np.bincount(distances.argmin(1), minlength=len(code)) / len(lab))
        return np.where(smooth < 1e-5, 0, smooth)

    return measure


def compare_palettes(side: int, b: int, rounds: int) -> dict[str, float]:
    """Times all ways on the same photographs, the best of each; ms an image."""
    palette, pictures = Palette(), photographs(b, side)
    plain, product = by_skimage(palette, product=False), by_skimage(palette, product=True)
    arrays = list(pictures.to(torch.uint8).permute(0, 2, 3, 1).numpy())
    batch: Batch = {"image": pictures / 127.5 - 1}
    gap = np.abs(palette(batch).numpy() - np.stack([plain(array) for array in arrays])).max()
    return {
        "palette_ms": milliseconds(lambda: palette(batch), rounds, 5) / b,
        "plain_ms": milliseconds(lambda: [plain(array) for array in arrays[:4]], min(rounds, 3), 1) / 4,
        "product_ms": milliseconds(lambda: [product(array) for array in arrays], rounds, 1) / b,
        "largest_difference": float(gap),
    }


def time_decomposers(side: int, b: int, rounds: int) -> dict[str, float]:
    """Times each decomposer without weights, and all in one call; ms an image."""
    decomposers = {"palette": Palette(), "sketch": Sketch(), "intensity": Intensity(), "mask": Mask()}
    batch: Batch = {"image": photographs(b, side) / 127.5 - 1, "seed": torch.arange(b)}
    each = {name: Decomposition({name: decomposer}) for name, decomposer in decomposers.items()}
    each["all together"] = Decomposition(decomposers)
    return {name: milliseconds(partial(d, batch), rounds, 5) / b for name, d in each.items()}


def first_use() -> float:
    """Seconds to build the palette's table of nearest colours, once a process."""
    start = time.process_time()
    Palette()({"image": torch.zeros(1, 3, 8, 8)})
    return time.process_time() - start


def show(results: dict[str, dict[str, dict[str, float]]], table_s: float) -> None:
    table = Table(title="Decomposition without networks, ms of processor time an image")
    for column in ("what", "size", "ms", "skimage", "ratio", "product", "ratio"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for size, row in results["palette"].items():
        ours, others = row["palette_ms"], (row["plain_ms"], row["product_ms"])
        cells = [cell for other in others for cell in (f"{other:.2f}", f"{other / ours:.0f}")]
        table.add_row("palette", size, f"{ours:.3f}", *cells)
    table.add_section()
    for size, rows in results["decomposers"].items():
        for name, ms in rows.items():
            table.add_row(name, size, f"{ms:.3f}")
    Console().print(table, f"The palette's table takes {table_s:.1f} s, once a process.")


def show_libraries(rows: list[dict[str, str | float]]) -> None:
    table = Table(title="Written out, beside libraries: ms of processor time, differences of the results")
    for column in ("what", "written out", "by", "ms", "ratio", "largest difference", "mean", "used"):
        table.add_column(column, justify="left" if column in ("what", "by", "used") else "right")
    for row in rows:
        ms = f"{row['written_out_ms']:.2f}", str(row["by"]), f"{row['theirs_ms']:.2f}", f"{row['ratio']:.2f}"
        gaps = f"{row['largest_difference']:.1e}", f"{row['mean_difference']:.1e}"
        table.add_row(str(row["what"]), *ms, *gaps, "yes" if row["used"] else "")
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="file to write the numbers to")
    parser.add_argument("--rounds", type=int, default=10, help="rounds to take the best of")
    parser.add_argument("--sizes", type=int, nargs="+", default=[*BATCHES], choices=BATCHES, help="of the palette's")
    args = parser.parse_args()
    torch.set_num_threads(1)

    table_s = first_use()
    results = {
        "palette": {f"{side} px": compare_palettes(side, BATCHES[side], args.rounds) for side in args.sizes},
        "decomposers": {"64 px": time_decomposers(64, BATCHES[64], args.rounds)},
    }
    libraries = compare(args.rounds)
    show(results, table_s)
    show_libraries(libraries)
    if args.json:
        machine = {"processor": platform.machine(), "torch": torch.__version__, "clock": "processor time"}
        args.json.write_text(
            json.dumps({"machine": machine, "table_s": table_s, **results, "libraries": libraries}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
