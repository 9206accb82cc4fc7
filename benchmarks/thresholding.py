"""Thresholds (Imagen, section 2.3): how long the exact quantile takes, and what they do as guidance grows.

Times the 99.5th percentile of one image's magnitudes against `torch.quantile` and a plain `topk`, processor time on one
thread, medians of rounds in which all three take the same values. Then draws Scenes after their captions alone with the
included model, at growing guidance, without a threshold, with static and with dynamic ones, from the same noise each:

    python benchmarks/thresholding.py --count 32 --json benchmarks/results/thresholding.json \\
        --plot docs/pictures/thresholding.png --samples docs/pictures/thresholding_samples.png

A value is saturated if an image file keeps it as 0 or 255, that is within 1/255 of -1 or 1; what no threshold bounded
is clipped at the end, as every picture is. Adherence is how much of the way from chance (0) to perfect (1) they close.
`first_step` and `last_step` are the 99.5th percentile of the estimate's magnitudes there, before the threshold.
`--count 0` times quantiles only.
"""

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import Held, first_stage, options, save_json, save_plot, show
from rich.progress import Progress, track
from torch import Tensor

from composer.cascade.cascade import Cascade
from composer.cascade.parts import Parts
from composer.diffusion.guidance import Term, guide, quantile, threshold
from composer.diffusion.samplers import Denoise, dpmpp_2m, karras_sigmas, latents
from composer.evaluation.adherence import quantise
from composer.evaluation.reading import Reading
from composer.images.sheet import save_png, sheet
from composer.scenes import render_batch

SHARE, ROWS = 0.995, 16
GUIDANCE = 1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0
SHOWN = (1.0, "static"), *((guidance, way) for guidance in (7.0, 15.0) for way in ("none", "static", "dynamic"))
WAYS: dict[str, Callable[[Denoise], Denoise]] = {
    "none": lambda denoise: denoise,
    "static": threshold,
    "dynamic": lambda denoise: threshold(denoise, SHARE),
}
LOOKS = {
    "none": ("no threshold", "#777777", "o", -0.1),
    "static": ("static threshold", "#d55e00", "s", 0.0),
    "dynamic": ("dynamic threshold", "#0072b2", "^", 0.1),
}
ENDS = 1 - 1 / 255 - 1e-6  # what rounds to 0 or 255

Rows = list[dict[str, Any]]


def milliseconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return 1e3 * (time.process_time() - start)


def magnitudes(content: str, side: int, seed: int) -> Tensor:
    """One row of |x0|: of noise, or of a Scene with too much contrast and a little noise on it."""
    noise = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(seed))
    picture = noise if content == "noise" else 1.5 * render_batch("val", [seed], side)["image"] + 0.02 * noise
    return picture.abs().flatten(1)


def time_quantiles(rounds: int, sizes: Sequence[int]) -> Rows:
    rows: Rows = []
    for side, content in track([(s, c) for s in sizes for c in ("noise", "picture")], "quantiles"):
        taken: dict[str, list[float]] = {"ours": [], "torch": [], "topk": []}
        off = {"difference": 0.0, "error": 0.0}
        for seed in range(rounds):
            values = magnitudes(content, side, seed)
            above = values.shape[1] - int(SHARE * (values.shape[1] - 1))
            found, theirs = quantile(values, SHARE), torch.quantile(values, SHARE, dim=1)
            exact = torch.quantile(values.double(), SHARE, dim=1)  # the place, too, is then found in double precision
            for name, other in (("difference", theirs), ("error", exact)):
                off[name] = max(off[name], float((found - other).abs()))
            taken["ours"].append(milliseconds(partial(quantile, values, SHARE)))
            taken["torch"].append(milliseconds(partial(torch.quantile, values, SHARE, dim=1)))
            taken["topk"].append(milliseconds(partial(values.topk, above, dim=1)))
        ms = {name: statistics.median(times) for name, times in taken.items()}
        row: dict[str, Any] = {"size": side, "content": content}
        row |= {f"{name}_ms": round(value, 3) for name, value in ms.items()}
        row |= {f"times_{name}": round(ms[name] / ms["ours"], 1) for name in ("torch", "topk")}
        rows.append(row | off)
    return rows


def draw(
    evaluation: Held, guidance: float, way: str, steps: int, progress: Callable[[int], object]
) -> tuple[Tensor, dict[str, float]]:
    """One picture a caption, each from its own seed, and how large the estimates were before the threshold."""
    stage = first_stage(evaluation.cascade)
    size, sigmas, done, reached = (stage.size, stage.size), karras_sigmas(steps), [], []
    for start in range(0, len(evaluation.seeds), ROWS):
        span = slice(start, start + ROWS)
        caption, nothing = (stage.encode(p, size) for p in (evaluation.whole.parts.pick("caption").rows(span), Parts()))
        noticed: list[Tensor] = []
        guided = noted(guide(stage.denoiser, [Term(caption, guidance), Term(nothing, 1.0 - guidance)]), noticed)
        done.append(dpmpp_2m(WAYS[way](guided), latents(evaluation.seeds[span], (3, *size)) * sigmas[0], sigmas))
        reached.append(torch.stack(noticed, 1))
        progress(len(done[-1]))
    by_step = torch.cat(reached).mean(0)
    sizes = {f"{name}_step": round(float(by_step[i]), 2) for name, i in (("first", 0), ("last", -1))}
    return quantise(torch.cat(done)), sizes


