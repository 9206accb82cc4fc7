"""Variations: some conditions of a picture are kept, the rest is new (Composer, section 3.2).

python examples/variations.py                                    # a photograph, a Scene
python examples/variations.py photo.jpg --seed 5
"""

from composer.studio import ExampleRow, Studio, run
from composer.tasks.papers import variations

KEPT = (("semantics",), ("sketch",), ("sketch", "depth", "palette"), ("semantics", "sketch", "depth", "palette"))


def of_semantics(studio: Studio) -> ExampleRow:
    """Keeps the CLIP embedding alone."""
    (picture,) = studio.pictures("scene12")
    return studio.row(
        "Variations",
        "The semantics of a Scene stay; layout and lighting are new for each seed.",
        f"vary {picture} --keep semantics",
        studio.taken(picture),
        variations(studio.model, picture.source),
        count=4,
    )


def of_subsets(studio: Studio) -> ExampleRow:
    """Keeps more and more."""
    (picture,) = studio.pictures("chelsea")
    return studio.row(
        "Keeping more conditions",
        "Four subsets of what the model reads from a photograph, the same seed.",
        [f"vary {picture} --keep {' '.join(names)}" for names in KEPT],
        studio.taken(picture, "sketch", "depth", "palette"),
        [(", ".join(names), variations(studio.model, picture.source, names)) for names in KEPT],
    )


EXAMPLES = (of_semantics, of_subsets)

if __name__ == "__main__":
    run(__doc__, *EXAMPLES)
