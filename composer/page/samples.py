"""Pictures that come along, to try the page with."""

import io

from composer.data.examples import example
from composer.images.sheet import to_pil

SAMPLES = {
    "scene04": "a rendered Scene",
    "scene07": "another Scene",
    "drawing": "a drawing of half a minute",
    "chelsea": "a photograph of a cat",
    "coffee": "a photograph of a cup",
    "astronaut": "a photograph of a person",
    "rocket": "a photograph of a rocket",
}
"""Name -> what it shows."""


def draw_sample(name: str) -> bytes:
    """A sample as the bytes of a PNG."""
    data = io.BytesIO()
    to_pil(example(name)).save(data, "PNG")
    return data.getvalue()
