"""Draws all examples as one page, docs/gallery/README.md. What is drawn already, by the same model, stays.

python examples/gallery.py                                       # make gallery
python examples/gallery.py --only recombined inpainted --again
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import best_of
import colorize
import edit_region
import embeddings
import interpolation
import pose_and_try_on
import recombine
import reconfigure
import restyle
import strengths
import text_to_image
import torch
import variations
from rich.progress import Progress

from composer import Cascade, SampleOptions
from composer.storage.files import write_atomically
from composer.studio import Example, Studio, make_table

FAMILIES = (
    *(text_to_image, best_of, recombine, variations, interpolation, reconfigure),
    *(colorize, restyle, pose_and_try_on, edit_region, embeddings, strengths),
)
REMARKS: dict[str, str] = {
    "caption_alone": "Grass and sky come as asked. What stands there is rarely red and never a sphere: the caption "
    "hardly decides the objects, and without a map of shapes the model draws lumps, here as in all rows below.",
    "caption_and_prior": "Thanks to the prior most are red now; still no spheres, and seed 0 is yellow.",
    "and_not": "Ground and sky are added and removed as asked; the blue torus is missing.",
    "only_one": "Snow, wood and dusk are there, the objects and the clear sky are not.",
    "best_of_eight": "Among eight there is mostly one with a red or a pink object and the right sky; none has both "
    "objects of its caption.",
    "recombined": "All objects turn blue, since those of the second Scene are; the sand still has the pavement's "
    "joints, since the sketch has them.",
    "from_a_drawing": "Where the drawing's shapes stay, so do its colours; little of the Scene's semantics is visible.",
    "of_semantics": "Ground, sky and the object's colour stay, shapes do not; with seed 0 the colour is lost too.",
    "of_subsets": "Semantics alone give the colours of fur, but no cat: the model knows only seven photographs.",
    "from_one_to_another": "The change is not gradual: between 0.33 and 0.44 everything changes at once.",
    "in_place": "Sky, objects and ground change one after the other; at 0 the cone should be pink, and is not.",
    "other_shapes": "The ground should have stayed stone but lost its joints; the sphere is red, not orange.",
    "in_other_words": "Ground and sky follow the captions; the cylinder does not turn blue, nor into a cone, since the "
    "shapes were kept.",
    "by_a_picture": "Blue and grey come through; the torus' turquoise and pink land on patches of fur.",
    "by_a_person": "Cream and blue, or blue alone: the proportions are wrong.",
    "between_palettes": "The sky stays grey for the first half.",
    "photograph": "What looks like brush strokes are the lines of the sketch: the model has no finer detail "
    "to draw from.",
    "scene": "At 0 the Scene should have its own looks; its cones and its cube are yellow and its planks are gone.",
    "other_pose": "Shapes and background are right; the objects have several colours each.",
    "worn": "The suit takes on the Scene's green and pink, smeared, and with colours of neither: semantics and palette "
    "of a whole picture say too little about a garment.",
    "inpainted": "Something appears, once red, never a cube; the pavement's joints are lost.",
    "outpainted": "Sky and ground continue almost without a seam; the object is a lump.",
    "colorized": "The seam is the border of the region, as asked.",
    "varied": "Shapes stay and colours vary; the checks of the floor are lost.",
    "from_the_latent": "From 0.3 on, the objects are different ones.",
    "between_latents": "Halfway, the objects are neither a torus nor cubes.",
    "turned": "The sky changes as asked; the green cube vanishes, which nobody asked for.",
    "components": "Sky and ground are not right even with 16 components.",
    "how_much": "From half to twice, little changes: half is nearly enough.",
    "when": "Early alone gives positions and sizes, late alone the outlines; neither gives the torus, nor do both.",
    "where": "In the other half the objects are lumps, not those of the Scene that gave only its semantics.",
}
"""What a row shows and what it does not, written with its pictures in sight."""

SEEN = "efce4ada4305e354fa31db1a8e2c0c1041af456dde15e6d8b5d0b96ed4b00d9a"
"""SHA-256 of the model that drew those."""

HEAD = """# Gallery

