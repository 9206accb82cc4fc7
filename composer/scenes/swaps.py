"""False captions that differ from a true one by a word or two (hard negatives).

They show whether a CLIP knows which colour belongs to which thing, and teach it (NegCLIP, Yuksekgonul et
al. 2023).
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations

from composer.scenes.captions import SYNONYMS, reword, with_article
from composer.scenes.layout import COLOURS, NOVEL_PAIRS, SHAPES, Dice, Scene, Thing

KINDS = ("colours", "shapes", "colour", "shape", "place")
"""Kinds of changes: two things swap colours, or shapes; one thing gets another colour, or shape, or place."""

_CANONICAL = {synonym: word for word, synonym in SYNONYMS.items()}
_NOUNS = {shape: "|".join(filter(None, (shape, SYNONYMS.get(shape)))) for shape in SHAPES}
_MENTION = re.compile(rf"\b(an? |the )?({'|'.join(COLOURS)}) ({'|'.join(_NOUNS.values())})\b")
_PLACE = r"(in front|behind)? ?(on the left|in the middle|on the right)"
_RELATION = re.compile(r"\b(left of|right of|in front of|behind)(?= an? | the )")
_OPPOSITE = {"left of": "right of", "right of": "left of", "in front of": "behind", "behind": "in front of"}
_SIDES = {"on the left": "on the right", "on the right": "on the left"}


def swap(dice: Dice, scene: Scene, caption: str, kind: str) -> str | None:
    """Makes a caption false of its scene by one change.

    All other words stay, and every mention of a thing is changed consistently. In `train` and `val` the result may be
    the true caption of another scene, so that only the image can show that it is false.

    Args:
        dice: Source of randomness.
        scene: The caption's scene.
        caption: From `describe`.
        kind: One of `KINDS`.

    Returns:
        The false caption, or None if no such change makes it false.
    """
    if kind == "place":
        places = [*_other_places(scene, caption)]
        if not places:
            return None
        start, end, words = dice.pick(places)
        return caption[:start] + words + caption[end:]
    changed = [things for things in _changes(scene.things, kind) if _possible(things, scene.things)]
    return _rewrite(dice, caption, scene.things, dice.pick(changed)) if changed else None


def swaps(dice: Dice, scene: Scene, caption: str, count: int) -> list[str]:
    """Draws different false captions, of as many kinds as possible.

    Args:
        dice: Source of randomness.
        scene: The caption's scene.
        caption: From `describe`.
        count: How many; up to 5 exist for every scene.
    """
    found: dict[str, None] = {}
    while len(found) < count:
        for kind in dice.shuffled(KINDS):
            other = swap(dice, scene, caption, kind)
            if other is not None and len(found) < count:
                found[other] = None
    return [*found]


def _changes(things: tuple[Thing, ...], kind: str) -> Iterator[tuple[Thing, ...]]:
    """Yields the things after every change of a kind; two things that differ in only one property don't swap it."""
    if kind in ("colours", "shapes"):
        name = kind.removesuffix("s")
        for i, j in combinations(range(len(things)), 2):
            if things[i].colour != things[j].colour and things[i].shape != things[j].shape:
                values = {i: getattr(things[j], name), j: getattr(things[i], name)}
                yield tuple(replace(t, **{name: values[k]}) if k in values else t for k, t in enumerate(things))
    else:
        for i, thing in enumerate(things):
            for value in COLOURS if kind == "colour" else SHAPES:
                if value != getattr(thing, kind):
                    changed = replace(thing, colour=value) if kind == "colour" else replace(thing, shape=value)
                    yield (*things[:i], changed, *things[i + 1 :])


def _possible(changed: tuple[Thing, ...], things: tuple[Thing, ...]) -> bool:
    """Whether a scene may hold such things: no two are alike, and novel pairs occur among novel pairs alone."""
    old, new = ({(thing.shape, thing.colour) for thing in row} for row in (things, changed))
    return len(new) == len(old) and (not new & set(NOVEL_PAIRS) or bool(old & set(NOVEL_PAIRS)))


def _rewrite(dice: Dice, caption: str, things: tuple[Thing, ...], changed: tuple[Thing, ...]) -> str:
    """Rewrites the caption with other colours and shapes wherever a thing is mentioned."""
    new = {(old.colour, old.shape): thing for old, thing in zip(things, changed, strict=True)}

    def renamed(mention: re.Match[str]) -> str:
        article, colour, noun = mention.groups(default="")
        thing = new[colour, _CANONICAL.get(noun, noun)]
        if thing.shape != _CANONICAL.get(noun, noun):
            noun = thing.shape if article == "the " else reword(dice, [thing.shape])  # as captions have it
        words = f"{thing.colour} {noun}"
        return with_article(words) if article.startswith("a") else article + words

    return _MENTION.sub(renamed, caption)


def _other_places(scene: Scene, caption: str) -> Iterator[tuple[int, int, str]]:
    """Yields the span of each relation or place in a caption, and a false replacement."""
    for match in _RELATION.finditer(caption):
        yield *match.span(1), _OPPOSITE[match[1]]
    for thing in scene.things:
        place = re.search(rf"\b{thing.colour} (?:{_NOUNS[thing.shape]}) {_PLACE}", caption)
        if place is None:
            continue
        row, column = place.groups()
        farther = "on the right" if sum(scene.camera.box(thing)[::2]) < 1 else "on the left"
        yield *place.span(2), _SIDES.get(column, farther)
        if row:
            yield *place.span(1), "in front" if row == "behind" else "behind"
