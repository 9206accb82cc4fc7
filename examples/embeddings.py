"""What DALL-E 2 does with CLIP's embeddings (Ramesh et al. 2022): variations, text differences, principal components.

python examples/embeddings.py                                    # Scenes
python examples/embeddings.py photo.jpg other.jpg
"""

from composer.prior.taking import principal_components
from composer.studio import ExampleRow, Studio, run
from composer.tasks.papers import interpolations, text_difference, truncated, variations

ETAS = (0.0, 0.3, 0.6, 1.0)
COMPONENTS = (1, 2, 4, 8, 16)


def from_the_latent(studio: Studio) -> ExampleRow:
    """Varies a picture from its own initial noise."""
    (picture,) = studio.pictures("scene16")
    model, inverting = studio.model, studio.inverting
    return studio.row(
        "Variations from inverted noise",
        "Embedding and inverted noise determine a Scene; the more fresh noise is added, the freer the variation.",
        [f"vary {picture} --from-noise {eta:g}" for eta in ETAS],
        studio.taken(picture),
        [(f"eta {eta:g}", variations(model, picture.source, eta=eta, **inverting)) for eta in ETAS],
    )


def between_latents(studio: Studio) -> ExampleRow:
    """Interpolates embedding and initial noise."""
    a, b = studio.pictures("scene18", "scene06")
    return studio.row(
        "Interpolation with inverted noise",
        "Embeddings and inverted noises both go from one Scene to the other, so both ends are the Scenes themselves.",
        f"interpolate {a} {b} --between semantics --from-noises",
        [*studio.taken(a), *studio.taken(b)],
        interpolations(*(studio.model, a.source, b.source), between=("semantics",), latents=True, **studio.inverting),
    )


def turned(studio: Studio) -> ExampleRow:
    """Turns a picture from one caption to another."""
    before, after = "under a dawn sky", "under a night sky"
    shares = (0.0, 0.125, 0.25, 0.375, 0.5)
    (picture,) = studio.pictures("scene21")
    return studio.row(
        "Text differences",
        f"A Scene's embedding moves from *{before}* to *{after}*; its inverted noise stays.",
        f'turn {picture} --before "{before}" --after "{after}"',
        studio.taken(picture),
        text_difference(studio.model, picture.source, before, after, shares, **studio.inverting),
    )


def components(studio: Studio) -> ExampleRow:
    """Draws what the first principal components of an embedding hold."""
    (picture,) = studio.pictures("scene09")
    mean, axes = principal_components("scenes_prior_ar", [])
    return studio.row(
        "Principal components",
        "The embedding, cut to its first 1, 2, 4, 8 and 16 principal components of 128.",
        f"reconstruct {picture} --components {','.join(map(str, COMPONENTS))}",
        studio.taken(picture),
        truncated(studio.model, picture.source, mean, axes, COMPONENTS),
    )


EXAMPLES = (from_the_latent, between_latents, turned, components)

if __name__ == "__main__":
    run(__doc__, *EXAMPLES)
