"""Reconfiguration: a picture is inverted, and drawn again with some conditions changed (Composer, section 3.4).

python examples/reconfigure.py                                   # two Scenes
python examples/reconfigure.py photo.jpg edited.jpg
"""

from composer.studio import ExampleRow, Studio, run
from composer.tasks.papers import reconfigure, translate


def other_shapes(studio: Studio) -> ExampleRow:
    """Changes sketch, depth and instances, keeps palette and semantics."""
    picture, edited = studio.pictures("scene13", "scene17")
    names, keep = ("sketch", "depth", "instances"), ("semantics", "palette")
    changed = " ".join(f"--{name} {edited}" for name in names)
    return studio.row(
        "Reconfiguration",
        "The first Scene's own noise, semantics and palette, with sketch, depth and instances of the second.",
        f"reconfigure {picture} {changed} --keep {' '.join(keep)}",
        [*studio.taken(picture), *studio.taken(edited, "sketch", "depth")],
        reconfigure(studio.model, picture.source, edited.source.pick(*names), keep, **studio.inverting),
    )


def in_other_words(studio: Studio) -> ExampleRow:
    """Translates a picture to what captions say."""
    before = "a shiny orange cylinder in the middle, on stone under a dawn sky"
    after = ("a shiny blue cylinder in the middle, on grass under a clear sky", "a shiny orange cone, on snow")
    (picture,) = studio.pictures("scene13", caption=before)
    model, inverting = studio.model, studio.inverting
    return studio.row(
        "Image translation",
        f"*{before}* becomes *{after[0]}*, and *{after[1]}*; sketch, depth and instances stay.",
        [f'translate {picture} --image-caption "{before}" --to "{words}"' for words in after],
        studio.taken(picture),
        [(words, translate(model, picture.source, words, **inverting)) for words in after],
    )


EXAMPLES = (other_shapes, in_other_words)

if __name__ == "__main__":
    run(__doc__, *EXAMPLES)
