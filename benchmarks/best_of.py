"""The best of several: what choosing among N pictures by adherence gains, also by measures that the choice never saw.

For Scenes of the split `val`, 16 candidates are drawn for each request with the included model; the best of N is chosen
as `--best-of N` does, by the mean of what all that was asked closes:

    python benchmarks/best_of.py --json benchmarks/results/best_of.json --plot docs/pictures/best_of.png

Of 16 candidates there are 16 best of 1 and four best of 4, which are averaged within a Scene; errors are standard
errors over the Scenes. `chosen_by` is the score that the choice maximises. Readers err, and the best of many is partly
the one that they err about most, so a gain in it proves little. Therefore also what the choice never saw: `unseen`,
what the same pictures close of the Scenes' representations that were not asked for; `kinds`, how well the kinds of
things in the picture agree with the true Scene's (intersection over union), read by a network that chooses for `all`
alone; and `pixels`, the mean absolute difference from the true picture, as `closed`.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import options, save_json, save_plot, show
from rich.progress import Progress
from torch import Tensor

from composer.cascade.cascade import Cascade
from composer.cascade.options import SampleOptions
from composer.cascade.parts import Parts
from composer.devices import pick_device
from composer.evaluation.adherence import quantise
from composer.evaluation.reading import Reading
from composer.evaluation.samples import sample_of

MOST = 16
NUMBERS = 1, 4, 16
LEAST = 8  # pixels of a kind of thing that count as one being there
REQUESTS = {
    "caption": (("caption",), ()),
    "caption + palette": (("caption", "palette"), ()),
    "sketch + another's semantics": (("sketch",), ("semantics",)),
    "all": (("caption", "semantics", "palette", "sketch", "instances", "depth", "intensity"), ()),
}
LOOKS = {
    "caption": "#009e73",
    "caption + palette": "#d55e00",
    "sketch + another's semantics": "#0072b2",
    "all": "#22211f",
}
CHECKED = {"caption": "kinds", "caption + palette": "kinds", "sketch + another's semantics": "depth", "all": "pixels"}
"""The measure of the plot that the choice of each request does not see."""

Scores = dict[str, Tensor]
"""Name -> (scenes candidates)."""


def kinds_of(categories: Tensor) -> Tensor:
    """Which kinds of things are there, (b k) bool, of maps (b h w) of categories."""
    counts = torch.stack([(categories == k).sum((1, 2)) for k in range(1, 6)], 1)
    return counts >= LEAST


def agreement(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of kinds of things; 1 where neither has any."""
    both, either = (a & b).sum(1), (a | b).sum(1)
    return torch.where(either > 0, both / either.clamp(min=1), 1.0)


class Requests:
    """Candidates for requests about a sample of Scenes.

    Args:
        cascade: The model.
        count: Number of Scenes.
        steps: Of sampling.
    """

    def __init__(self, cascade: Cascade, count: int, steps: int):
        self.cascade, self.steps = cascade, steps
        self.batch = sample_of("scenes:val", count, cascade.stages[0].size)
        self.parts, self.wanted = cascade.decompose(self.batch), cascade.read(self.batch)
        self.other = [(i + 1) % count for i in range(count)]

    def mixed(self, reps: Parts, name: str) -> Parts:
        """Representations of what a request is about: looks of another Scene where it asks for them."""
        taken = [n for n in ("semantics", "palette", "caption") if n in reps] if REQUESTS[name][1] else []
        return reps | reps.pick(*taken).rows(self.other)

    def draw(self, name: str, i: int) -> Tensor:
        """The candidates for Scene i, as PNGs would keep them."""
        mine, theirs = REQUESTS[name]
        asked = self.mixed(self.parts, name).pick(*mine, *theirs).row(i)
        seeds = [i * MOST + k for k in range(MOST)]
        first = self.cascade.stages[0].name
        return quantise(self.cascade.sample(asked, seeds, SampleOptions(until=first, steps=self.steps)).cpu())

    def score(self, name: str, i: int, images: Tensor) -> Scores:
        """What the candidates close, each (candidates,), and the measures that no choice sees."""
        images = images.to(self.cascade.device)
        reading = Reading(self.cascade, images)
        found = reading.closed(self.mixed(self.wanted, name).row(i))
        truth = self.batch["instances"][i : i + 1, 0].round()
        kinds = kinds_of(reading.parts(["instances"])["instances"][:, 0].round().cpu())
        found["kinds"] = agreement(kinds, kinds_of(truth))
        true = self.batch["image"]
        chance = torch.cat([true[:i], true[i + 1 :]]).sub(true[i]).abs().mean()
        found["pixels"] = 1 - images.cpu().sub(true[i]).abs().mean((1, 2, 3)) / chance
        return found


