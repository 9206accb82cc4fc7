"""Recombination: the layout of one picture with the looks of another.

python examples/recombine.py                                     # two Scenes that no training saw
python examples/recombine.py photo.jpg painting.jpg --seed 1
"""

from composer.studio import ExampleRow, Studio, run
from composer.tasks.papers import redraw

WHERE, HOW = ("sketch", "depth", "instances"), ("palette", "semantics")


def recombined(studio: Studio) -> ExampleRow:
    """Takes the layout of one picture and the looks of another."""
    a, b = studio.pictures("scene08", "scene16")
    return studio.row(
        "Recombined",
        "Sketch, depth and instances of one Scene, palette and semantics of another.",
        f"compose {' '.join(f'--{n} {a}' for n in WHERE)} {' '.join(f'--{n} {b}' for n in HOW)}",
        [*studio.taken(a, "sketch", "depth"), *studio.taken(b, "palette")],
        a.source.pick(*WHERE) | b.source.pick(*HOW),
        count=3,
    )


def from_a_drawing(studio: Studio) -> ExampleRow:
    """Starts from a rough drawing, made noisy."""
    drawing, scene = studio.pictures("drawing", "scene22")
    times = (0.5, 0.65, 0.8)
    asked = scene.source.pick("semantics")
    return studio.row(
        "From a rough drawing",
        "A flat drawing, noised and denoised again with a Scene's semantics: the more noise, the less of it stays.",
        [f"compose --semantics {scene} --start {drawing}:{time}" for time in times],
        [*studio.taken(drawing), *studio.taken(scene)],
        [(f"time {time}", redraw(studio.model, drawing.source, asked, time)) for time in times],
    )


EXAMPLES = (recombined, from_a_drawing)

if __name__ == "__main__":
    run(__doc__, *EXAMPLES)
