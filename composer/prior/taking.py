"""Loads priors that users name, for a model, and their principal components."""

from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from torch import Tensor

from composer.cascade.cascade import Cascade
from composer.prior.autoregressive import AutoregressivePrior
from composer.prior.interface import SEMANTICS, Prior, to_sphere
from composer.storage.pretrained import load_tensors


def prior_for(
    cascade: Cascade, folder: str, given: Collection[str], plugins: Sequence[str], network: bool = False
) -> Prior:
    """Loads a prior to draw the semantics for a model, see `require_caption` and `load_prior`."""
    require_caption(cascade, given)
    return load_prior(cascade, folder, plugins, network)


def require_caption(cascade: Cascade, given: Collection[str]) -> None:
    """Checks that the request has a caption but no semantics, and that the model reads both.

    Args:
        cascade: The model.
        given: The conditions that the user asked for.

    Raises:
        ValueError: There is no caption to draw for, the semantics are given already, or the model reads none.
    """
    if "caption" not in given or SEMANTICS in given:
        raise ValueError("--prior draws the semantics of a --caption: give a caption, and no --semantics beside it")
    if not {"caption", SEMANTICS} <= set(cascade.names):
        raise ValueError(f"--prior needs a model that reads semantics; this one reads {', '.join(cascade.names)}")


def load_prior(cascade: Cascade, folder: str, plugins: Sequence[str], network: bool = False) -> Prior:
    """Loads a prior for a model that reads semantics.

    Args:
        cascade: The model.
        folder: The prior's.
        plugins: Modules that the user trusts.
        network: See `Prior.load`.

    Raises:
        ValueError: The model reads embeddings of another width or length, or from images of another size.
    """
    prior = Prior.load(folder, plugins, network).to(cascade.device)
    own, others = (at and f"{at} px" for at in (cascade.decomposition.source, prior.spec.get("source")))
    if own != others:
        raise ValueError(
            f"the model's decomposers read images at {own or 'the size that it draws'}, those of this prior at "
            f"{others or 'the size that it was trained on'}: CLIP says something else of each; train the prior on "
            "embeddings with the same data.source"
        )
    size = cascade.stages[0].size
    decomposer = dict(cascade.decomposition.named())[SEMANTICS]
    read = decomposer({"image": torch.zeros(1, 3, size, size, device=cascade.device)})
    if read.shape[1] != prior.dim:
        raise ValueError(f"the model reads embeddings of width {read.shape[1]}, this prior draws width {prior.dim}")
    if prior.scaled != torch.allclose(read, to_sphere(read), rtol=1e-3):
        ways = ("as long as CLIP makes them", f"of length sqrt({prior.dim})")
        raise ValueError(
            f"the model reads embeddings {ways[not prior.scaled]}, this prior draws them {ways[prior.scaled]}: they do "
            "not belong together"
        )
    return prior


def principal_components(source: str, plugins: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Reads the mean and the principal components of image embeddings, the most important first.

    Args:
        source: A file that ``pca`` wrote, or an autoregressive prior: the name of an included one, or a folder.
        plugins: Modules that the user trusts.

    Raises:
        FileNotFoundError: There is neither.
        ValueError: The prior has no principal components.
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
