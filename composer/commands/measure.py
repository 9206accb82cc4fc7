"""Commands that measure: ``evaluate``, ``report``."""

from collections.abc import Sequence
from pathlib import Path

from composer.commands.parsers import (
    MAX_IMAGES,
    MAX_SIDE,
    SEED_OF_MANY,
    add_device,
    add_model,
    add_network,
    add_out,
    add_precision,
    add_sampling,
    make_parser,
    whole,
)
from composer.names import CLOSED, SHIPPED
from composer.storage.finding import find_model
from composer.terminal import note, say, show


def report(args: Sequence[str], plugins: Sequence[str]) -> None:
    """Compare a picture with what its recipe asked for, condition by condition: what was asked, what came back."""
    examples = ("out/compose_seed0.png", "out/edit_photo_seed0.png --image photo.png --out out/report")
    parser = make_parser("report", f"{report.__doc__}\n\n{CLOSED}", *examples)
    parser.add_argument("picture", type=Path, help="a PNG that carries its recipe")
    parser.add_argument("--image", type=Path, help="for an edit: the picture that was edited")
    add_model(parser)
    add_out(parser, "out/report")
    o = parser.parse_args(args)
    from composer.commands.options import load
    from composer.evaluation.reading import strangers_note
    from composer.evaluation.report import examine
    from composer.images.reading import PictureFile
    from composer.images.sheet import read_recipe, save_png
    from composer.storage.files import reserved, written
    from composer.storage.folder import digest_of
    from composer.tasks.recipe import check_model

    picture = PictureFile(o.picture)
    check_model(read_recipe(picture), digest_of(find_model(o.model)))  # before anything is loaded or fetched
    cascade = load(o, plugins)
    found = examine(cascade, picture, o.image)
    show(*(table.rich() for table in found.tables()))
    say(CLOSED)
    if missing := strangers_note(cascade):
        note(missing)
    with reserved(o.out, [f"report_{o.picture.stem}.png"]) as paths:
        save_png(paths[0], found.picture())
    say(written(paths))


DISTRIBUTIONS = """Pictures drawn from the captions, compared with the images as a whole. None is kept: 30,000 take no
more memory than 256, but for KID: it keeps the features of both, 246 MB each for 30,000 and Inception's 2048."""


def evaluate(args: Sequence[str], plugins: Sequence[str]) -> None:
    """Measure adherence, whole distributions (FID, KID, CLIP score), or what comes of a list of prompts."""
    parser = make_parser(
        "evaluate",
        evaluate.__doc__,
        "scenes256 --data scenes:val --count 256 --seed 0 --json adherence.json",
        "scenes256 --prior scenes_prior_diffusion --alone",
        "scenes256 --metrics fid kid clip --data scenes:val --count 30000",
        "scenes256 --prompts asset:scenes_prompts.csv --n 4 --out out/prompts",
        "models/mine --against scenes256 --prompts prompts.csv",
    )
    parser.add_argument("model", nargs="?", default=SHIPPED, help=f"a model's folder, or {SHIPPED}, which is shipped")
    parser.add_argument("--data", default="scenes:val", help="scenes:val, scenes:novel, or a folder of images")
    parser.add_argument("--count", type=whole(1, MAX_IMAGES), default=256, help="number of images (default 256)")
    least = "a folder's images with a shorter side below N pixels are refused (default: the side they are measured at)"
    parser.add_argument("--min-side", type=whole(0, MAX_SIDE), metavar="N", help=least)
    parser.add_argument("--seed", type=SEED_OF_MANY, default=0)
    parser.add_argument(
        "--rows", type=whole(1, 4096), default=32, help="images read and pictures drawn at a time (default 32)"
    )
    draws = "a prior, such as scenes_prior_diffusion: wherever a caption is asked for without semantics, it draws them"
    parser.add_argument("--prior", metavar="NAME", help=draws)
    parser.add_argument("--alone", action="store_true", help="only every condition alone: half the work")
    parser.add_argument("--json", type=Path, help="file to write the table to")
    group = parser.add_argument_group("distributions", DISTRIBUTIONS)
    group.add_argument("--metrics", nargs="+", choices=("adherence", "fid", "kid", "clip"), default=["adherence"])
    group.add_argument("--features", default="semantics", help="for FID and KID: a reader, or Inception's file")
    group.add_argument("--clip", help="weights for the CLIP score (default: the model's own reader of captions)")
    group = parser.add_argument_group("prompts")
    group.add_argument(
        "--prompts", help="a CSV with the columns Prompts and Category; asset:scenes_prompts.csv is ours"
    )
    group.add_argument("--against", help="a second model, for a blind vote")
    group.add_argument("--n", type=whole(1, 1000), default=4, help="pictures a prompt (default 4)")
    group = parser.add_argument_group("things")
    counts = "instead of all else, count what pictures of one to three things show, by this judge's folder"
    group.add_argument("--things", metavar="JUDGE", help=counts)
    says = "captions to count with (default complete)"
    group.add_argument("--captions", choices=("complete", "short"), default="complete", help=says)
    add_out(parser, "out/prompts")
    add_sampling(parser)
    add_network(parser)
    add_precision(parser)
    add_device(parser)
    o = parser.parse_args(args)
    from composer.commands.evaluating import evaluate as run

    run(o, plugins)
