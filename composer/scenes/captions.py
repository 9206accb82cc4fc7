"""Captions: a small grammar that says what is in a scene and where, and only what is true of its image."""

from composer.scenes.layout import COLOURS, MATERIALS, SHAPES, SIZES, Camera, Dice, Scene, Thing
from composer.scenes.scenery import GROUNDS, SKIES

SYNONYMS = {"sphere": "ball", "cube": "box", "torus": "ring", "large": "big", "small": "little", "shiny": "glossy"}
PLAIN = {synonym: word for word, synonym in SYNONYMS.items()}
RELATIONS = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "front": ("in front of",),
    "behind": ("behind",),
}
NEAR, FAR = 0.78, 0.70
"""Where a thing meets the ground, from the top of the picture, below and above which it is in front and behind."""
COLUMNS = ("on the left", "in the middle", "on the right")
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
    """Writes a caption: what is in the scene and where, in one of many ways."""
    things = dice.shuffled(scene.things)
    if len(things) == 1:
        told = _alone(dice, things[0], scene.camera)
    elif dice.chance(0.25):
        told = _listed(dice, [_name(dice, thing) for thing in things])
    else:
        told = _related(dice, things, scene.camera)
    return _with_setting(dice, scene, told)


def tell_all(dice: Dice, scene: Scene) -> str:
    """Writes a complete caption: size, material, colour, shape and place of every thing, the ground and the sky."""
    told = []
    for thing in dice.shuffled(scene.things):
        words = [thing.size, thing.material, thing.colour, thing.shape]
        told.append(f"{with_article(reword(dice, words))} {place(*stand(scene.camera, thing))}")
    return _with_setting(dice, scene, _listed(dice, told))


def stand(camera: Camera, thing: Thing) -> tuple[float, float]:
    """Returns where a thing's centre is, from the left, and where it meets the ground, from the top, in [0, 1]."""
    left, _, right, _ = camera.box(thing)
    return (left + right) / 2, camera.project(thing.x, 0.0, thing.z)[1]


def place(across: float, foot: float) -> str:
    """Names a thing's place in the image: its column, and its row unless that is the middle one.

    "In front" and "behind" each apply to a third of the things; short captions use both words too.

    Args:
        across: See `stand`.
        foot: See `stand`.
    """
    row = "in front " if foot > NEAR else "behind " if foot < FAR else ""
    return f"{row}{column(across)}"


def _with_setting(dice: Dice, scene: Scene, told: str) -> str:
    """Adds the ground and the sky."""
    ground, sky = f"on {scene.ground}", f"under {with_article(scene.sky)} sky"
    setting = f"{ground} {sky}" if dice.chance(0.7) else f"{sky} {ground}"
    return f"{told}, {setting}" if dice.chance(0.75) else f"{setting}, {told}"


def relations(camera: Camera, thing: Thing, other: Thing) -> list[str]:
    """Lists which of `RELATIONS` clearly hold in the image, of `thing` to `other`."""
    across = sum(camera.box(thing)[::2]) / 2 - sum(camera.box(other)[::2]) / 2
    away = thing.z - other.z
    aligned = abs(thing.x - other.x) < 1.5 * abs(away)
    held = {"left": across < -0.12, "right": across > 0.12, "front": aligned and away < -0.9}
    held["behind"] = aligned and away > 0.9
    return [name for name in RELATIONS if held[name]]


def with_article(words: str) -> str:
    """Puts "a" or "an" before words."""
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _name(dice: Dice, thing: Thing) -> str:
    """A thing's phrase, sometimes with a synonym or without its size or material."""
    words = [thing.size] * dice.chance(0.85) + [thing.material] * dice.chance(0.85) + [thing.colour, thing.shape]
    return with_article(reword(dice, words))


def reword(dice: Dice, words: list[str]) -> str:
    """Joins words, sometimes with a synonym for one."""
    return " ".join(SYNONYMS[word] if word in SYNONYMS and dice.chance(0.2) else word for word in words)


def name_briefly(dice: Dice, thing: Thing) -> str:
    """A thing by its colour and shape, and in half of the cases its size: "a red cube", "a little red box"."""
    return with_article(reword(dice, [thing.size] * dice.chance(0.5) + [thing.colour, thing.shape]))


def simplify(phrase: str) -> str:
    """Reduces an object's phrase to its colour and shape, without synonyms; other phrases stay.

    "a big shiny red ball" becomes "a red sphere".
    """
    words = [PLAIN.get(word, word) for word in phrase.lower().split()]
    found = [[word for word in words if word in known] for known in (COLOURS, SHAPES)]
    return with_article(" ".join(kind[0] for kind in found)) if all(len(kind) == 1 for kind in found) else phrase


def _alone(dice: Dice, thing: Thing, camera: Camera) -> str:
    return _name(dice, thing) + f" {column(stand(camera, thing)[0])}" * dice.chance(0.7)


def column(across: float) -> str:
    """Names the third of the image in which a thing is; see `stand`."""
    return COLUMNS[0 if across < 0.4 else 2 if across > 0.6 else 1]


def _listed(dice: Dice, names: list[str]) -> str:
    *names, last = names
    if not names:
        return last
    return f"{_COUNTS[len(names) + 1]}: " * dice.chance(0.5) + ", ".join(names) + f" and {last}"


def _related(dice: Dice, things: list[Thing], camera: Camera) -> str:
    """Each further thing by its relation to an earlier one; without one if none clearly holds."""
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
