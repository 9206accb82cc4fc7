"""The tasks as commands: ``python -m composer TASK --help`` explains each."""

from collections.abc import Sequence

from . import tasks
from .composition import Composition, Source, require
from .drawing import Drawing, Given
from .options import STRENGTH, askable, bar, numbers, read_value
from .prior.commands import principal_components
from .tasks import GLOBAL, LOCAL, Labelled

COMPONENTS = "scenes_prior_ar"
"""The prior that comes with the package and knows the principal components of its CLIP's embeddings."""


def compose(args: Sequence[str], plugins: Sequence[str]) -> None:
    """Recombine conditions of different images, palettes and captions into new images."""
    drawing = Drawing(
        "compose",
        compose.__doc__,
        '--sketch a.jpg --palette b.jpg --caption "a red cube on sand" --seeds 0,1,2 --out out',
        "--sketch a.jpg b.jpg --palette '#aa3311 0.6, #eeddcc 0.4' --guidance 3",
        "--sketch a.jpg --palette b.jpg:0.7@0.2-0.8:mask.png",
        '--caption "a red cube on sand" --and "a blue ball on snow:3" --not "under a night sky:1" --sheet seed=0,1',
        '--caption "a red cube on sand" --prior scenes_prior_diffusion --best-of 8',
        "--from-png out/compose_seed0.png --out out/again",
    )
    add = drawing.parser.add_argument
    add("--prior", help="a prior: it draws the semantics of --caption, others for each seed")
    add("--and", dest="also", nargs="+", default=[], metavar="WORDS[:W]", help="further captions to follow (weight 3)")
    add("--not", dest="never", nargs="+", default=[], metavar="WORDS[:W]", help="captions to lead away from (weight 1)")
    add("--start", metavar="IMAGE:T", help="start from a picture, made noisy: time T in (0, 1], such as 0.7")
    drawing.run(args, plugins, _compose)


def _compose(given: Given) -> Labelled:
    o, cascade = given.options, given.cascade
    prompts = [*(_weighted(text, 3.0, 1) for text in o.also), *(_weighted(text, 1.0, -1) for text in o.never)]
    if not (given.asked[0].parts or prompts or o.start):
        raise ValueError(f"nothing asked: give at least one of {', '.join(f'--{n}' for n in askable(cascade))}")
    made = []
    for label, row in given.rows:
        if o.prior is not None:
            row = tasks.text_to_image(cascade, row.sources.get("caption", ""), given.prior(o.prior, row)) | row
        if prompts:
            row = tasks.combine(cascade, row, prompts)
        if o.start is not None:
            path, time = _start(o.start)
            row = tasks.redraw(cascade, Source(cascade.open(path), Composition()), row, time)
        made.append((label, row))
    return made


def _start(text: str) -> tuple[str, float]:
    """``rough.png:0.7`` -> ("rough.png", 0.7)."""
    path, _, time = text.rpartition(":")
    try:
        return path, float(time)
    except ValueError as error:
        raise ValueError(f"expected a picture and a time in (0, 1], such as rough.png:0.7, found {text!r}") from error


def _weighted(text: str, weight: float, sign: int) -> tuple[str, float]:
    """``a red cube:2`` -> ("a red cube", 2.0)."""
    found = STRENGTH.fullmatch(text)
    if found is None or found[2] is None or found[3] or found[5]:
        return text, sign * weight
    return found[1], sign * float(found[2])


def edit(args: Sequence[str], plugins: Sequence[str]) -> None:
    """Redraw a region of a picture under new conditions; all pixels outside it stay the file's own."""
    drawing = Drawing(
        "edit",
        edit.__doc__,
        "photo.png --region mask.png --palette b.jpg --keep sketch --out out",
        'photo.png --region 0.1,0.2,0.6,0.9 --caption "a large red cube" --seeds 0,1',
        "photo.png --from-png out/edit_photo_seed0.png --out out/again",
        pictures=["the picture to edit"],
        needs_region=True,
    )
    drawing.names("--keep", [], "conditions to take from the picture itself")
    drawing.run(args, plugins, _kept)


def _kept(given: Given) -> Labelled:
    return given.under([("", given.sources[0].pick(*given.options.keep))])


def outpaint(args: Sequence[str], plugins: Sequence[str]) -> None:
    """Continue a picture beyond its border; all of its own pixels stay."""
    drawing = Drawing(
        "outpaint",
        outpaint.__doc__,
        "photo.png --by 0,0,0.5,0 --out out",
        'photo.png --by 0.25,0.25,0.25,0.25 --caption "a red cube on sand" --seeds 0,1,2,3 --best-of 4',
        pictures=["the picture to continue"],
        grows=True,
    )
    drawing.parser.add_argument("--by", default="0,0,0.5,0", help="to add at left,top,right,bottom: pixels or shares")
    drawing.names("--keep", [], "conditions to take from the picture, its border mirrored")
    drawing.run(args, plugins, _kept)


