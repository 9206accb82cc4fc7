"""Strengths: how well a condition is followed as it counts more or less, at some noise levels only, in one half only.

The included model draws Scenes of the split `val` again from their representations, each from its own seed, the same in
every setting:

    python benchmarks/strengths.py --json benchmarks/results/strengths.json --plot docs/pictures/strengths.png

`closed` is how much of the way from chance (0) to perfect (1) the pictures go, chance being the mean distance from what
was asked to all the other Scenes; `error` is its standard error over the Scenes. `alone`: one condition, nothing else.
`against`: one condition of a Scene, its strength growing, and another condition of another Scene, which counts fully;
`estimates` is what the network computes in a step for one picture, in one call. `moment`: one condition that counts at
some noise levels only, given as the cosine schedule's time. `place`: one condition that counts in the left half only,
measured in both halves; `everywhere` and `nowhere` are the same halves with the condition in both, and in none.
"""

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from common import Held, first_stage, options, save_json, save_plot, show
from rich.progress import track
from torch import Tensor

from composer.cascade.cascade import Cascade
from composer.cascade.composition import Composition
from composer.cascade.options import SampleOptions
from composer.cascade.parts import Parts
from composer.devices import pick_device
from composer.diffusion.denoiser import level
from composer.diffusion.strength import Strength
from composer.evaluation.adherence import quantise

ROWS = 16
WEIGHTS = 0.0, 0.25, 0.5, 0.75, 1.0, 1.5
AGAINST = ("sketch", "depth"), ("palette", "semantics"), ("caption", "semantics")
MOMENTS = (0.9, 1.0), (0.6, 0.9), (0.3, 0.6), (0.0, 0.3)
TIMED = "sketch", "depth", "semantics", "palette"
PLACED = "sketch", "depth", "intensity", "palette"
COLOURS = {"sketch": "#0072b2", "depth": "#56b4e9", "intensity": "#22211f", "palette": "#d55e00"}
COLOURS |= {"semantics": "#cc79a7", "caption": "#009e73", "instances": "#e69f00"}

Job = tuple[Parts, dict[str, Strength]]
Row = dict[str, Any]


class Measured(Held):
    """A sample of Scenes, and how near pictures come to what was asked of them."""

    def drawn(self, job: Job, steps: int) -> tuple[Tensor, float, float]:
        """Pictures as a PNG would keep them, the network's calls a step, and its estimates a step and picture."""
        parts, strengths = job
        first = first_stage(self.cascade)
        seen: list[int] = []
        done: list[Tensor] = []
        hook = first.denoiser.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
        for start in range(0, len(self.seeds), ROWS):
            span = slice(start, start + ROWS)
            rows, seeds = parts.rows(span), self.seeds[span]
            asked = Composition(parts=rows, strengths=strengths)
            drawn = self.cascade.sample(asked, seeds, SampleOptions(until=first.name, steps=steps))
            done.append(drawn.cpu())
        hook.remove()
        return quantise(torch.cat(done)), len(seen) / len(done) / steps, sum(seen) / len(self.seeds) / steps

    def reading(self, images: Tensor, name: str, columns: slice) -> Tensor:
        """What a reader reads of some columns: a map is read whole and cut, all else is read from the columns."""
        reader = dict(self.cascade.readers.named())[name]
        images = images.to(self.cascade.device)
        value: Tensor = reader({"image": images})
        return (value[..., columns] if value.ndim == 4 else reader({"image": images[..., columns]})).cpu()

    def follows(self, images: Tensor, name: str, of: Tensor | None = None, columns: slice | None = None) -> Row:
        """How near the pictures come to one condition.

        Args:
            images: One a Scene.
            name: The condition.
            of: Which Scene it came from, a number a picture; None is the picture's own.
            columns: The part of the picture that is measured; None is all.
        """
        of = torch.arange(len(images)) if of is None else of
        whole, distance = slice(None), dict(self.cascade.readers.named())[name].distance
        wanted, true = self.whole.wanted[name].cpu(), self.reading(self.whole.image, name, columns or whole)
        if columns is not None:
            wanted = wanted[..., columns] if wanted.ndim == 4 else true
        off = distance(wanted[of], self.reading(images, name, columns or whole))
        chance = torch.stack([distance(wanted, true.roll(k, 0)).mean() for k in range(1, len(true))]).mean()
        return {
            "closed": round(float(1 - off.mean() / chance), 3),
            "error": round(float(off.std() / len(off) ** 0.5 / chance), 3),
        }