Everything here was drawn by the included model, `scenes256`, at 64 pixels and upsampled to 256. `make gallery` draws
it: it runs the scripts in [examples](../../examples). The Scenes are from a split that no training saw; the photographs
are those of scikit-image, and crops of them were in the training. We chose the inputs for what they show, but not the
results: they have the first seeds, 0, 1, 2, and where the best of several was kept, the text says so.

The commands run in this folder; with `--precision bf16` they draw the same pictures, but for JPEG compression. The
tables give the adherence ("closed"): each result is decomposed again and compared with what was asked. 1 is a perfect
match, 0 no better than an unrelated picture, and below 0 worse than that. "Seen" is what we noticed when we looked at
the results.
"""


def main(args: Sequence[str] | None = None) -> None:
    """Draws the rows that are missing, and writes the page."""
    every = {make.__name__: make for family in FAMILIES for make in family.EXAMPLES}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(every), choices=list(every), metavar="ROW")
    parser.add_argument("--again", action="store_true", help="draw also what is there already")
    parser.add_argument("--model", default="scenes256", help="a model's folder")
    parser.add_argument("--steps", type=int, help="sampling steps (default: the model's)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16", help="inside the network")
    parser.add_argument("--out", type=Path, default=Path("docs/gallery"), help="folder to write to")
    o = parser.parse_args(args)
    model = Cascade.load(o.model).to("cpu", torch.bfloat16 if o.precision == "bf16" else None)
    options = SampleOptions(steps=o.steps)
    about = {"model": model.sha256, "precision": o.precision, **options.to_dict()}
    done = _done(o.out, about)
    missing = [name for name in o.only if o.again or name not in done]
    with Progress() as bar:
        rows, steps = bar.add_task("rows", total=len(missing)), bar.add_task("steps")

        def progress(numbers: Sequence[int]) -> Iterator[int]:
            bar.reset(steps, total=len(numbers))
            for number in numbers:
                yield number
                bar.advance(steps)

        studio = Studio(model, o.out, progress=progress, options=options)
        for name in missing:
            bar.update(rows, description=name)
            done[name] = _draw(every[name], studio)
            write_atomically(o.out / "figures.json", (json.dumps({**about, "rows": done}, indent=1) + "\n").encode())
            bar.advance(rows)
    write_atomically(o.out / "README.md", page(done).encode())
    print(f"see {o.out / 'README.md'}")
    if model.sha256 != SEEN:
        print("note: the remarks were written of another model's pictures; look at these ones")


def _done(folder: Path, about: dict[str, Any]) -> dict[str, Any]:
    """The rows that were drawn in the same way."""
    path = folder / "figures.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    rows: dict[str, Any] = found.pop("rows", {})
    return rows if found == about else {}


def _draw(make: Example, studio: Studio) -> dict[str, Any]:
    row = make(studio)
    row.save(studio.folder / make.__name__)
    return {name: getattr(row, name) for name in ("title", "claim", "commands", "closed", "moving")}


def page(done: dict[str, Any]) -> str:
    """The page, as GitHub shows it."""
    parts = [HEAD]
    for family in FAMILIES:
        name, about = family.__name__, (family.__doc__ or "").splitlines()[0]
        title, _, rest = about.partition(": ")
        parts.append(f"## {title}\n\n{rest[0].upper() + rest[1:]} By [{name}.py](../../examples/{name}.py).\n")
        parts += [_section(make.__name__, done[make.__name__]) for make in family.EXAMPLES if make.__name__ in done]
    return "\n".join(parts)


def _section(name: str, row: dict[str, Any]) -> str:
    pictures = [f"![{row['title']}]({name}.jpg)"] + ([f"![As a film]({name}.gif)"] if row["moving"] else [])
    commands = "\n".join(["```bash", *row["commands"], "```"])
    remark = [f"**Seen:** {REMARKS[name]}"] if name in REMARKS else []
    parts = [f"### {row['title']}", row["claim"], *remark, *pictures, commands, make_table(row["closed"])]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