def vary(args: Sequence[str], plugins: Sequence[str]) -> None:
    """Draw variations of a picture: what is kept of it stays, the rest is new."""
    drawing = Drawing(
        "vary",
        vary.__doc__,
        "photo.png --seeds 0,1,2,3",
        "photo.png --keep sketch depth --palette b.jpg",
        "photo.png --seeds 0,1,2 --from-latent 0.5",
        "photo.png --region 0.5,0,1,1 --keep sketch",
        pictures=["the picture"],
    )
    drawing.names("--keep", ["semantics"], "conditions to take from the picture")
    about = "begin with the picture's own latent, and vary it by that share of fresh noise, 0 to 1"
    drawing.parser.add_argument("--from-latent", type=float, metavar="ETA", help=about)

    def make(given: Given) -> Labelled:
        o = given.options
        made = tasks.variations(given.cascade, given.sources[0], o.keep, o.from_latent, given.steps, bar("inverting"))
        return given.under([("", made)])

    drawing.run(args, plugins, make)


def interpolate(args: Sequence[str], plugins: Sequence[str]) -> None:
    """Go from one picture to another, as frames and a GIF."""
    drawing = Drawing(
        "interpolate",
        interpolate.__doc__,
        "a.png b.png --frames 9",
        "a.png b.png --keep sketch depth instances --between semantics palette",
        "a.png b.png --from-latents",
        pictures=["the first picture", "the last one"],
        between=True,
    )
    drawing.names("--between", GLOBAL, "conditions to interpolate")
    drawing.names("--keep", [], "conditions of the first picture that stay")
    drawing.parser.add_argument("--frames", type=int, default=5, help="how many pictures (default 5)")
    drawing.parser.add_argument("--from-latents", action="store_true", help="begin with the pictures' inverted latents")

    def make(given: Given) -> Labelled:
        o, (a, b) = given.options, given.sources
        found = tasks.interpolations(
            given.cascade, a, b, o.frames, o.between, o.keep, o.from_latents, given.steps, bar("inverting")
        )
        return given.under(found)

    drawing.run(args, plugins, make)


def reconfigure(args: Sequence[str], plugins: Sequence[str]) -> None:
    """Change some conditions of a picture, such as its sketch, and keep the picture otherwise."""
    drawing = Drawing(
        "reconfigure",
        reconfigure.__doc__,
        "photo.png --sketch edited.png",
        "photo.png --depth b.png --keep semantics palette",
        'photo.png --caption "a blue ball on grass" --keep palette --steps 50',
        pictures=["the picture"],
    )
    drawing.names("--keep", None, "conditions of the picture that stay (default: all others)")

    def make(given: Given) -> Labelled:
        if not given.only.parts:
            options = ", ".join(f"--{name}" for name in askable(given.cascade))
            raise ValueError(f"nothing changed: give at least one of {options}")
        keep, steps = given.options.keep, given.steps
        return [("", tasks.reconfigure(given.cascade, given.sources[0], given.only, keep, steps, bar("inverting")))]

    drawing.run(args, plugins, make)


def translate(args: Sequence[str], plugins: Sequence[str]) -> None:
    """Make a picture show what a caption says, keeping its shapes: image translation."""
    drawing = Drawing(
        "translate",
        translate.__doc__,
        'photo.png --to "a red cube on snow"',
        'photo.png --to "a red cube on snow" --image-caption "a red cube on sand" --guidance 5',
        pictures=["the picture"],
    )
    drawing.parser.add_argument("--to", metavar="WORDS", default="", help="what it is to show")
    drawing.names("--keep", LOCAL, "conditions of the picture that stay")

    def make(given: Given) -> Labelled:
        o = given.options
        if not o.to:
            raise ValueError("translate needs --to: what the picture is to show")
        made = tasks.translate(given.cascade, given.sources[0], o.to, o.keep, given.steps, bar("inverting"))
        return given.under([("", made)])

    drawing.run(args, plugins, make)


def repose(args: Sequence[str], plugins: Sequence[str]) -> None:
    """Give a picture's things the shapes of another one's: pose transfer."""
    drawing = Drawing(
        "repose",
        repose.__doc__,
        "photo.png pose.png",
        "photo.png pose.png --take instances sketch --region 0.2,0.2,0.8,1",
        pictures=["the picture", "the one whose shapes to take"],
    )
    drawing.names("--keep", GLOBAL, "conditions of the picture that stay")
    drawing.names("--take", ["instances"], "conditions of the other one")

    def make(given: Given) -> Labelled:
        o, (source, pose), steps = given.options, given.sources, given.steps
        made = tasks.pose_transfer(given.cascade, source, pose, o.keep, o.take, steps, bar("inverting"))
        return given.under([("", made)])

    drawing.run(args, plugins, make)


