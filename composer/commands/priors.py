"""The commands around priors: ``embed``, ``pca``, ``evaluate-prior``, and the export of a run."""

import argparse
import json
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from composer.cascade.assembling import carry_weights
from composer.cascade.cascade import Cascade
from composer.cascade.options import SampleOptions
from composer.commands.options import load
from composer.data.datasets import collate
from composer.data.embeddings import write_embeddings
from composer.devices import pick_device
from composer.evaluation.prior import PictureScore, as_json, markdown, measure_embeddings, measure_pictures
from composer.evaluation.samples import sample_of
from composer.images.sheet import save_png, sheet
from composer.prior.autoregressive import AutoregressivePrior
from composer.prior.interface import SEMANTICS, TEXT, Prior, text_embedding
from composer.prior.pca import dimensions_for, fit
from composer.scenes import render_retold
from composer.storage.building import build
from composer.storage.files import replacing_all, write_atomically
from composer.storage.folder import PRIOR_FILE
from composer.storage.formats import check_prior
from composer.storage.loading import load_strictly, require_fit
from composer.storage.pretrained import fetching, load_tensors, noting_files
from composer.terminal import bar, say, track


def embed(o: argparse.Namespace, plugins: Sequence[str]) -> None:
    """Compute embeddings of images and captions once, for the training of a prior."""
    from composer.training.configured_data import data_of

    train = ["--data.train=composer.data.ImageFolder", f"--data.train.path={o.images}", f"--data.train.size={o.size}"]
    data = data_of(["-c", str(o.config), *train], o.names, plugins)
    device = pick_device(o.device)
    with bar(transient=True) as progress:
        task = progress.add_task(o.images, total=len(data.train))
        write_embeddings(data.train, data.decomposition, o.out, device, o.rows, partial(progress.advance, task))
    say(f"{', '.join(o.names)} of {len(data.train)} images in {o.out}")


