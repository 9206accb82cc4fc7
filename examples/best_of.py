"""The best of several: draw several pictures, decompose them again, keep the one with the highest adherence.

python examples/best_of.py
python examples/best_of.py --model models/mine --seed 3
"""

from composer.studio import ExampleRow, Studio, run
from composer.tasks.papers import text_to_image

CAPTIONS = (
    "a large red cube in front of a small blue sphere, on snow under a clear sky",
    "a small yellow torus left of a large pink cone, on wood under a dusk sky",
)


def best_of_eight(studio: Studio) -> ExampleRow:
    """Draws captions once, then the best of eight."""
    return _row(studio, "The best of eight", 8)


def only_one(studio: Studio) -> ExampleRow:
    """Draws captions once."""
    return _row(studio, "One picture per caption", 1)


def _row(studio: Studio, title: str, best: int) -> ExampleRow:
    many = f"the best of {best}, by adherence" if best > 1 else "one picture each"
    return studio.row(
        title,
        f"Two captions, two seeds, {many}.",
        [f'compose --caption "{words}"' for words in CAPTIONS],
        [],
        [(words, text_to_image(studio.model, words)) for words in CAPTIONS],
        count=2,
        best=best,
    )


EXAMPLES = (only_one, best_of_eight)

if __name__ == "__main__":
    run(__doc__, *EXAMPLES)
