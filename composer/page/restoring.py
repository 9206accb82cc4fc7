"""A board of a PNG's recipe: everything as it was."""

import io
from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from composer.cascade.cascade import Cascade
from composer.cascade.options import SampleOptions
from composer.cascade.parts import Parts
from composer.cascade.recipe import name_precision
from composer.diffusion.strength import Strength
from composer.images.sheet import previews, read_recipe, to_pil
from composer.page.model import asked
from composer.page.pictures import TILE, Pictures, Taken
from composer.storage.formats import check_edit
from composer.tasks.composition import Composition, from_words
from composer.tasks.recipe import edited, parse_recipe, unpack

Board = dict[str, Any]


def restore_board(model: Cascade, taken: Taken, pictures: Pictures) -> tuple[Board | None, list[str]]:
    """Makes a board of the recipe in a picture's file.

    Args:
        model: Has to be the one that drew it.
        taken: The picture.
        pictures: Holds the picture that was edited, if it is an edit; takes the masks.

    Returns:
        The board, None where there is no recipe, or one that cannot be read; and what it does not say, in words.
    """
    try:
        found = read_recipe(taken.path)
    except ValueError:
        return None, []
    try:
        return _restore(model, found, taken, pictures)
    except (KeyError, ValueError) as error:
        return None, [f"the recipe in this picture cannot be used: {error.args[0] if error.args else error}"]


def _restore(
    model: Cascade, found: Mapping[str, Any], taken: Taken, pictures: Pictures
) -> tuple[Board | None, list[str]]:
    redo = parse_recipe(model, found)
    what = redo.composition
    notes: list[str] = []
    board: Board = {"task": "compose", "seeds": [redo.seed], "parts": _parts(model, what, taken, pictures, notes)}
    board |= {**_words(model, what, notes), "away": _away(model, what, taken, notes)}
    board |= _sampling(model, found, redo.options, notes)
    if "edit" in found:
        board |= _edit(found, pictures, notes)
    if what.start is not None or found.get("autoguidance") is not None:
        notes.append("it began with another picture's noise, or was guided by another model, which the board lacks")
    now = name_precision(model.precision)
    if redo.precision not in (None, now):
        notes.append(f"it was drawn in {redo.precision}, here it would be in {now}")
    return board, notes


def _parts(
    model: Cascade, what: Composition, taken: Taken, pictures: Pictures, notes: list[str]
) -> list[dict[str, Any]]:
    """The conditions: words where they give the same representation, else the recipe's own."""
    parts = []
    for name in (name for name in what.parts if name in asked(model)):
        source = what.sources.get(name, "")
        same = _same(model, name, source, what.parts[name])
        part: dict[str, Any] = {"condition": name}
        part |= {"text": source} if same else {**_of_recipe(model, name, what.parts[name], taken), "source": source}
        if name in what.strengths:
            region = what.strengths[name].region
            part |= _strength(what.strengths[name], pictures)
            if region is not None and not bool(((region == 0) | (region == 1)).all()):
                notes.append(f"its {name} counts partly at some places; on the board, fully or not at all")
        parts.append(part)
    return parts


def _of_recipe(model: Cascade, name: str, value: Tensor, taken: Taken) -> dict[str, Any]:
    """Names the recipe's own representation, and a preview of it."""
    file = f"recipe_{name}.png"
    to_pil(previews(model.decomposition, {name: value}, TILE)[name][0]).save(taken.made / file)
    return {"recipe": taken.id, "url": f"/api/pictures/{taken.id}/made/{file}"}


def _same(model: Cascade, name: str, words: str, value: Tensor) -> bool:
    """Whether words give this representation."""
    try:
        return bool(words) and torch.equal(from_words(model, name, words).parts[name], value)
    except ValueError:
        return False


def _strength(strength: Strength, pictures: Pictures) -> dict[str, Any]:
    how: dict[str, Any] = {"weight": strength.weight, "interval": list(strength.interval)}
    if strength.region is not None:
        how["place"] = {"mask": _mask(strength.region, pictures)}
    return how


def _mask(region: Tensor, pictures: Pictures) -> str:
    """The id of a mask that is white where a region is."""
    data = io.BytesIO()
    levels = ((region[0, 0].cpu() >= 0.5).byte() * 255).numpy()
    Image.fromarray(levels).save(data, "PNG")
    return pictures.add_mask(data.getvalue())


def _words(model: Cascade, what: Composition, notes: list[str]) -> Board:
    """The captions to follow besides and to avoid, as words."""
    rows: Board = {"also": [], "never": []}
    for other, weight in what.also:
        words = _caption(model, what, other, weight)
        if words is None:
            notes.append("a further caption of it cannot be written as words")
        else:
            rows["also" if weight > 0 else "never"].append({"words": words, "weight": abs(weight)})
    return rows


def _away(model: Cascade, what: Composition, taken: Taken, notes: list[str]) -> list[dict[str, Any]]:
    """What guidance led away from: words, or the recipe's own representation where it is the same as was asked."""
    parts = []
    for name, value in (what.away or Parts()).items():
        if name not in asked(model):  # an edit's kept pixels
            continue
        words = asked(model)[name].to_text(value) or ""
        if _same(model, name, words, value):
            parts.append({"condition": name, "text": words})
        elif name in what.parts and torch.equal(what.parts[name], value):
            parts.append({"condition": name, **_of_recipe(model, name, value, taken)})
        else:
            notes.append(f"its guidance led away from another {name}, which the board lacks")
    return parts


def _caption(model: Cascade, what: Composition, other: Parts, weight: float) -> str | None:
    """Words that give this caption."""
    if "caption" not in other:
        return None
    said = what.sources.get(f"caption {weight:+g}", "")
    told = asked(model)["caption"].to_text(other["caption"]) or ""
    return next((words for words in (said, told) if _same(model, "caption", words, other["caption"])), None)


def _sampling(model: Cascade, found: Mapping[str, Any], options: SampleOptions, notes: list[str]) -> Board:
    """Steps, guidance, size, and whatever else differs from the model's own settings."""
    usual = model.settings(None, SampleOptions(until=options.until))
    first = model.stages[0].name
    board: Board = {"size": None if options.size is None else [options.size[1], options.size[0]], "stages": []}
    board["until"] = None if options.until == model.stages[-1].name else options.until
    for stage, settings in found["stages"].items():
        changed = {k: v for k, v in settings.items() if v != getattr(usual[stage], k, None)}
        if stage == first:
            board |= {name: changed.pop(name) for name in ("steps", "guidance") if name in changed}
        if lost := sorted(name for name, value in changed.items() if value is None):
            notes.append(f"stage {stage} was drawn without {', '.join(lost)}, which the board cannot say")
        written = [f"{name}={_write(value)}" for name, value in changed.items() if value is not None]
        board["stages"] += [f"{stage}:{','.join(written)}"] if written else []
    return board


def _write(value: Any) -> str:
    return "-".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _edit(found: Mapping[str, Any], pictures: Pictures, notes: list[str]) -> Board:
    """The picture that was edited, if it is here, and where."""
    check_edit(found)
    edit = found["edit"]
    before = pictures.holding(edit["original"])
    if before is None:
        notes.append(f"it is an edit of {edited(found)}: give that picture too")
    board: Board = {"picture": None if before is None else before.id, "soften": edit["soften"], "keep": []}
    if edit["sides"] is not None:
        return {**board, "task": "outpaint", "by": list(edit["sides"])}
    region = unpack(edit["region"])["region"].float()
    return {**board, "task": "edit", "region": {"mask": _mask(region, pictures)}}