def colorize(args: Sequence[str], plugins: Sequence[str]) -> None:
    """Colour a picture anew, by colours or by other pictures' palettes."""
    drawing = Drawing(
        "colorize",
        colorize.__doc__,
        "photo.png --palette '#aa3311 0.6, #224488 0.4'",
        "photo.png --palette b.jpg c.jpg --frames 4",
        "photo.png --palette b.jpg --region mask.png --keep sketch",
        pictures=["the picture"],
    )
    drawing.names("--keep", [], "further conditions of the picture that stay")
    drawing.parser.add_argument(
        "--frames", type=int, default=1, help="pictures from each palette to the next (default 1)"
    )

    def make(given: Given) -> Labelled:
        o = given.options
        require(given.cascade, "intensity", "palette", task="colorization")
        if not o.palette:
            raise ValueError("colorize needs --palette: a picture's file, or colours like '#aa3311 0.6, #224488 0.4'")
        palettes = [read_value(given.cascade, "palette", value) for value in o.palette]
        found = tasks.colorize(given.cascade, given.sources[0], palettes, o.frames, o.keep)
        return [(label, composition | given.asked[0].drop("palette")) for label, composition in found]

    drawing.run(args, plugins, make)


def restyle(args: Sequence[str], plugins: Sequence[str]) -> None:
    """Draw a picture's content in another one's style."""
    drawing = Drawing(
        "restyle",
        restyle.__doc__,
        "photo.png painting.jpg",
        "photo.png painting.jpg --sheet strength=0,0.25,0.5,0.75,1",
        pictures=["the picture whose content stays", "the one whose style to take"],
    )
    drawing.parser.add_argument("--strength", type=float, default=1.0, help="0 is the picture's own style (default 1)")
    drawing.names("--keep", LOCAL, "conditions of the first picture")
    drawing.names("--take", GLOBAL, "conditions of the second")

    def make(given: Given) -> Labelled:
        o, (content, style) = given.options, given.sources
        return given.under([("", tasks.style_transfer(given.cascade, content, style, o.strength, o.keep, o.take))])

    drawing.run(args, plugins, make)


def try_on(args: Sequence[str], plugins: Sequence[str]) -> None:
    """Put one picture's looks where another one's clothes are: virtual try-on."""
    drawing = Drawing(
        "try-on",
        try_on.__doc__,
        "person.png garment.png --region clothes.png --seeds 0,1,2",
        "person.png garment.png --region 0.3,0.4,0.7,0.9 --keep depth",
        pictures=["who wears it", "the garment"],
        needs_region=True,
    )
    drawing.names("--keep", [], "conditions of the first picture that stay")

    def make(given: Given) -> Labelled:
        wearer, garment = given.sources
        return given.under([("", tasks.try_on(given.cascade, wearer, garment, given.options.keep))])

    drawing.run(args, plugins, make)


def turn(args: Sequence[str], plugins: Sequence[str]) -> None:
    """Turn a picture from what one caption says towards what another says: text differences."""
    drawing = Drawing(
        "turn",
        turn.__doc__,
        'photo.png --before "a red cube" --after "a blue cube"',
        'photo.png --before "a cube in winter" --after "a cube in summer" --shares 0,0.2,0.4',
        pictures=["the picture"],
    )
    add = drawing.parser.add_argument
    add("--before", default="", metavar="WORDS", help="what it shows")
    add("--after", default="", metavar="WORDS", help="what it is to show")
    add("--shares", type=_floats, default=[0, 0.125, 0.25, 0.375, 0.5], help="how far to turn (default 0 to 0.5)")
    drawing.names("--keep", [], "conditions of the picture that stay")

    def make(given: Given) -> Labelled:
        o, source = given.options, given.sources[0]
        if not (o.before and o.after):
            raise ValueError("turn needs --before and --after: what the picture shows, and what it is to show")
        found = tasks.text_difference(
            given.cascade, source, o.before, o.after, o.shares, o.keep, given.steps, bar("inverting")
        )
        return given.under(found)

    drawing.run(args, plugins, make)


def reconstruct(args: Sequence[str], plugins: Sequence[str]) -> None:
    """Draw what the first principal components of a picture's semantics hold."""
    drawing = Drawing(
        "reconstruct",
        reconstruct.__doc__,
        "photo.png --components 1,2,4,8,16,32",
        "photo.png --pca data/scenes64_pca.safetensors --seeds 0,1",
        pictures=["the picture"],
    )
    add = drawing.parser.add_argument
    add("--components", type=numbers, default=[1, 2, 4, 8, 16, 32], help="a picture for each number of them")
    add("--pca", default=COMPONENTS, help=f"what `pca` wrote, or an autoregressive prior (default {COMPONENTS})")
    drawing.names("--keep", [], "conditions of the picture that stay")

    def make(given: Given) -> Labelled:
        o, (mean, components) = given.options, principal_components(given.options.pca, given.plugins)
        found = tasks.truncated(given.cascade, given.sources[0], mean, components, o.components, o.keep)
        return given.under(found)

    drawing.run(args, plugins, make)


def _floats(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


TASKS = {
    "compose": compose,
    "edit": edit,
    "outpaint": outpaint,
    "vary": vary,
    "interpolate": interpolate,
    "reconfigure": reconfigure,
    "translate": translate,
    "repose": repose,
    "colorize": colorize,
    "restyle": restyle,
    "try-on": try_on,
    "turn": turn,
    "reconstruct": reconstruct,
}
"""Name of a command -> the task."""
