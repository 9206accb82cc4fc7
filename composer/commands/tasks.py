"""The tasks on the command line: the signature of each says its options, and its docstring explains them.

Light: what is heavy is imported when a task is done.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from composer import tasks
from composer.commands.request import Task
from composer.commands.signature import Value
from composer.commands.values import MAX_PICTURES, Conditions, Share, Words, number, several, whole
from composer.names import AUTOREGRESSIVE_PRIOR, LAYOUT, Kind

if TYPE_CHECKING:
    from composer.cascade.parts import Parts
    from composer.commands.plans import Given
    from composer.tasks import Labelled

MAX_TERMS = 64
"""Captions to follow or to lead away from, of which each takes as long as the picture's own."""

TASKS: dict[str, Task] = {}
"""Name of a command -> its task."""

Make = Callable[..., "Labelled"]
Prompts = tuple[str, ...]
LOOKS = (Kind.APPEARANCE,)


def task(
    *pictures: str, name: str = "", needs_region: bool = False, grows: bool = False, between: bool = False
) -> Callable[[Make], Make]:
    """Makes a function a command; see `Task`."""

    def register(make: Make) -> Make:
        own = name or make.__name__.replace("_", "-")
        TASKS[own] = Task(own, make, pictures, needs_region, grows, between)
        return make

    return register


@task()
def compose(
    given: "Given",
    *,
    prior: Annotated[str, Value(metavar="NAME")] | None = None,
    also: Annotated[Prompts, Value(metavar="WORDS[:W]", flags=("--and",), nargs="+", repeats=True)] = (),
    never: Annotated[Prompts, Value(metavar="WORDS[:W]", flags=("--not",), nargs="+", repeats=True)] = (),
    away: Annotated[Prompts, Value(metavar="NAME=FILE|WORDS", nargs="+", repeats=True)] = (),
    start: Annotated[str, Value(metavar="IMAGE:T")] | None = None,
) -> "Labelled":
    """Recombine conditions of different images, palettes and captions into new images.

    Args:
        prior: a prior, such as scenes_prior_diffusion, that draws semantics for --caption, new ones for each seed
        also: further captions to follow (default weight 3)
        never: captions to avoid (default weight 1)
        away: conditions that guidance leads away from, such as caption="a blue ball" (default: none of them, two-sided
            guidance otherwise)
        start: start from this picture with noise added: time T in (0, 1], such as 0.7; less of it stays at higher T

    Examples:
        --sketch a.jpg --palette b.jpg --caption "a red cube on sand" --seeds 0,1,2 --out out
        --sketch a.jpg b.jpg --palette '#aa3311 0.6, #eeddcc 0.4' --guidance 3
        --sketch a.jpg --palette b.jpg --strengths palette=0.7@0.2-0.8:mask.png
        --caption "a red cube on sand" --and "a blue ball on snow:3" --not "under a night sky:1" --sheet seed=0,1
        --caption "a red cube on sand" --prior scenes_prior_diffusion --best-of 8
        --from-png out/compose_seed0.png --out out/again
    """
    from composer.tasks.words import read_prompts

    prompts = read_prompts(also, never)
    if len(prompts) > MAX_TERMS:
        raise ValueError(f"expected at most {MAX_TERMS} captions of --and and --not, found {len(prompts)}")
    if not (given.rows[0][1].parts or prompts or start):
        raise ValueError(f"nothing asked: give at least one of {given.conditions}")
    made = []
    for label, row in given.rows:
        if prior is not None:
            row = tasks.text_to_image(given.model, row.sources.get("caption", ""), given.prior(prior, row)) | row
        if prompts:
            row = tasks.combine(given.model, row, prompts)
        if away:
            row = replace(row, away=_away(given, away))
        if start is not None:
            path, time = _start(start)
            row = tasks.redraw(given.model, given.image(path), row, time)
        made.append((label, row))
    return made


def _away(given: "Given", values: Prompts) -> "Parts":
    """``caption=a blue ball`` -> the representations that guidance leads away from."""
    from composer.cascade.parts import Parts

    parts = Parts()
    for text in values:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise ValueError(f"expected a condition such as caption='a blue ball', found {text!r}")
        parts = parts | given.inputs.value(name, value).parts
    return parts


