"""Interprets what users pass to a model; where that makes no sense, the error says what to write instead."""

import operator
from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor

from composer.cascade.composition import Composition
from composer.cascade.options import SampleOptions
from composer.mistakes import did_you_mean

INSTEAD = {
    "seed": "seeds=0, or seeds=[0, 1, 2] for several images",
    "n": "seeds=range(4) for four images",
    "num_images_per_prompt": "seeds=range(4) for four images",
    "prompt": 'caption="..."',
    "text": 'caption="..."',
    "negative_prompt": 'composer.tasks.combine(model, asked, [("...", -1.0)])',
    "num_inference_steps": "options=SampleOptions(steps=...)",
    "guidance_scale": "options=SampleOptions(guidance=...)",
    "height": "options=SampleOptions(size=(height, width))",
    "width": "options=SampleOptions(size=(height, width))",
    "strength": 'Composition(..., strengths={"palette": Strength(0.5)})',
    "image": 'model.decompose("photo.png") takes an image apart, edit(model, "photo.png", ...) changes it',
    "device": 'model.to("cuda") before',
}
"""Arguments of other libraries -> what to write here."""

SAMPLING = {field.name for field in fields(SampleOptions)}
COMPOSING = {field.name for field in fields(Composition)}


def to_seeds(seeds: Any) -> list[int]:
    """A seed, or several, as a list.

    Raises:
        ValueError: There is none, or it is something else.
    """
    try:
        found = [operator.index(seed) for seed in (seeds if isinstance(seeds, Iterable) else [seeds])]
    except TypeError:
        found = []
    if not found:
        raise ValueError(f"expected whole numbers, one per image, such as seeds=0 or seeds=[0, 1, 2]; found {seeds!r}")
    return found


def to_composition(what: Any) -> tuple[Composition, dict[str, Tensor | str]]:
    """Converts what was asked to a composition, and its representations, some of which may still be text.

    Raises:
        ValueError: It is nothing that `Cascade.sample` takes.
    """
    if isinstance(what, Composition):
        return what, dict(what.parts)
    if what is None or isinstance(what, Mapping):
        return Composition(), dict(what or {})
    if names_picture(what):
        raise ValueError(f'decompose the picture first: model.decompose("{what}"), then choose parts with pick(...)')
    if isinstance(what, str):
        raise ValueError(f'words need the name of their condition: caption="{what}"')
    raise ValueError(
        'expected parts such as model.decompose("a.png").pick("palette"), words such as caption="a red cube", or a '
        f"Composition such as the `has` of a Source; found {type(what).__name__}"
    )


def names_picture(what: Any) -> bool:
    """Whether a value is probably the path of a picture."""
    suffixes = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
    return isinstance(what, Path) or (isinstance(what, str) and what.lower().endswith(suffixes))


def require_options(options: Any) -> None:
    """Checks that options are `SampleOptions`.

    Raises:
        ValueError: They are something else.
    """
    if not isinstance(options, SampleOptions | None):
        says = ", ".join(f"{name}={value!r}" for name, value in options.items()) if isinstance(options, dict) else "..."
        raise ValueError(f"expected options=SampleOptions({says}), found {type(options).__name__}")


def require_names(given: Iterable[str], known: Collection[str]) -> None:
    """Checks that a model has conditions of these names.

    Raises:
        KeyError: There is no such condition; the message suggests what was probably meant.
    """
    for name in [name for name in given if name not in known]:
        if name in SAMPLING:
            raise KeyError(f"{name} is not a condition but a sampling option: options=SampleOptions({name}=...)")
        if name in COMPOSING:
            raise KeyError(f"{name} is not a condition but a field of Composition: Composition(..., {name}=...)")
        if name in INSTEAD:
            raise KeyError(f"{name} is not a condition; write {INSTEAD[name]}")
        has = ", ".join(sorted(known)) or "none"
        raise KeyError(f"this model has no condition {name}{did_you_mean(name, known)}; it has {has}")
