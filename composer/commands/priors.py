"""Commands for priors: ``embed``, ``pca``, ``evaluate-prior``; light."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from composer.commands.groups import ModelOptions
from composer.commands.signature import Value
from composer.commands.values import Config, Data, Device, Guidance, Json, Names, Pair, Rows, Side, whole
from composer.names import DIFFUSION_PRIOR, SEMANTICS, TEXT
from composer.terminal import advancing, say, track

if TYPE_CHECKING:
    from torch import Tensor

    from composer.cascade.cascade import Cascade
    from composer.evaluation.prior import PictureScore
    from composer.prior import Prior

Batch = dict[str, Any]


def embed(
    images: Path,
    *,
    config: Config,
    out: Path,
    names: Names = (SEMANTICS, TEXT),
    size: Side = 64,
    rows: Rows = 64,
    device: Device | None = None,
    plugins: Sequence[str],
) -> None:
    """Compute the embeddings of images and captions that a prior trains on.

    Args:
        images: a folder of images with captions
        config: the prior's training configuration, which names the decomposers: a file, or the name of an included one
        out: folder to write to; data.train of the configuration names it
        names: what to compute

    Examples:
        data/scenes64 -c configs/scenes_prior_diffusion.yaml --out data/scenes64_embeddings
    """
    from composer.data.embeddings import write_embeddings
    from composer.devices import pick_device
    from composer.training.configured_data import build_data

    train = ["--data.train=composer.data.ImageFolder", f"--data.train.path={images}", f"--data.train.size={size}"]
    data = build_data(["-c", str(config), *train], names, plugins)
    with advancing(str(images), len(data.train)) as advance:
        write_embeddings(data.train, data.decomposition, out, pick_device(device), rows, advance)
    say(f"{', '.join(names)} of {len(data.train)} images in {out}")


def pca(
    *, config: Config, out: Path, count: Pair = 100_000, rows: Rows = 256, rest: Sequence[str], plugins: Sequence[str]
) -> None:
    """Compute the principal components of image embeddings, which some priors need for training.

    Args:
        out: file to write; `statistics` of the configuration names it
        count: number of embeddings, evenly spread over the data
        rows: embeddings per batch

    Examples:
        -c configs/scenes_prior_ar.yaml --out data/scenes64_pca.safetensors
    """
    import torch
    from safetensors.torch import save

    from composer.data.datasets import collate
    from composer.prior.interface import text_embedding
    from composer.prior.pca import dimensions_for, fit_pca
    from composer.storage.files import write_atomically
    from composer.training.configured_data import build_data

    data = build_data(["-c", str(config), *rest], [SEMANTICS, TEXT], plugins)
    count = min(count, len(data.train))
    indices = [i * len(data.train) // count for i in range(count)]
    semantics, text = [], []
    for start in track(range(0, count, rows), "reading"):
        batch = data.decompose(collate([data.train[i, i] for i in indices[start : start + rows]]))
        found = batch["representations"][SEMANTICS].float()
        semantics.append(found)
        text.append(text_embedding(batch["representations"][TEXT].float(), found.shape[1]))
    statistics = fit_pca(torch.cat(semantics), torch.cat(text))
    write_atomically(out, save({name: value.contiguous() for name, value in statistics.items()}))
    needed = {share: dimensions_for(statistics["variance"], share) for share in (0.9, 0.95, 0.99, 0.999)}
    say(f"{len(statistics['mean'])} components of {count} embeddings in {out}")
    say("needed for a share of the variance: " + ", ".join(f"{share:.1%}: {k}" for share, k in needed.items()))


def evaluate_prior(
    prior: Annotated[str, Value(metavar="PRIOR")] = DIFFUSION_PRIOR,
    *,
    data: Data = "scenes:val",
    count: Pair = 256,
    draws: Annotated[int, Value(whole(1, 1000), "N")] = 4,
    guidance: tuple[Guidance, ...] = (),
    pictures: Annotated[int, Value(whole(0, 100_000), "N")] = 32,
    json: Json | None = None,
    out: Path | None = None,
    model: ModelOptions,
    plugins: Sequence[str],
) -> None:
    """Measure a prior: its embeddings against those of true images, and pictures drawn with and without it.

    Args:
        prior: a prior's folder, or an included one: scenes_prior_diffusion or scenes_prior_ar
        count: number of captions
        draws: embeddings and pictures per caption
        guidance: guidance weights of the prior to compare (default: its own)
        pictures: number of pictures to draw in each of the compared ways; 0 draws none
        out: folder to write the pictures to, as one sheet, prior.png

    Examples:
        scenes_prior_diffusion --data scenes:val --count 256 --guidance 1 2 --json prior.json
        models/my_prior --model models/mine --data photos/val --pictures 64 --out out/prior
    """
    from composer.evaluation.prior import as_json, markdown, measure_embeddings
    from composer.evaluation.samples import sample_of
    from composer.prior import Prior
    from composer.storage.files import write_json

    cascade = model.load(model.model, plugins)
    measured = Prior.load(prior, plugins, model.allow_network).to(cascade.device)
    batch, guidances = sample_of(data, count, cascade.stages[0].size), guidance or (measured.guidance,)
    images = measured.image_reader(plugins)
    tables: dict[str, Any] = {}
    retold = _retold(data, draws, batch)
    with advancing("drawing embeddings", count * draws * len(guidances)) as advance:
        tables["embeddings"] = measure_embeddings(measured, images, batch, draws, guidances, advance, retold)
    say(markdown(tables["embeddings"]))
    if pictures:
        tables["pictures"] = _pictures(measured, cascade, batch, draws, max(2, pictures // draws), guidances[0], out)
        say(markdown(tables["pictures"]))
    if json is not None:
        about = {"data": data, "count": count, "draws": draws, "pictures": pictures}
        about |= {"prior": measured.sha256, "model": cascade.sha256, "guidance": list(guidances)}
        write_json(json, {**{name: as_json(table) for name, table in tables.items()}, "about": about})


def _retold(data: str, draws: int, batch: Batch) -> "Tensor | None":
    """Other true pictures of the same captions, which Scenes alone can make."""
    from composer.scenes import render_retold

    world, _, split = data.partition(":")
    if world != "scenes":
        return None
    return render_retold(split, range(len(batch["image"])), draws, batch["image"].shape[-1])


def _pictures(
    prior: "Prior", cascade: "Cascade", batch: Batch, draws: int, few: int, guidance: float, out: Path | None
) -> "dict[str, PictureScore]":
    """Measures pictures of a few captions, and saves them where there is a folder."""
    from composer.cascade.options import SampleOptions
    from composer.evaluation.prior import measure_pictures
    from composer.images.sheet import save_png, sheet

    some = {"image": batch["image"][:few], "caption": batch["caption"][:few]}
    options = SampleOptions(until=cascade.stages[0].name)
    with advancing("drawing pictures", 5 * few * draws) as advance:
        table, pictures = measure_pictures(prior, cascade, some, draws, guidance, advance, options)
    if out is not None:
        true = [[image] for image in some["image"]]
        rows = [true[i] + [picture for drawn in pictures.values() for picture in drawn[i]] for i in range(few)]
        columns = ["true", *(f"{way}, {k}" for way in pictures for k in range(draws))]
        save_png(out / "prior.png", sheet(rows, some["caption"], columns))
        say(f"see {out / 'prior.png'}\n")
    return table