def _start(text: str) -> tuple[str, float]:
    """``rough.png:0.7`` -> ("rough.png", 0.7)."""
    path, _, time = text.rpartition(":")
    try:
        return path, float(time)
    except ValueError as error:
        raise ValueError(f"expected a picture and a time in (0, 1], such as rough.png:0.7, found {text!r}") from error


@task("the picture to edit", needs_region=True)
def edit(given: "Given", *, keep: Conditions = ()) -> "Labelled":
    """Redraw a region of a picture under new conditions; all pixels outside it stay as they are.

    Examples:
        photo.png --region mask.png --palette b.jpg --keep sketch --out out
        photo.png --region 0.1,0.2,0.6,0.9 --caption "a large red cube" --seeds 0,1
        photo.png --from-png out/edit_photo_seed0.png --out out/again
    """
    return given.under(given.sources[0].pick(*keep))


@task("the picture to continue", grows=True)
def outpaint(given: "Given", *, keep: Conditions = ()) -> "Labelled":
    """Continue a picture beyond its border; all of its own pixels stay.

    Args:
        keep: conditions to take from the picture, its border mirrored

    Examples:
        photo.png --by 0,0,0.5,0 --out out
        photo.png --by 0.25,0.25,0.25,0.25 --caption "a red cube on sand" --seeds 0,1,2,3 --best-of 4
    """
    return given.under(given.sources[0].pick(*keep))


FromNoise = Annotated[float, Value(number(0, 1), "ETA", ("--from-noise", "--from-latent"))]


@task("the picture")
def vary(given: "Given", *, keep: Conditions = ("semantics",), from_noise: FromNoise | None = None) -> "Labelled":
    """Draw variations of a picture: the conditions that are kept stay, the rest is new.

    Args:
        from_noise: begin with the noise that reproduces the picture (inversion) and add this share of fresh noise, 0 to
            1

    Examples:
        photo.png --seeds 0,1,2,3
        photo.png --keep sketch depth --palette b.jpg
        photo.png --seeds 0,1,2 --from-noise 0.5
        photo.png --region 0.5,0,1,1 --keep sketch
    """
    return given.under(tasks.variations(given.model, given.sources[0], keep, from_noise, **given.inverting))


@task("the first picture", "the last one", between=True)
def interpolate(
    given: "Given",
    *,
    between: Conditions = LOOKS,
    keep: Conditions = (),
    frames: Annotated[int, Value(whole(2, MAX_PICTURES), "N")] = 5,
    from_noises: Annotated[bool, Value(flags=("--from-noises", "--from-latents"))] = False,
) -> "Labelled":
    """Go from one picture to another, as frames and a GIF.

    Args:
        between: conditions to interpolate
        keep: conditions of the first picture that stay
        frames: how many pictures
        from_noises: begin with the noises that reproduce the two pictures (inversion)

    Examples:
        a.png b.png --frames 9
        a.png b.png --keep sketch depth instances --between semantics palette
        a.png b.png --from-noises
    """
    a, b = given.sources
    found = tasks.interpolations(given.model, a, b, frames, between, keep, from_noises, **given.inverting)
    return given.under(found)


@task("the picture")
def reconfigure(given: "Given", *, keep: Conditions | None = None) -> "Labelled":
    """Change some conditions of a picture, such as its sketch, and keep the rest of the picture.

    Args:
        keep: conditions of the picture that stay (default: all others)

    Examples:
        photo.png --sketch edited.png
        photo.png --depth b.png --keep semantics palette
        photo.png --caption "a blue ball on grass" --keep palette --steps 50
    """
    if not given.only.parts:
        raise ValueError(f"nothing changed: give at least one of {given.conditions}")
    return [("", tasks.reconfigure(given.model, given.sources[0], given.only, keep, **given.inverting))]


@task("the picture")
def translate(given: "Given", *, to: Words = "", keep: Conditions = LAYOUT) -> "Labelled":
    """Make a picture show what a caption says, keeping its shapes: image translation.

    Args:
        to: a caption of the result

    Examples:
        photo.png --to "a red cube on snow"
        photo.png --to "a red cube on snow" --image-caption "a red cube on sand" --guidance 5
    """
    if not to:
        raise ValueError("translate needs --to: what the picture is to show")
    return given.under(tasks.translate(given.model, given.sources[0], to, keep, **given.inverting))


