"""Systems that draw from captions, on the same Scenes, with the same seeds, beside what their trainings cost.

    nice python benchmarks/systems.py --json benchmarks/results/systems.json --sheet docs/pictures/systems.jpg

`benchmarks/systems.yaml` lists the systems and explains its fields. Each draws a picture per Scene of the splits
`val` and `novel` from its caption. `kid` and `fid` compare them with the Scenes themselves, in the features of a CLIP
of Scenes, the same one for all systems; FID is biased upwards by a small --count, KID is not. `closed` is how far the
pictures go from chance (0) to a perfect match (1) with the caption, as that CLIP reads both; chance is that of
another Scene. `prompts` is the CLIP score of pictures of `scenes_prompts.csv`, and `another` that of the same
pictures with another prompt. `things` is the share of the pictures of complete captions, of one, two and three
things, in which the judge finds exactly these. The last row has true pictures: KID and FID of as many other Scenes,
what the Scenes themselves close, and the judge's own error. A system with boxes is given them for Scenes, but not for
prompts.

`pflop` is three times the forward pass of all training samples. `calls` are rows that the stages' networks compute
for a picture, a prior's not among them; `seconds` is processor time on one thread, with all that is asked. The judge
read no picture of a training and takes part in no choice. A CLIP may: a system that chooses by one gains in `closed`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from common import options, save_json, show
from rich.progress import Progress
from torch import Tensor

from composer.cascade.cascade import Cascade
from composer.cascade.options import SampleOptions
from composer.cascade.stage import Stage
from composer.decomposition import Batch
from composer.devices import pick_device
from composer.evaluation.adherence import quantise
from composer.evaluation.counting import NUMBERS, count_drawn
from composer.evaluation.metrics import Comparison, clip_score, read_by
from composer.evaluation.prompts import read_prompts, seeds_of
from composer.evaluation.samples import open_sample
from composer.evaluation.systems import System
from composer.images.sheet import sheet
from composer.prior.taking import prior_for
from composer.scenes.reader import READ_SIZE
from composer.scenes.things import load_judge
from composer.storage.files import read_text, replacing
from composer.storage.pretrained import locate
from decomposers import Agreement, Semantics

SPLITS = "val", "novel"
SHOWN = 8
PROMPTS = "asset:scenes_prompts.csv"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A system as the list has it; see `systems.yaml`."""

    name: str
    model: str
    prior: str | None = None
    best_of: int = 1
    boxes: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    samples: Mapping[str, int] = field(default_factory=dict)
    sides: Mapping[str, int] = field(default_factory=dict)

    def load(self, steps: int) -> System:
        cascade = Cascade.load(self.model).to(pick_device(), torch.bfloat16)
        prior = None if self.prior is None else prior_for(cascade, self.prior, {"caption"}, ())
        has_steps = isinstance(cascade.stages[0], Stage)
        how = SampleOptions(steps=steps if has_steps else None) | SampleOptions(**self.options)
        return System(self.name, cascade, prior, self.best_of, self.boxes, how)


