"""Text to image: a caption alone, with semantics from a prior, and captions joined by AND and NOT.

python examples/text_to_image.py
python examples/text_to_image.py --model models/mine --seed 7
"""

from composer import Prior
from composer.studio import ExampleRow, Studio, run
from composer.tasks.composition import from_words
from composer.tasks.papers import combine, text_to_image

CAPTION = "a large shiny red sphere, on grass under a clear sky"
PRIOR = "scenes_prior_diffusion"


def caption_alone(studio: Studio) -> ExampleRow:
    """Draws a caption with several seeds."""
    return studio.row(
        "A caption alone",
        f"Five pictures of *{CAPTION}*.",
        f'compose --caption "{CAPTION}"',
        [],
        text_to_image(studio.model, CAPTION),
        count=5,
    )


def caption_and_prior(studio: Studio) -> ExampleRow:
    """Draws the same with image embeddings that a prior draws for the caption."""
    prior = Prior.load(PRIOR).to(studio.model.device)
    return studio.row(
        "With a prior",
        "The same caption; for each seed a prior draws the semantics of a picture that the caption might have.",
        f'compose --caption "{CAPTION}" --prior {PRIOR}',
        [],
        text_to_image(studio.model, CAPTION, prior),
        count=5,
    )


def and_not(studio: Studio) -> ExampleRow:
    """Adds a caption to another one, and leads away from one."""
    model = studio.model
    also, never = "a large blue torus, on sand under a night sky", "under a clear sky on stone"
    asked = from_words(model, "caption", CAPTION)
    return studio.row(
        "AND and NOT",
        f"*{CAPTION}*; AND *{also}*; NOT *{never}*: sums of guidance, each caption with its own weight.",
        [
            f'compose --caption "{CAPTION}"',
            f'compose --caption "{CAPTION}" --and "{also}:3"',
            f'compose --caption "{CAPTION}" --not "{never}:2"',
        ],
        [],
        [
            ("alone", asked),
            ("AND sand and night", combine(model, asked, [(also, 3.0)])),
            ("NOT a clear sky", combine(model, asked, [(never, -2.0)])),
        ],
    )


EXAMPLES = (caption_alone, caption_and_prior, and_not)

if __name__ == "__main__":
    run(__doc__, *EXAMPLES)