@task("the picture", "the one whose shapes to take")
def repose(given: "Given", *, keep: Conditions = LOOKS, take: Conditions = (Kind.SEGMENTATION,)) -> "Labelled":
    """Give the things in a picture the shapes of those in another: pose transfer.

    Args:
        take: conditions to take from the other picture

    Examples:
        photo.png pose.png
        photo.png pose.png --take instances sketch --region 0.2,0.2,0.8,1
    """
    source, pose = given.sources
    return given.under(tasks.pose_transfer(given.model, source, pose, keep, take, **given.inverting))


@task("the picture")
def colorize(
    given: "Given", *, keep: Conditions = (), frames: Annotated[int, Value(whole(1, MAX_PICTURES), "N")] = 1
) -> "Labelled":
    """Recolour a picture with given colours or with other pictures' palettes.

    Args:
        keep: further conditions of the picture that stay
        frames: pictures from each palette to the next

    Examples:
        photo.png --palette '#aa3311 0.6, #224488 0.4'
        photo.png --palette b.jpg c.jpg --frames 4
        photo.png --palette b.jpg --region mask.png --keep sketch
    """
    if not (palettes := given.each("palette")):
        raise ValueError("colorize needs --palette: a picture's file, or colours like '#aa3311 0.6, #224488 0.4'")
    found = tasks.colorize(given.model, given.sources[0], palettes, frames, keep)
    return [(label, composition | given.rows[0][1].drop("palette")) for label, composition in found]


@task("the picture whose content stays", "the one whose style to take")
def restyle(
    given: "Given", *, strength: Share = 1.0, keep: Conditions = LAYOUT, take: Conditions = LOOKS
) -> "Labelled":
    """Draw a picture's content in another one's style.

    Args:
        strength: 0 is the first picture's own style, 1 the second's
        keep: conditions of the first picture
        take: conditions of the second

    Examples:
        photo.png painting.jpg
        photo.png painting.jpg --sheet strength=0,0.25,0.5,0.75,1
    """
    content, style = given.sources
    return given.under(tasks.style_transfer(given.model, content, style, strength, keep, take))


@task("who wears it", "the garment", needs_region=True)
def try_on(given: "Given", *, keep: Conditions = ()) -> "Labelled":
    """Dress the person in one picture in the looks of another: virtual try-on.

    Args:
        keep: conditions of the first picture that stay

    Examples:
        person.png garment.png --region clothes.png --seeds 0,1,2
        person.png garment.png --region 0.3,0.4,0.7,0.9 --keep depth
    """
    wearer, garment = given.sources
    return given.under(tasks.try_on(given.model, wearer, garment, keep))


@task("the picture")
def turn(
    given: "Given",
    *,
    before: Words = "",
    after: Words = "",
    shares: Annotated[tuple[float, ...], Value(several(number(-100, 100)), "S,...")] = (0, 0.125, 0.25, 0.375, 0.5),
    keep: Conditions = (),
) -> "Labelled":
    """Move a picture from one caption towards another: text differences.

    Args:
        before: a caption of the picture
        after: a caption of the result
        shares: how far to go; 0 is the picture itself

    Examples:
        photo.png --before "a red cube" --after "a blue cube"
        photo.png --before "a cube in winter" --after "a cube in summer" --shares 0,0.2,0.4
    """
    if not (before and after):
        raise ValueError("turn needs --before and --after: what the picture shows, and what it is to show")
    source = given.sources[0]
    found = tasks.text_difference(given.model, source, before, after, shares, keep, **given.inverting)
    return given.under(found)


@task("the picture")
def reconstruct(
    given: "Given",
    *,
    components: Annotated[tuple[int, ...], Value(several(whole(0, 1_000_000)), "N,...")] = (1, 2, 4, 8, 16, 32),
    pca: Annotated[str, Value(metavar="FILE|PRIOR")] = AUTOREGRESSIVE_PRIOR,
    keep: Conditions = (),
) -> "Labelled":
    """Draw what the first principal components of a picture's semantics hold.

    Args:
        components: numbers of components to keep, one picture each
        pca: the file that `composer pca` wrote, or an autoregressive prior

    Examples:
        photo.png --components 1,2,4,8,16,32
        photo.png --pca data/scenes64_pca.safetensors --seeds 0,1
    """
    mean, basis = given.inputs.components(pca)
    return given.under(tasks.truncated(given.model, given.sources[0], mean, basis, components, keep))