def jobs(of: Measured) -> dict[tuple[Any, ...], Job]:
    """All that is drawn, by what it is."""
    parts, others = of.whole.parts, of.whole.parts.rows(of.other.tolist())
    half = torch.zeros(1, 1, *of.whole.image.shape[2:], device=of.cascade.device)
    half[..., : half.shape[3] // 2] = 1
    found: dict[tuple[Any, ...], Job] = {("none",): (Parts(), {})}
    for name in of.scored:
        for weight in WEIGHTS[1:]:
            found["alone", name, weight] = parts.pick(name), {name: Strength(weight=weight)}
    for name, other in AGAINST:
        for weight in WEIGHTS:
            both = parts.pick(name) | others.pick(other)
            found["against", name, other, weight] = both, {name: Strength(weight=weight)}
    for name in TIMED:
        for moment in MOMENTS:
            found["moment", name, moment] = parts.pick(name), {name: Strength(interval=moment)}
    for name in PLACED:
        found["place", name] = parts.pick(name), {name: Strength(region=half)}
    return found


def measure(of: Measured, steps: int) -> dict[str, list[Row]]:
    drawn = {key: of.drawn(job, steps) for key, job in track(jobs(of).items(), "drawing")}
    pictures = {key: images for key, (images, _, _) in drawn.items()}
    alone, against, moments, places = [], [], [], []
    for name in of.scored:
        for weight in WEIGHTS:
            images = pictures["alone", name, weight] if weight else pictures["none",]
            alone.append({"condition": name, "weight": weight, **of.follows(images, name)})
    for name, other in AGAINST:
        for weight in WEIGHTS:
            images, calls, estimates = drawn["against", name, other, weight]
            row = {"condition": name, "other": other, "weight": weight, **of.follows(images, name)}
            held = of.follows(images, other, of.other)
            row |= {f"other_{key}": value for key, value in held.items()}
            against.append(row | {"calls": calls, "estimates": round(estimates, 2)})
    times = level(first_stage(of.cascade).denoiser.sigmas(steps)[:-1])
    for name in TIMED:
        for low, high in MOMENTS:
            row = {"condition": name, "from": low, "to": high, "steps": int(((times >= low) & (times <= high)).sum())}
            moments.append(row | of.follows(pictures["moment", name, (low, high)], name))
    middle = of.whole.image.shape[3] // 2
    for name in PLACED:
        for side, columns in {"left": slice(0, middle), "right": slice(middle, None)}.items():
            keys: dict[str, tuple[Any, ...]] = {"left half": ("place", name), "everywhere": ("alone", name, 1.0)}
            for given, key in (keys | {"nowhere": ("none",)}).items():
                found = of.follows(pictures[key], name, columns=columns)
                places.append({"condition": name, "given": given, "measured": side, **found})
    return {"alone": alone, "against": against, "moment": moments, "place": places}


def rank_correlation(values: Sequence[float]) -> float:
    """Spearman's, of values with their places: 1 if they rise all along."""
    ranks = torch.tensor(values).argsort().argsort().double()
    return float(torch.corrcoef(torch.stack([ranks, torch.arange(len(ranks)).double()]))[0, 1])


def picked(rows: Iterable[Row], **where: Any) -> list[Row]:
    return [row for row in rows if all(row[key] == value for key, value in where.items())]


def plot(found: dict[str, list[Row]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    (alone, against), (moment, place) = figure.subplots(2, 2)
    plot_alone(alone, found["alone"])
    plot_against(against, found["against"])
    plot_moments(moment, found["moment"], found["alone"])
    plot_places(place, found["place"])
    for panel in (alone, against, moment, place):
        panel.axhline(0, color="#22211f", linewidth=0.8)
        panel.set_ylabel("closed (chance 0, perfect 1)")
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_ylim(-0.15, 1.25)  # room for the legend above all that can be
        panel.legend(frameon=False, fontsize=8, loc="upper center", ncols=2 if panel in (against, place) else 4)
    save_plot(path, figure)


def line(panel: Any, rows: Sequence[Row], prefix: str = "", **style: Any) -> None:
    values, errors = ([row[prefix + key] for row in rows] for key in ("closed", "error"))
    weights = [row["weight"] for row in rows]
    panel.errorbar(weights, values, errors, elinewidth=0.8, capsize=2, marker="o", markersize=4, **style)


def plot_alone(panel: Any, rows: Sequence[Row]) -> None:
    for name in dict.fromkeys(row["condition"] for row in rows):
        line(panel, picked(rows, condition=name), color=COLOURS[name], label=name)
    panel.set_title("how much: one condition alone", fontsize=11)
    panel.set_xlabel("strength")


def plot_against(panel: Any, rows: Sequence[Row]) -> None:
    for (name, other), marking in zip(AGAINST, ("-", "--", ":"), strict=True):
        own = picked(rows, condition=name, other=other)
        line(panel, own, color=COLOURS[name], linestyle=marking, label=f"{name}, its strength growing")
        style = {"color": COLOURS[other], "linestyle": marking, "markerfacecolor": "white"}
        line(panel, own, "other_", label=f"the {other} of another Scene", **style)
    panel.set_title("how much: against another Scene's condition", fontsize=11)
    panel.set_xlabel("strength of the first")


def plot_moments(panel: Any, rows: Sequence[Row], alone: Sequence[Row]) -> None:
    width = 0.8 / len(TIMED)
    for i, name in enumerate(TIMED):
        places = [k + (i - (len(TIMED) - 1) / 2) * width for k in range(len(MOMENTS) + 1)]
        own = picked(rows, condition=name) + picked(alone, condition=name, weight=1.0)
        values, errors = ([row[key] for row in own] for key in ("closed", "error"))
        panel.bar(places, values, width, yerr=errors, error_kw={"linewidth": 0.8}, color=COLOURS[name], label=name)
    steps = [picked(rows, condition=TIMED[0], **{"from": low})[0]["steps"] for low, _ in MOMENTS]
    labels = [f"{high:g} to {low:g}\n{n} steps" for (low, high), n in zip(MOMENTS, steps, strict=True)]
    panel.set_xticks(range(len(labels) + 1), [*labels, f"always\n{sum(steps)} steps"])
    panel.set_title("when: only at these noise levels (times)", fontsize=11)


def plot_places(panel: Any, rows: Sequence[Row]) -> None:
    looks = {("left half", "left"): ("left half, where it is given", "#0072b2")}
    looks |= {("left half", "right"): ("right half, where it is not", "#e69f00")}
    width = 0.35
    for k, ((given, side), (label, colour)) in enumerate(looks.items()):
        own = [picked(rows, condition=name, given=given, measured=side)[0] for name in PLACED]
        places = [i + (k - 0.5) * width for i in range(len(PLACED))]
        values, errors = ([row[key] for row in own] for key in ("closed", "error"))
        panel.bar(places, values, width, yerr=errors, error_kw={"linewidth": 0.8}, color=colour, label=label)
        for other, marker in {"everywhere": "^", "nowhere": "v"}.items():
            ends = [picked(rows, condition=name, given=other, measured=side)[0]["closed"] for name in PLACED]
            told = f"the same half, given {other}" if k else None
            panel.plot(places, ends, marker, color="#22211f", markerfacecolor="white", markersize=6, label=told)
    panel.set_xticks(range(len(PLACED)), PLACED)
    panel.set_title("where: given for the left half alone", fontsize=11)


def main() -> None:
    args = options(__doc__, count=16, steps=12).parse_args()
    torch.set_num_threads(1)
    started = time.process_time()
    cascade = Cascade.load(args.model).to(pick_device(), torch.bfloat16)
    of = Measured(cascade, args.count)
    found = measure(of, args.steps)
    monotone = {
        name: round(rank_correlation([row["closed"] for row in picked(found["alone"], condition=name)]), 2)
        for name in of.scored
    }
    for title, rows in found.items():
        show(rows, title)
    guidance = cascade.stages[0].sampling.guidance
    about = {"model": cascade.sha256, "count": args.count, "steps": args.steps, "guidance": guidance}
    about |= {"precision": "bf16", "processor_s": round(time.process_time() - started), "rank_correlation": monotone}
    print(about)
    if args.json:
        save_json(args.json, {"about": about, **found})
    if args.plot:
        plot(found, args.plot)


if __name__ == "__main__":
    main()