def best(scores: Scores, asked: Sequence[str], n: int) -> dict[str, Tensor]:
    """What the best of n have, by name: (scenes,) means over the groups of n candidates."""
    score = torch.stack([scores[name] for name in asked]).mean(0)
    groups = score.reshape(len(score), -1, n)
    chosen = groups.argmax(2, keepdim=True)
    every = {**scores, "chosen_by": score}
    return {name: value.reshape(len(score), -1, n).gather(2, chosen)[..., 0].mean(1) for name, value in every.items()}


def summary(values: Tensor) -> dict[str, float]:
    return {"mean": round(float(values.mean()), 3), "error": round(float(values.std() / len(values) ** 0.5), 3)}


def measure(of: Requests) -> list[dict[str, Any]]:
    count, rows = len(of.batch["image"]), []
    with Progress() as bar:
        task = bar.add_task("drawing", total=len(REQUESTS) * count)
        for name, (mine, theirs) in REQUESTS.items():
            found = []
            for i in range(count):
                found.append(of.score(name, i, of.draw(name, i)))
                bar.advance(task)
            scores = {key: torch.stack([one[key] for one in found]) for key in found[0]}
            asked = [*mine, *theirs]
            once = best(scores, asked, 1)
            for n in NUMBERS:
                kept = best(scores, asked, n)
                row = {"request": name, "n": n, "chosen_by": summary(kept["chosen_by"])}
                row |= {"gain": summary(kept["chosen_by"] - once["chosen_by"])}
                row |= {"asked": {key: summary(kept[key]) for key in asked}}
                row |= {key: summary(kept[key]) for key in ("kinds", "pixels")}
                unseen = [key for key in of.wanted if key in kept and key not in asked]
                row |= {"unseen": {key: summary(kept[key]) for key in unseen}}
                row |= {"check": CHECKED[name], "checked": summary(kept[CHECKED[name]])}
                row |= {"check_gain": summary(kept[CHECKED[name]] - once[CHECKED[name]])}
                rows.append(row)
    return rows


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for panel, key in ((left, "chosen_by"), (right, "checked")):
        for k, (name, colour) in enumerate(LOOKS.items()):
            own = [row for row in rows if row["request"] == name]
            places = [i + 0.04 * (k - 1.5) for i in range(len(own))]  # so that no error bar hides another
            values, errors = ([row[key][part] for row in own] for part in ("mean", "error"))
            label = name if key == "chosen_by" else f"{name}: {CHECKED[name]}"
            style = {"color": colour, "marker": "o", "markersize": 5, "elinewidth": 0.8, "capsize": 2}
            panel.errorbar(places, values, errors, label=label, **style)
        panel.set_xticks(range(len(NUMBERS)), [str(n) for n in NUMBERS])
        panel.set_xlabel("best of")
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False, fontsize=8)
    left.set_ylim(0, 1)
    left.set_title("what was asked, by which they were chosen (closed)", fontsize=11)
    right.set_title("what the choice did not see", fontsize=11)
    save_plot(path, figure)


def told(row: dict[str, Any]) -> dict[str, str]:
    """A row as a line of a table: means with their errors."""
    columns = ("chosen_by", "gain", "checked", "check_gain", "kinds", "pixels")
    says = {key: f"{row[key]['mean']:.3f} ± {row[key]['error']:.3f}" for key in columns}
    return {"request": row["request"], "n": row["n"], "check": row["check"], **says}


def main() -> None:
    args = options(__doc__, count=16, steps=12).parse_args()
    torch.set_num_threads(1)
    started = time.process_time()
    cascade = Cascade.load(args.model).to(pick_device(), torch.bfloat16)
    of = Requests(cascade, args.count, args.steps)
    rows = measure(of)
    show([told(row) for row in rows], width=160)
    true = agreement(
        kinds_of(of.cascade.read({"image": of.batch["image"]})["instances"][:, 0].round().cpu()),
        kinds_of(of.batch["instances"][:, 0].round()),
    )
    about = {"model": cascade.sha256, "count": args.count, "steps": args.steps, "precision": "bf16"}
    about |= {"guidance": cascade.stages[0].sampling.guidance, "kinds_of_true_pictures": summary(true)}
    about |= {"processor_s": round(time.process_time() - started)}
    print(about)
    if args.json:
        save_json(args.json, {"about": about, "rows": rows})
    if args.plot:
        plot(rows, args.plot)


if __name__ == "__main__":
    main()
