"""Colorization: a picture's brightness stays, its colours come from elsewhere (Composer, section 3.3).

python examples/colorize.py                                      # a photograph
python examples/colorize.py photo.jpg colours.jpg others.jpg
"""

from composer.studio import ExampleRow, Studio, run
from composer.tasks.composition import from_words
from composer.tasks.papers import colorize

COLOURS = "#d9a441 3, #3b6ea5 2, #f2efe6 1"


def by_a_picture(studio: Studio) -> ExampleRow:
    """Takes the palette of another picture."""
    photo, colours = studio.pictures("chelsea", "scene03")
    return studio.row(
        "Colours of another picture",
        "A photograph's intensity with the palette of a Scene.",
        f"colorize {photo} --palette {colours}",
        [*studio.taken(photo, "intensity"), *studio.taken(colours, "palette")],
        colorize(studio.model, photo.source, [colours.source.has]),
    )


def by_a_person(studio: Studio) -> ExampleRow:
    """Takes colours and their shares from words."""
    (photo,) = studio.pictures("coffee")
    palette = from_words(studio.model, "palette", COLOURS)
    return studio.row(
        "Colours by hand",
        f"A photograph's intensity with the colours `{COLOURS}`.",
        f'colorize {photo} --palette "{COLOURS}"',
        [*studio.taken(photo), *studio.preview(palette, "palette")],
        colorize(studio.model, photo.source, [palette]),
        count=2,
    )


def between_palettes(studio: Studio) -> ExampleRow:
    """Goes from one picture's palette to another one's."""
    picture, a, b = studio.pictures("scene01", "scene12", "scene15")
    drawn = colorize(studio.model, picture.source, [a.source.has, b.source.has], 4, ("sketch",))
    return studio.row(
        "From palette to palette",
        "A Scene's intensity and sketch; the palette goes from that of the second to that of the third.",
        f"colorize {picture} --palette {a} {b} --frames 4 --keep sketch",
        [*studio.taken(picture, "sketch"), *studio.taken(a), *studio.taken(b)],
        [(share or "1.00", x) for share, x in drawn],
    )


EXAMPLES = (by_a_picture, by_a_person, between_palettes)

if __name__ == "__main__":
    run(__doc__, *EXAMPLES)