def noted(denoise: Denoise, sizes: list[Tensor]) -> Denoise:
    """Notes the 99.5th percentile of every estimate's magnitudes."""

    def estimate(x: Tensor, sigma: Tensor) -> Tensor:
        clean = denoise(x, sigma)
        sizes.append(quantile(clean.abs().flatten(1), SHARE))
        return clean

    return estimate


def look(images: Tensor) -> dict[str, float]:
    """The share of saturated values, and the standard deviation of an image's values."""
    saturated = (images.abs() > ENDS).float().mean()
    return {"saturated": round(float(saturated), 4), "contrast": round(float(images.flatten(1).std(1).mean()), 3)}


def compare(evaluation: Held, steps: int) -> tuple[Rows, dict[tuple[float, str], Tensor]]:
    rows: Rows = []
    pictures = {}
    with Progress() as bar:
        task = bar.add_task("drawing", total=len(GUIDANCE) * len(WAYS) * len(evaluation.seeds))
        for guidance in GUIDANCE:
            for way in WAYS:
                images, sizes = draw(evaluation, guidance, way, steps, lambda n: bar.advance(task, n))
                pictures[guidance, way] = images
                found = look(images) | adherence(evaluation, images) | sizes
                rows.append({"guidance": guidance, "threshold": way, **found})
    return rows, pictures


def adherence(evaluation: Held, images: Tensor) -> dict[str, float]:
    """What the pictures close, and the standard error of the caption's figure."""
    scores = evaluation.score(images, ["caption", "palette"], evaluation.whole)
    off = Reading(evaluation.cascade, images).distances(evaluation.whole.wanted.pick("caption"))["caption"]
    error = float(off.std()) / len(off) ** 0.5 / scores["caption"].chance
    return {name: round(score.closed, 3) for name, score in scores.items()} | {"caption_error": round(error, 3)}


def plot(rows: Rows, true: dict[str, float], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, 2)
    panels[0].axhline(100 * true["saturated"], color="#22211f", linewidth=1, linestyle=":", label="the true Scenes")
    for way, (label, colour, marker, aside) in LOOKS.items():
        own = {column: [row[column] for row in rows if row["threshold"] == way] for column in rows[0]}
        style = {"color": colour, "marker": marker, "markersize": 5, "label": label}
        panels[0].plot(GUIDANCE, [100 * share for share in own["saturated"]], **style)
        places = [guidance + aside for guidance in GUIDANCE]  # so that no error bar hides another
        panels[1].errorbar(places, own["caption"], own["caption_error"], elinewidth=0.8, capsize=2, **style)
    titles = "saturated values, % of all", "adherence to the caption (chance 0, perfect 1)"
    for panel, title in zip(panels, titles, strict=True):
        panel.set_title(title, fontsize=11)
        panel.set_xlabel("guidance weight")
        panel.set_xticks(GUIDANCE, [f"{weight:g}" for weight in GUIDANCE])
        panel.set_ylim(bottom=min(0, panel.get_ylim()[0]))
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False)
    save_plot(path, figure)


def show_all(timed: Rows, drawn: Rows) -> None:
    for title, rows in (("99.5th percentile of an image's magnitudes", timed), ("after captions", drawn)):
        if rows:
            show(rows, title, number=".3g", width=120)


def main() -> None:
    parser = options(__doc__, count=32, steps=30)
    parser.add_argument("--rounds", type=int, default=9, help="rounds of the timing (default 9)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256, 1024], help="sides that are timed")
    parser.add_argument("--samples", type=Path, help="PNG to write some of the pictures to")
    args = parser.parse_args()
    torch.set_num_threads(1)
    timed = time_quantiles(args.rounds, args.sizes)
    drawn: Rows = []
    about: dict[str, Any] = {}
    if args.count:
        cascade = Cascade.load(args.model).to("cpu", torch.bfloat16)
        evaluation = Held(cascade, args.count)
        drawn, pictures = compare(evaluation, args.steps)
        true = look(quantise(evaluation.whole.image))
        about = {
            "model": cascade.sha256,
            "count": args.count,
            "steps": args.steps,
            "precision": "bf16",
            "true_scenes": true,
        }
        if args.plot:
            plot(drawn, true, args.plot)
        if args.samples:
            columns = [f"guidance {guidance:g}, {way}" for guidance, way in SHOWN]
            captions = evaluation.whole.captions[:4]
            cells = [[pictures[key][i] for key in SHOWN] for i in range(len(captions))]
            save_png(args.samples, sheet(cells, captions, columns))
    show_all(timed, drawn)
    if args.json:
        machine = {"processor": platform.machine(), "torch": torch.__version__, "threads": 1, "clock": "processor time"}
        save_json(args.json, {"machine": machine, "quantile": timed, "about": about, "guidance": drawn})


if __name__ == "__main__":
    main()
