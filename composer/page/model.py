"""What a model's conditions are, for people, and what it reads in a person's words."""

from typing import Any

import torch

from composer.cascade.cascade import Cascade
from composer.cascade.stage import Stage
from composer.decomposition import Decomposer
from composer.names import Kind
from composer.page.watching import to_url
from composer.tasks.composition import from_words

ABOUT = {
    "caption": "what the picture shows, in words",
    "semantics": "what the picture is about, and its look",
    "palette": "its colours, wherever they are",
    "sketch": "its outlines",
    "depth": "what is near and what is far",
    "instances": "which things are where",
    "intensity": "its lights and darks, without colour",
    "objects": "phrases, each with the box that it fills",
}
"""The usual conditions, in a line each."""


def describe_model(model: Cascade) -> dict[str, Any]:
    """What the page needs to know of a model, as JSON."""
    first, last = model.stages[0], model.stages[-1]
    conditions = [_describe(name, by) for name, by in asked(model).items() if name != "objects"]
    words = [by.vocabulary for by in asked(model).values() if by.vocabulary is not None]
    return {
        "name": model.spec.get("name", ""),
        "identity": model.identity,
        "base_size": first.size,
        "size": last.size,
        "sizes": [stage.size for stage in model.stages],
        "stages": [stage.name for stage in model.stages],
        "conditions": conditions,
        "vocabulary": list(words[0]) if words else None,
        "objects": "objects" in asked(model),
        "defaults": {"steps": getattr(first.sampling, "steps", None), "guidance": first.sampling.guidance},
        "previews": isinstance(first, Stage),
    }


def asked(model: Cascade) -> dict[str, Decomposer]:
    """The conditions that a person can ask for, and their decomposers."""
    by = dict(model.decomposition.named())
    return {name: by[name] for name in model.names if name in by and by[name].kind != Kind.MASK}


def _describe(name: str, by: Decomposer) -> dict[str, Any]:
    kind = None if by.kind is None else str(by.kind)
    about = ABOUT.get(name) or (type(by).__doc__ or "").strip().partition("\n")[0]
    can_read = by.can_read({"image": torch.zeros(1, 3, 64, 64)})
    from_text = type(by).from_text is not Decomposer.from_text
    spatial = by.kind in (Kind.STRUCTURE, Kind.SEGMENTATION, Kind.LUMINANCE)
    return {
        "name": name,
        "kind": kind,
        "about": about,
        "from_picture": can_read,
        "from_words": from_text,
        "spatial": spatial,
    }


def read_words(model: Cascade, condition: str, text: str) -> dict[str, Any]:
    """What the model reads in a text: words that it does not know, a preview, or what is wrong with it."""
    by = asked(model).get(condition)
    if by is None:
        raise KeyError(f"this model has no condition of that name; it has {', '.join(asked(model))}")
    try:
        parts = from_words(model, condition, text).parts
        shown = by.preview(parts[condition])[0]
        unknown = list(by.unread(text))
    except (KeyError, ValueError) as error:
        return {"unknown": [], "url": None, "error": str(error.args[0] if error.args else error)}
    doubts = list(by.doubts(text))
    return {"unknown": unknown, "url": to_url(shown), "error": None, "doubts": doubts}
