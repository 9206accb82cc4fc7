"""Style transfer: the content of one picture in the style of another, at several strengths (Composer, section 3.3).

python examples/restyle.py                                       # two photographs, two Scenes
python examples/restyle.py photo.jpg painting.jpg
"""

from composer.studio import ExampleRow, Studio, run
from composer.tasks.papers import style_transfer

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


def photograph(studio: Studio) -> ExampleRow:
    """Goes from a photograph's own looks to those of another one."""
    return _row(studio, "Style transfer, photographs", *("chelsea", "retina"))


def scene(studio: Studio) -> ExampleRow:
    """Goes from a Scene's own looks to those of another one."""
    return _row(studio, "Style transfer, Scenes", *("scene21", "scene14"))


def _row(studio: Studio, title: str, *names: str) -> ExampleRow:
    content, style = studio.pictures(*names)
    model = studio.model
    return studio.row(
        title,
        "Sketch, depth and instances of the first; semantics and palette from its own (0) to those of the second (1).",
        [f"restyle {content} {style} --strength {strength:g}" for strength in STRENGTHS],
        [*studio.taken(content, "sketch", "depth"), *studio.taken(style, "palette")],
        [(f"strength {s:g}", style_transfer(model, content.source, style.source, s)) for s in STRENGTHS],
    )


EXAMPLES = (photograph, scene)

if __name__ == "__main__":
    run(__doc__, *EXAMPLES)
