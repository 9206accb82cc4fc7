"""Edits within a region: new content, other colours, variations, and outpainting; the rest stays, bit for bit.

python examples/edit_region.py                                   # Scenes, a photograph
python examples/edit_region.py photo.jpg
"""

from composer import Composition
from composer.studio import ExampleRow, Studio, run
from composer.tasks.composition import from_words
from composer.tasks.papers import colorize, variations


def inpainted(studio: Studio) -> ExampleRow:
    """Puts into a region what a caption says."""
    caption, box = "a large red cube, on stone under a dawn sky", "0.42,0.3,0.95,0.85"
    (picture,) = studio.pictures("scene00")
    _, frame = studio.within(picture, box)
    return studio.row(
        "Inpainting",
        f"*{caption}*, in a box of a Scene.",
        f'edit {picture} --region {box} --caption "{caption}"',
        studio.taken(picture),
        from_words(studio.model, "caption", caption),
        count=3,
        frame=frame,
    )


def outpainted(studio: Studio) -> ExampleRow:
    """Continues a picture to the right."""
    (picture,) = studio.pictures("scene23")
    _, frame = studio.beyond(picture, 0, 0, 0.5, 0)
    return studio.row(
        "Outpainting",
        "A Scene continues beyond its border, without any condition but the picture itself.",
        f"outpaint {picture} --by 0,0,0.5,0",
        studio.taken(picture),
        Composition(),
        count=3,
        frame=frame,
    )


def colorized(studio: Studio) -> ExampleRow:
    """Colours a region anew."""
    colours, box = "#2244aa 2, #88bbee 1", "0.05,0.05,0.6,0.95"
    (picture,) = studio.pictures("coffee")
    square, frame = studio.within(picture, box)
    palette = from_words(studio.model, "palette", colours)
    return studio.row(
        "Colorization within a region",
        f"Inside a box of a photograph, its intensity with the colours `{colours}`.",
        f'colorize {picture} --palette "{colours}" --region {box}',
        [*studio.taken(picture), *studio.preview(square.source.has, "intensity"), *studio.preview(palette, "palette")],
        colorize(studio.model, square.source, [palette]),
        frame=frame,
    )


def varied(studio: Studio) -> ExampleRow:
    """Draws a region's variations."""
    box = "0.05,0.3,0.6,0.95"
    (picture,) = studio.pictures("scene10")
    square, frame = studio.within(picture, box)
    return studio.row(
        "Variations within a region",
        "Inside a box of a Scene, sketch and depth stay; the rest is new for each seed.",
        f"vary {picture} --region {box} --keep sketch depth",
        [*studio.taken(picture), *studio.preview(square.source.has, "sketch", "depth")],
        variations(studio.model, square.source, ("sketch", "depth")),
        count=3,
        frame=frame,
    )


EXAMPLES = (inpainted, outpainted, colorized, varied)

if __name__ == "__main__":
    run(__doc__, *EXAMPLES)
