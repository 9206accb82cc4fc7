"""Interpolation: from one picture to another, in all representations or in some (Composer, section 3.2).

python examples/interpolation.py                                 # two Scenes
python examples/interpolation.py a.jpg b.jpg
"""

from composer.studio import ExampleRow, Studio, run
from composer.tasks.papers import LOCAL, interpolations

FRAMES = 10


def from_one_to_another(studio: Studio) -> ExampleRow:
    """Interpolates what has in-betweens, and holds nothing."""
    a, b = studio.pictures("scene17", "scene07")
    return studio.row(
        "Interpolation",
        "Semantics and palette go from one Scene to another in ten frames; the command also writes them as a GIF.",
        f"interpolate {a} {b} --frames {FRAMES}",
        [*studio.taken(a, "palette"), *studio.taken(b, "palette")],
        interpolations(studio.model, a.source, b.source, FRAMES),
        moving=True,
    )


def in_place(studio: Studio) -> ExampleRow:
    """Interpolates how things look, and holds where they are."""
    a, b = studio.pictures("scene09", "scene19")
    return studio.row(
        "Interpolation with fixed shapes",
        "Semantics and palette go to those of the second Scene; sketch, depth and instances of the first one stay.",
        f"interpolate {a} {b} --keep {' '.join(LOCAL)}",
        [*studio.taken(a, *LOCAL), *studio.taken(b)],
        interpolations(studio.model, a.source, b.source, keep=LOCAL),
    )


EXAMPLES = (from_one_to_another, in_place)

if __name__ == "__main__":
    run(__doc__, *EXAMPLES)
