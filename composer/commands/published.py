"""The command ``import``: published weights as models; light."""

from pathlib import Path
from typing import Annotated

from composer.commands.signature import Value
from composer.commands.values import Network, Title
from composer.terminal import say


def import_(
    files: Annotated[tuple[str, ...], Value(metavar="FILE", nargs="+")],
    *,
    families: Annotated[tuple[str, ...], Value(metavar="FAMILY", flags=("--as",), nargs="+")] = (),
    out: Path | None = None,
    check: bool = False,
    merges: Annotated[str, Value(metavar="FILE")] | None = None,
    clip: Annotated[str, Value(metavar="WEIGHTS")] | None = None,
    name: Title | None = None,
    report: Annotated[Path, Value(Path, "FILE")] | None = None,
    allow_network: Network = False,
) -> None:
    """Make a model of published weights: GLIDE, ADM, Karlo, Alibaba's, OpenAI's dVAE, Stable Diffusion's autoencoder.

    Args:
        files: the published files; those of several families become the stages of one model, smallest images first
        families: the families of the files, such as glide-base, in the same order; without it, the command says
            what the files look like
        out: the new model's folder
        check: compare the files with the known layouts, and write nothing
        merges: GPT-2's merges.txt, for GLIDE (default: from the Hugging Face hub)
        clip: CLIP's weights, for Karlo and Alibaba's (default: each one's own, from the Hugging Face hub), and to
            measure GLIDE's pictures with (default: they are not)
        report: a JSON file that says for each tensor where it comes from

    Examples:
        base.pt upsample.pt --as glide-base glide-up --out models/glide --allow-network
        prior.ckpt ViT-L-14_stats.th --as karlo-prior --out models/karlo-prior --allow-network
        base.pt --check --as glide-base
    """
    from composer.published import Needs, Published, import_model
    from composer.published.importing import recognise, share_out
    from composer.storage.files import write_json
    from composer.storage.pretrained import fetching

    if not families:
        say(*(f"{file}: {recognise(file)}" for file in files))
        return
    given = share_out(files, families)
    needs = Needs(**{key: value for key, value in (("merges", merges), ("clip", clip)) if value is not None})
    if check:
        for family, own in given.items():
            one = Published.open(own, family, needs)
            one.convert(needs, shapes_only=True)
            say(f"{' and '.join(own)}: {one.compare()}; every tensor has its place")
        return
    if out is None:
        raise ValueError("import needs --out: the new model's folder")
    with fetching(allow_network):
        done = import_model(given, out, needs, name)
    if report is not None:
        write_json(report, {family: one.report for family, one in zip(families, done, strict=True)})
    say(f"model in {out}: {sum(len(one.tensors) for one in done)} tensors of {', '.join(families)}")
