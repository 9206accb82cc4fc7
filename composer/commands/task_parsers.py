"""The tasks' parsers: ``composer TASK --help`` explains each; light, `commands.tasks` does them."""

from composer.commands.drawing_parser import DrawingParser
from composer.commands.parsers import MAX_PICTURES, number, several, whole
from composer.names import AUTOREGRESSIVE_PRIOR, LAYOUT, Kind


def compose() -> DrawingParser:
    """Recombine conditions of different images, palettes and captions into new images."""
    drawing = DrawingParser(
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
    return drawing


def edit() -> DrawingParser:
    """Redraw a region of a picture under new conditions; all pixels outside it stay the file's own."""
    drawing = DrawingParser(
        "edit",
        edit.__doc__,
        "photo.png --region mask.png --palette b.jpg --keep sketch --out out",
        'photo.png --region 0.1,0.2,0.6,0.9 --caption "a large red cube" --seeds 0,1',
        "photo.png --from-png out/edit_photo_seed0.png --out out/again",
        pictures=["the picture to edit"],
        needs_region=True,
    )
    drawing.names("--keep", [], "conditions to take from the picture itself")
    return drawing


def outpaint() -> DrawingParser:
    """Continue a picture beyond its border; all of its own pixels stay."""
    drawing = DrawingParser(
        "outpaint",
        outpaint.__doc__,
        "photo.png --by 0,0,0.5,0 --out out",
        'photo.png --by 0.25,0.25,0.25,0.25 --caption "a red cube on sand" --seeds 0,1,2,3 --best-of 4',
        pictures=["the picture to continue"],
        grows=True,
    )
    drawing.parser.add_argument("--by", default="0,0,0.5,0", help="to add at left,top,right,bottom: pixels or shares")
    drawing.names("--keep", [], "conditions to take from the picture, its border mirrored")
    return drawing


def vary() -> DrawingParser:
    """Draw variations of a picture: what is kept of it stays, the rest is new."""
    drawing = DrawingParser(
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
    drawing.parser.add_argument("--from-latent", type=number(0, 1), metavar="ETA", help=about)
    return drawing


def interpolate() -> DrawingParser:
    """Go from one picture to another, as frames and a GIF."""
    drawing = DrawingParser(
        "interpolate",
        interpolate.__doc__,
        "a.png b.png --frames 9",
        "a.png b.png --keep sketch depth instances --between semantics palette",
        "a.png b.png --from-latents",
        pictures=["the first picture", "the last one"],
        between=True,
    )
    drawing.names("--between", [Kind.APPEARANCE], "conditions to interpolate")
    drawing.names("--keep", [], "conditions of the first picture that stay")
    drawing.parser.add_argument(
        "--frames", type=whole(2, MAX_PICTURES), default=5, help="how many pictures (default 5)"
    )
    drawing.parser.add_argument("--from-latents", action="store_true", help="begin with the pictures' inverted latents")
    return drawing


def reconfigure() -> DrawingParser:
    """Change some conditions of a picture, such as its sketch, and keep the picture otherwise."""
    drawing = DrawingParser(
        "reconfigure",
        reconfigure.__doc__,
        "photo.png --sketch edited.png",
        "photo.png --depth b.png --keep semantics palette",
        'photo.png --caption "a blue ball on grass" --keep palette --steps 50',
        pictures=["the picture"],
    )
    drawing.names("--keep", None, "conditions of the picture that stay (default: all others)")
    return drawing


def translate() -> DrawingParser:
    """Make a picture show what a caption says, keeping its shapes: image translation."""
    drawing = DrawingParser(
        "translate",
        translate.__doc__,
        'photo.png --to "a red cube on snow"',
        'photo.png --to "a red cube on snow" --image-caption "a red cube on sand" --guidance 5',
        pictures=["the picture"],
    )
    drawing.parser.add_argument("--to", metavar="WORDS", default="", help="what it is to show")
    drawing.names("--keep", LAYOUT, "conditions of the picture that stay")
    return drawing


def repose() -> DrawingParser:
    """Give a picture's things the shapes of another one's: pose transfer."""
    drawing = DrawingParser(
        "repose",
        repose.__doc__,
        "photo.png pose.png",
        "photo.png pose.png --take instances sketch --region 0.2,0.2,0.8,1",
        pictures=["the picture", "the one whose shapes to take"],
    )
    drawing.names("--keep", [Kind.APPEARANCE], "conditions of the picture that stay")
    drawing.names("--take", [Kind.SEGMENTATION], "conditions of the other one")
    return drawing


def colorize() -> DrawingParser:
    """Colour a picture anew, by colours or by other pictures' palettes."""
    drawing = DrawingParser(
        "colorize",
        colorize.__doc__,
        "photo.png --palette '#aa3311 0.6, #224488 0.4'",
        "photo.png --palette b.jpg c.jpg --frames 4",
        "photo.png --palette b.jpg --region mask.png --keep sketch",
        pictures=["the picture"],
    )
    drawing.names("--keep", [], "further conditions of the picture that stay")
    drawing.parser.add_argument(
        "--frames", type=whole(1, MAX_PICTURES), default=1, help="pictures from each palette to the next (default 1)"
    )
    return drawing


def restyle() -> DrawingParser:
    """Draw a picture's content in another one's style."""
    drawing = DrawingParser(
        "restyle",
        restyle.__doc__,
        "photo.png painting.jpg",
        "photo.png painting.jpg --sheet strength=0,0.25,0.5,0.75,1",
        pictures=["the picture whose content stays", "the one whose style to take"],
    )
    drawing.parser.add_argument(
        "--strength", type=number(0, 1), default=1.0, help="0 is the picture's own style (default 1)"
    )
    drawing.names("--keep", LAYOUT, "conditions of the first picture")
    drawing.names("--take", [Kind.APPEARANCE], "conditions of the second")
    return drawing


def try_on() -> DrawingParser:
    """Put one picture's looks where another one's clothes are: virtual try-on."""
    drawing = DrawingParser(
        "try-on",
        try_on.__doc__,
        "person.png garment.png --region clothes.png --seeds 0,1,2",
        "person.png garment.png --region 0.3,0.4,0.7,0.9 --keep depth",
        pictures=["who wears it", "the garment"],
        needs_region=True,
    )
    drawing.names("--keep", [], "conditions of the first picture that stay")
    return drawing


def turn() -> DrawingParser:
    """Turn a picture from what one caption says towards what another says: text differences."""
    drawing = DrawingParser(
        "turn",
        turn.__doc__,
        'photo.png --before "a red cube" --after "a blue cube"',
        'photo.png --before "a cube in winter" --after "a cube in summer" --shares 0,0.2,0.4',
        pictures=["the picture"],
    )
    add = drawing.parser.add_argument
    add("--before", default="", metavar="WORDS", help="what it shows")
    add("--after", default="", metavar="WORDS", help="what it is to show")
    add(
        "--shares",
        type=several(number(-100, 100)),
        default=[0, 0.125, 0.25, 0.375, 0.5],
        help="how far to turn (default 0 to 0.5)",
    )
    drawing.names("--keep", [], "conditions of the picture that stay")
    return drawing


def reconstruct() -> DrawingParser:
    """Draw what the first principal components of a picture's semantics hold."""
    drawing = DrawingParser(
        "reconstruct",
        reconstruct.__doc__,
        "photo.png --components 1,2,4,8,16,32",
        "photo.png --pca data/scenes64_pca.safetensors --seeds 0,1",
        pictures=["the picture"],
    )
    add = drawing.parser.add_argument
    add(
        "--components",
        type=several(whole(0, 1_000_000)),
        default=[1, 2, 4, 8, 16, 32],
        help="a picture for each number of them",
    )
    add(
        "--pca",
        default=AUTOREGRESSIVE_PRIOR,
        help=f"what `pca` wrote, or an autoregressive prior (default {AUTOREGRESSIVE_PRIOR})",
    )
    drawing.names("--keep", [], "conditions of the picture that stay")
    return drawing


PARSERS = {
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
"""Name of a command -> its parser."""
