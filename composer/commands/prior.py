"""The commands around priors: ``embed``, ``pca`` and ``evaluate-prior``; light, `prior.commands` does them."""

from collections.abc import Sequence
from pathlib import Path

from composer.commands.parsers import FIELDS, MAX_IMAGES, add_config, add_device, add_model, make_parser, whole
from composer.names import AUTOREGRESSIVE_PRIOR, DIFFUSION_PRIOR, SEMANTICS, TEXT


def embed(args: Sequence[str], plugins: Sequence[str]) -> None:
    """Compute embeddings of images and captions once, for the training of a prior."""
    example = "data/scenes64 -c configs/scenes_prior_diffusion.yaml --out data/scenes64_embeddings"
    parser = make_parser("embed", embed.__doc__, example)
    parser.add_argument("images", help="a folder of images with captions")
    add_config(parser, "the prior's training, which says what reads them", required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder to write, which its data.train names")
    parser.add_argument("--names", nargs="+", default=[SEMANTICS, TEXT], help=f"default: {SEMANTICS} {TEXT}")
    parser.add_argument(
        "--size", type=whole(8, 4096), default=64, help="side of the images as they are read (default 64)"
    )
    parser.add_argument("--rows", type=whole(1, 4096), default=64, help="images at a time (default 64)")
    add_device(parser)
    o = parser.parse_args(args)
    from composer.commands import priors as commands

    commands.embed(o, plugins)


def pca(args: Sequence[str], plugins: Sequence[str]) -> None:
    """Find the principal components of a training's image embeddings, for the priors that need them."""
    example = "-c configs/scenes_prior_ar.yaml --out data/scenes64_pca.safetensors"
    parser = make_parser("pca", pca.__doc__, example)
    add_config(parser, "the prior's training; further options change it", required=True)
    parser.add_argument("--out", type=Path, required=True, help="file to write, which its `statistics` names")
    parser.add_argument(
        "--count", type=whole(2, MAX_IMAGES), default=100_000, help="embeddings, evenly spread (default 100000)"
    )
    parser.add_argument("--rows", type=whole(1, 4096), default=256, help="embeddings at a time (default 256)")
    o, changes = parser.parse_known_args(args)
    from composer.commands import priors as commands

    commands.pca(o, changes, plugins)


def evaluate_prior(args: Sequence[str], plugins: Sequence[str]) -> None:
    """Measure a prior: its embeddings beside the true images', and pictures drawn with and without it."""
    parser = make_parser(
        "evaluate-prior",
        evaluate_prior.__doc__,
        f"{DIFFUSION_PRIOR} --data scenes:val --count 256 --guidance 1 2 --json prior.json",
        "models/my_prior --model models/mine --data photos/val --pictures 64 --out out/prior",
    )
    shipped = f"a prior's folder, {DIFFUSION_PRIOR} or {AUTOREGRESSIVE_PRIOR}, which are shipped"
    parser.add_argument("prior", nargs="?", default=DIFFUSION_PRIOR, help=shipped)
    parser.add_argument("--data", default="scenes:val", help="scenes:val, scenes:novel, or a folder of images")
    parser.add_argument("--count", type=whole(2, MAX_IMAGES), default=256, help="captions (default 256)")
    parser.add_argument("--draws", type=whole(1, 1000), default=4, help="embeddings and pictures a caption (default 4)")
    parser.add_argument(
        "--guidance", type=FIELDS["guidance"], nargs="+", help="the prior's, several to compare (default: its own)"
    )
    parser.add_argument(
        "--pictures", type=whole(0, 100_000), default=32, help="pictures each way; 0 draws none (default 32)"
    )
    parser.add_argument("--json", type=Path, help="file to write the tables to")
    parser.add_argument("--out", type=Path, help="folder for prior.png, a sheet of the pictures")
    add_model(parser)
    o = parser.parse_args(args)
    from composer.commands import priors as commands

    commands.evaluate_prior(o, plugins)