def read_rows(path: Path) -> list[Row]:
    """The systems of a list.

    Raises:
        ValueError: It is no list of systems, or names one twice.
    """
    try:
        rows = [Row(**row) for row in yaml.safe_load(read_text(path))]
    except (TypeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: expected a list of systems, such as benchmarks/systems.yaml: {error}") from error
    if len({row.name for row in rows}) < len(rows) or not rows:
        raise ValueError(f"{path}: expected systems with different names, found {[row.name for row in rows]}")
    return rows


class Measures:
    """What all systems are measured by.

    Args:
        count: Scenes of each split, and of each number of things.
        prompts: Prompts of the file, at most; as many from the whole file as there are.
        clip: Weights of the CLIP that reads pictures and captions.
        rows: Pictures drawn at a time.
    """

    def __init__(self, count: int, prompts: int, clip: str, rows: int):
        self.count, self.rows = count, rows
        self.features, self.reader = read_by(Semantics(weights=clip)), Agreement(weights=clip)
        self.judge = load_judge(locate("asset:scenes_judge", wanted="the judge of things", who="benchmarks/systems.py"))
        every = read_prompts(PROMPTS)
        self.prompts = every[:: max(1, len(every) // prompts)][:prompts]

    def scenes(self, split: str, size: int, start: int = 0) -> Batch:
        return open_sample(f"scenes:{split}", self.count, size).read(range(start, start + self.count))

    def split(self, split: str, images: Tensor, true: Batch) -> dict[str, float]:
        """KID, FID and what the captions' adherence closes, of pictures of a split's Scenes."""
        real, captions = true["image"], true["caption"]
        comparison = Comparison(self.features, ["fid", "kid"], len(real))
        comparison.update(real, images)
        found = comparison.compute()
        wanted = self.reader({"caption": captions})
        near, far = (self.reader.distance(wanted, self.reader({"image": x})).mean() for x in (images, real.roll(1, 0)))
        return {"kid": found["kid"]["value"], "fid": found["fid"], "closed": 1 - float(near / far)}

    def measure(self, system: System, advance: Callable[[int], None]) -> tuple[dict[str, Any], Tensor]:
        """All measures of a system, and its pictures of `val`."""
        size = system.stages[-1].size
        found, kept = dict[str, Any](), dict[str, Tensor]()
        for split in SPLITS:
            true = self.scenes(split, size)
            drawn = []
            for at in range(0, self.count, self.rows):
                some = range(at, min(at + self.rows, self.count))
                batch = {name: true[name][at : at + self.rows] for name in ("caption", "boxes")}
                drawn.append(system.draw(batch, some))
                advance(len(some))
            kept[split] = torch.cat(drawn)
            found[split] = self.split(split, kept[split], true)
        found["prompts"] = self.measure_prompts(system, advance)

        def draw(index: Sequence[int], captions: list[str], seeds: Sequence[int]) -> Tensor:
            boxes = open_sample("scenes:val", self.count, size).read(index)["boxes"]
            return system.draw({"caption": captions, "boxes": boxes}, seeds)

        things = count_drawn(draw, self.judge, self.count, rows=self.rows, progress=advance)
        found["things"] = {number: row.drawn for number, row in things.items()}
        self.true_things = {number: row.true for number, row in things.items()}
        return found, kept["val"]

    def measure_prompts(self, system: System, advance: Callable[[int], None]) -> dict[str, float]:
        scores = []
        for at in range(0, len(self.prompts), self.rows):
            index = range(at, min(at + self.rows, len(self.prompts)))
            images = system.draw({"caption": [self.prompts[i].text for i in index]}, [seeds_of(i, 1)[0] for i in index])
            other = [(i + len(self.prompts) // 2) % len(self.prompts) for i in index]
            meanings = [[self.prompts[i].meaning for i in numbers] for numbers in (index, other)]
            scores.append(torch.stack([clip_score(images, words, self.reader) for words in meanings]))
            advance(len(index))
        score, another = torch.cat(scores, dim=1).mean(1).tolist()
        return {"score": score, "another": another}

    def true(self) -> dict[str, Any]:
        """What true pictures have: `closed` of the Scenes themselves, distances of as many others; call it last."""
        row: dict[str, Any] = {"name": "true pictures"}
        for split in SPLITS:
            own, others = self.scenes(split, READ_SIZE), self.scenes(split, READ_SIZE, self.count)
            row[split] = self.split(split, quantise(others["image"]), own)
            row[split]["closed"] = self.split(split, quantise(own["image"]), own)["closed"]
        return {**row, "things": self.true_things}

    @property
    def pictures(self) -> int:
        """How many pictures a system draws, candidates aside."""
        return self.count * (len(SPLITS) + len(NUMBERS)) + len(self.prompts)


def cost(row: Row, system: System, flops: int | None) -> dict[str, Any]:
    """What a system's training and drawing take."""
    return {
        "model": system.cascade.sha256,
        "prior": system.prior and system.prior.sha256,
        "parameters": system.parameters,
        "samples": dict(row.samples),
        "pflop": flops and flops / 1e15,
        "calls": system.calls / system.pictures,
        "seconds": system.seconds / system.pictures,
    }


def told(row: Mapping[str, Any]) -> dict[str, str]:
    """A row as a line of the table."""
    says = {"system": row["name"]}
    says |= {"million": format(row["parameters"] / 1e6, ".1f") if "parameters" in row else ""}
    says["samples"] = " + ".join(format(count, ",") for count in row.get("samples", {}).values())
    says |= {key: "-" if row.get(key) is None else format(row[key], ".3g") for key in ("pflop", "calls", "seconds")}
    for split in SPLITS:
        says |= {f"{split} {key}": format(row[split][key], ".2f" if key == "closed" else ".3f") for key in row[split]}
    says["prompts"] = format(row["prompts"]["score"], ".1f") if "prompts" in row else "-"
    says["bound 1, 2, 3"] = " ".join(format(shares["bound"], ".2f") for shares in row["things"].values())
    return says


def save_sheet(path: Path, captions: Sequence[str], pictures: Mapping[str, Tensor]) -> None:
    """Writes a contact sheet, a PNG or a JPEG by its suffix: a row per caption, a column per system."""
    drawn = [[images[i] for images in pictures.values()] for i in range(min(SHOWN, len(captions)))]
    picture = sheet(drawn, list(captions[: len(drawn)]), list(pictures))
    with replacing(path) as file:
        picture.save(file, "PNG" if path.suffix == ".png" else "JPEG", quality=90)


def main() -> None:
    parser = options(__doc__, count=64, steps=20, plot=False, model=False)
    parser.add_argument("--rows", type=Path, default=Path(__file__).with_suffix(".yaml"), help="list of systems (YAML)")
    parser.add_argument("--prompts", type=int, default=64, help="prompts, at most (default 64)")
    parser.add_argument("--clip", default="asset:scenes_clip_swaps", help="weights of the CLIP that measures")
    parser.add_argument("--at-once", type=int, default=8, help="pictures drawn at a time (default 8)")
    parser.add_argument("--sheet", type=Path, help="PNG or JPEG to write the contact sheet to")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = read_rows(args.rows)
    systems = {row.name: row.load(args.steps) for row in rows}  # a mistake shows before anything is drawn
    flops = {row.name: systems[row.name].training_flops(row.samples, row.sides) or None for row in rows}
    measures = Measures(args.count, args.prompts, args.clip, args.at_once)
    true = measures.scenes("val", READ_SIZE)
    results, pictures = list[dict[str, Any]](), {"true": true["image"]}
    with Progress() as bar:
        task = bar.add_task("drawing", total=len(rows) * measures.pictures)
        for row in rows:
            system = systems[row.name]
            found, pictures[row.name] = measures.measure(system, lambda count: bar.advance(task, count))
            results.append({"name": row.name, **cost(row, system, flops[row.name]), **found})
    results.append(measures.true())
    show([told(row) for row in results], width=200)
    if args.json:
        about = {"count": args.count, "steps": args.steps, "prompts": len(measures.prompts), "clip": args.clip}
        save_json(args.json, {"about": about | {"precision": "bf16", "threads": 1}, "rows": results})
    if args.sheet:
        save_sheet(args.sheet, true["caption"], pictures)


if __name__ == "__main__":
    main()
