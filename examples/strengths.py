"""Strengths: how much, when and where a condition counts.

python examples/strengths.py                                     # Scenes
python examples/strengths.py sketch.jpg palette.jpg
"""

from dataclasses import replace

from composer import Strength, open_region
from composer.studio import ExampleRow, Studio, run

WEIGHTS = (0.0, 0.5, 1.0, 2.0)
HALVES = {"left half": "0,0,0.5,1", "right half": "0.5,0,1,1"}


def how_much(studio: Studio) -> ExampleRow:
    """Gives a palette other weights."""
    a, b = studio.pictures("scene02", "scene19")
    asked = a.source.pick("sketch", "depth") | b.source.pick("palette")
    return studio.row(
        "How much",
        "Sketch and depth of one Scene; the palette of another counts 0, half, fully, and twice.",
        [f"compose --sketch {a} --depth {a} --palette {b}:{weight:g}" for weight in WEIGHTS],
        [*studio.taken(a, "sketch", "depth"), *studio.taken(b, "palette")],
        [(f"palette x {w:g}", replace(asked, strengths={"palette": Strength(weight=w)})) for w in WEIGHTS],
    )


def when(studio: Studio) -> ExampleRow:
    """Lets a sketch count at some noise levels only."""
    a, b = studio.pictures("scene02", "scene19")
    asked = a.source.pick("sketch") | b.source.pick("semantics")
    spans = ((0.0, 1.0), (0.7, 1.0), (0.0, 0.7))
    return studio.row(
        "When",
        "The semantics of one Scene; the sketch of another counts always, early (layout), or late (details).",
        [f"compose --sketch {a}:1@{low:g}-{high:g} --semantics {b}" for low, high in spans],
        [*studio.taken(a, "sketch"), *studio.taken(b)],
        [(f"sketch at {s[0]:g}-{s[1]:g}", replace(asked, strengths={"sketch": Strength(interval=s)})) for s in spans],
    )


def where(studio: Studio) -> ExampleRow:
    """Lets shapes count in one half of the picture."""
    a, b = studio.pictures("scene02", "scene19")
    names = ("sketch", "depth", "instances")
    asked = a.source.pick(*names) | b.source.pick("semantics")
    there = {half: Strength(region=open_region(place).to(studio.model.device)) for half, place in HALVES.items()}
    commands = [f"{' '.join(f'--{n} {a}:1:{place}' for n in names)} --semantics {b}" for place in HALVES.values()]
    return studio.row(
        "Where",
        "The semantics of one Scene; sketch, depth and instances of another count in the left half, and in the right.",
        [f"compose {command}" for command in commands],
        [*studio.taken(a, *names), *studio.taken(b)],
        [(half, replace(asked, strengths=dict.fromkeys(names, strength))) for half, strength in there.items()],
    )


EXAMPLES = (how_much, when, where)

if __name__ == "__main__":
    run(__doc__, *EXAMPLES)