def pca(o: argparse.Namespace, changes: Sequence[str], plugins: Sequence[str]) -> None:
    """Find the principal components of a training's image embeddings, for the priors that need them."""
    from composer.training.configured_data import data_of

    data = data_of(["-c", str(o.config), *changes], [SEMANTICS, TEXT], plugins)
    count = min(o.count, len(data.train))
    indices = [i * len(data.train) // count for i in range(count)]
    semantics, text = [], []
    for start in track(range(0, count, o.rows), "reading"):
        batch = data.decompose(collate([data.train[i, i] for i in indices[start : start + o.rows]]))
        found = batch["representations"][SEMANTICS].float()
        semantics.append(found)
        text.append(text_embedding(batch["representations"][TEXT].float(), found.shape[1]))
    statistics = fit(torch.cat(semantics), torch.cat(text))
    write_atomically(o.out, save({name: value.contiguous() for name, value in statistics.items()}))
    needed = {share: dimensions_for(statistics["variance"], share) for share in (0.9, 0.95, 0.99, 0.999)}
    say(f"{len(statistics['mean'])} components of {count} embeddings in {o.out}")
    say("needed for a share of the variance: " + ", ".join(f"{share:.1%}: {k}" for share, k in needed.items()))


def evaluate_prior(o: argparse.Namespace, plugins: Sequence[str]) -> None:
    """Measure a prior: its embeddings beside the true images', and pictures drawn with and without it."""
    cascade = load(o, plugins)
    prior = Prior.load(o.prior, plugins, o.allow_network).to(cascade.device)
    batch, guidances = sample_of(o.data, o.count, cascade.stages[0].size), o.guidance or [prior.guidance]
    images = prior.image_reader(plugins)
    tables: dict[str, Any] = {}
    with bar(transient=True) as progress:
        task = progress.add_task("drawing embeddings", total=o.count * o.draws * len(guidances))
        advance = partial(progress.advance, task)
        tables["embeddings"] = measure_embeddings(prior, images, batch, o.draws, guidances, advance, _retold(o, batch))
    say(markdown(tables["embeddings"]))
    if o.pictures:
        tables["pictures"] = _pictures(o, prior, cascade, batch, guidances[0])
        say(markdown(tables["pictures"]))
    if o.json is not None:
        about = {name: getattr(o, name) for name in ("data", "count", "draws", "pictures")}
        about |= {"prior": prior.sha256, "model": cascade.sha256, "guidance": guidances}
        write_atomically(
            o.json,
            (
                json.dumps({**{name: as_json(table) for name, table in tables.items()}, "about": about}, indent=2)
                + "\n"
            ).encode(),
        )


def _retold(o: argparse.Namespace, batch: dict[str, Any]) -> Tensor | None:
    """Other true pictures of the same captions, which Scenes alone can make."""
    world, _, split = o.data.partition(":")
    if world != "scenes":
        return None
    return render_retold(split, range(len(batch["image"])), o.draws, batch["image"].shape[-1])


def _pictures(
    o: argparse.Namespace, prior: Prior, cascade: Cascade, batch: dict[str, Any], guidance: float
) -> dict[str, PictureScore]:
    few = max(2, o.pictures // o.draws)
    some = {"image": batch["image"][:few], "caption": batch["caption"][:few]}
    with bar(transient=True) as progress:
        task = progress.add_task("drawing pictures", total=5 * few * o.draws)
        advance = partial(progress.advance, task)
        table, pictures = measure_pictures(
            prior, cascade, some, o.draws, guidance, advance, SampleOptions(until=cascade.stages[0].name)
        )
    if o.out is not None:
        true = [[image] for image in some["image"]]
        rows = [true[i] + [picture for drawn in pictures.values() for picture in drawn[i]] for i in range(few)]
        columns = ["true", *(f"{way}, {k}" for way in pictures for k in range(o.draws))]
        save_png(o.out / "prior.png", sheet(rows, some["caption"], columns))
        say(f"see {o.out / 'prior.png'}\n")
    return table


def prior_for(
    cascade: Cascade, folder: str, given: Collection[str], plugins: Sequence[str], network: bool = False
) -> Prior:
    """Loads a prior that is to draw the semantics for a model, see `require_caption` and `load_prior`."""
    require_caption(cascade, given)
    return load_prior(cascade, folder, plugins, network)


def require_caption(cascade: Cascade, given: Collection[str]) -> None:
    """Makes sure that a prior has something to draw.

    Args:
        cascade: The model.
        given: The conditions that a person asked for.

    Raises:
        ValueError: There is no caption to draw for, the semantics are given already, or the model reads none.
    """
    if "caption" not in given or SEMANTICS in given:
        raise ValueError("--prior draws the semantics of a --caption: give a caption, and no --semantics beside it")
    if not {"caption", SEMANTICS} <= set(cascade.names):
        raise ValueError(f"--prior wants a model that reads semantics; this one reads {', '.join(cascade.names)}")


def load_prior(cascade: Cascade, folder: str, plugins: Sequence[str], network: bool = False) -> Prior:
    """Loads a prior for a model that reads semantics.

    Args:
        cascade: The model.
        folder: The prior's.
        plugins: Modules that the user trusts.
        network: See `Prior.load`.

    Raises:
        ValueError: The model reads embeddings of another width.
    """
    prior = Prior.load(folder, plugins, network).to(cascade.device)
    size = cascade.stages[0].size
    decomposer = dict(cascade.decomposition.named())[SEMANTICS]
    width = decomposer({"image": torch.zeros(1, 3, size, size, device=cascade.device)}).shape[1]
    if width != prior.dim:
        raise ValueError(f"the model reads embeddings of width {width}, this prior draws width {prior.dim}")
    return prior


def principal_components(source: str, plugins: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Reads the mean and the principal components of image embeddings, the most important first.

    Args:
        source: A file that ``pca`` wrote, or an autoregressive prior, shipped or a folder.
        plugins: Modules that the user trusts.

    Raises:
        FileNotFoundError: There is neither.
        ValueError: The prior knows no components.
    """
    if Path(source).is_file():
        found = load_tensors(Path(source))
        if missing := {"mean", "components"} - found.keys():
            raise ValueError(f"expected a file that `pca` wrote, found no {', '.join(sorted(missing))} in {source}")
        return found["mean"], found["components"]
    prior = Prior.load(source, plugins)
    if not isinstance(prior, AutoregressivePrior):
        raise ValueError(f"expected an autoregressive prior or a file that `pca` wrote, found {source}")
    return prior.codebook.mean, prior.codebook.components


def export_prior(
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    out: Path,
    name: str,
    card: str,
    dtype: torch.dtype,
    sampling: Mapping[str, Any],
    plugins: Sequence[str],
    within: Collection[Path] | None = None,
    network: bool = False,
) -> dict[str, Any]:
    """Writes a prior's folder from what its training left.

    Args:
        config: The ``model`` and ``data`` sections that travel with a checkpoint.
        weights: The averaged weights, under ``prior.``.
        out: The prior's folder.
        name: The prior's name.
        card: The card, Markdown.
        dtype: Precision of the weights on disk.
        sampling: ``guidance`` and ``steps``, where they are to differ from the training's configuration.
        plugins: Modules that the user trusts.
        within: See `carry_weights`.
        network: See `Prior.load`.

    Returns:
        The prior's configuration.

    Raises:
        ValueError: `sampling` holds what this prior does not have, or weights and configuration do not fit.
    """
    if foreign := sorted(sampling.keys() - {"guidance", "steps"}):
        raise ValueError(f"a prior has no {', '.join(foreign)}; it has guidance and, if by diffusion, steps")
    decomposers = config["data"]["decomposers"]
    if missing := {TEXT, SEMANTICS} - decomposers.keys():
        raise ValueError(f"the checkpoint's configuration is that of no prior: no decomposer {', '.join(missing)}")
    trained = config["model"]["init_args"]["prior"]
    trained = {"file": PRIOR_FILE, **trained, "init_args": {**(trained.get("init_args") or {}), **sampling}}
    made = {"name": name, "priors": [trained], "decomposers": {key: decomposers[key] for key in (TEXT, SEMANTICS)}}
    check_prior(made)
    own = {key.removeprefix("prior."): value for key, value in weights.items()}
    with fetching(network), noting_files() as read:
        require_fit(lambda: build(trained, Prior, plugins), own, str(out))
        prior = Prior.from_spec(made, plugins)
    load_strictly(prior, own, str(out))
    prior.check_ready()
    with replacing_all(out) as new:
        prior.spec = carry_weights(made, new, plugins, read, within)
        prior.save(new, card, dtype)
    return prior.spec
