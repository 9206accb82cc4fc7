"""Captions: a small grammar that states what is in a scene and where, and only what is true of its picture."""

from composer.scenes.layout import COLOURS, MATERIALS, SHAPES, SIZES, Camera, Dice, Scene, Thing
from composer.scenes.scenery import GROUNDS, SKIES

SYNONYMS = {"sphere": "ball", "cube": "box", "torus": "ring", "large": "big", "small": "little", "shiny": "glossy"}
RELATIONS = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "front": ("in front of",),
    "behind": ("behind",),
}
_COUNTS = {2: "two things", 3: "three things", 4: "four things"}
WORDS = tuple(
    sorted(
        {*SHAPES, *COLOURS, *SIZES, *MATERIALS, *GROUNDS, *SKIES, *SYNONYMS.values()}
        | set(" ".join([*(phrase for phrases in RELATIONS.values() for phrase in phrases), *_COUNTS.values()]).split())
        | {"a", "an", "and", "the", "on", "under", "sky", "in", "middle", "left", "right"}
    )
)
"""Every word that a caption may hold (commas and colons aside)."""


def tell(dice: Dice, scene: Scene) -> str:
    """States what is there and where, in one of many ways."""
    things = dice.shuffled(scene.things)
    if len(things) == 1:
        told = _alone(dice, things[0], scene.camera)
    else:
        told = _listed(dice, things) if dice.chance(0.25) else _related(dice, things, scene.camera)
    ground, sky = f"on {scene.ground}", f"under {_a(scene.sky)} sky"
    setting = f"{ground} {sky}" if dice.chance(0.7) else f"{sky} {ground}"
    return f"{told}, {setting}" if dice.chance(0.75) else f"{setting}, {told}"


def relations(camera: Camera, thing: Thing, other: Thing) -> list[str]:
    """Which of `RELATIONS` clearly hold in the picture, of `thing` to `other`."""
    across = sum(camera.box(thing)[::2]) / 2 - sum(camera.box(other)[::2]) / 2
    away = thing.z - other.z
    aligned = abs(thing.x - other.x) < 1.5 * abs(away)
    held = {"left": across < -0.12, "right": across > 0.12, "front": aligned and away < -0.9}
    held["behind"] = aligned and away > 0.9
    return [name for name in RELATIONS if held[name]]


def _a(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _name(dice: Dice, thing: Thing) -> str:
    """A thing's phrase, at times with a synonym or without its size or material."""
    words = [thing.size] * dice.chance(0.85) + [thing.material] * dice.chance(0.85) + [thing.colour, thing.shape]
    return _a(" ".join(SYNONYMS[word] if word in SYNONYMS and dice.chance(0.2) else word for word in words))


def _alone(dice: Dice, thing: Thing, camera: Camera) -> str:
    middle = sum(camera.box(thing)[::2]) / 2
    where = " on the left" if middle < 0.4 else " on the right" if middle > 0.6 else " in the middle"
    return _name(dice, thing) + where * dice.chance(0.7)


def _listed(dice: Dice, things: list[Thing]) -> str:
    *names, last = [_name(dice, thing) for thing in things]
    return f"{_COUNTS[len(things)]}: " * dice.chance(0.5) + ", ".join(names) + f" and {last}"


def _related(dice: Dice, things: list[Thing], camera: Camera) -> str:
    """Each further thing by its relation to an earlier one; named alone where none clearly holds."""
    parts = [_name(dice, things[0])]
    for at, thing in enumerate(things[1:], 1):
        fresh = at == 1
        other = things[0] if fresh else dice.pick(things[:at])
        held = relations(camera, other, thing) if fresh else relations(camera, thing, other)
        if not held:
            parts.append(f", {_name(dice, thing)}")
            continue
        relation = dice.pick(RELATIONS[dice.pick(held)])
        if fresh:
            parts.append(f" {relation} {_name(dice, thing)}")
        else:
            parts.append(f", {_name(dice, thing)} {relation} the {other.colour} {other.shape}")
    return "".join(parts)
