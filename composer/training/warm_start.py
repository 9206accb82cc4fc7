"""Starts a training from the weights of a trained stage, to which new conditions may be added."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from composer.conditioning import Condition, ConditionSet
from composer.diffusion.denoiser import Denoiser
from composer.networks.codec import Codec, Pixels
from composer.networks.interface import Network
from composer.storage.building import Spec, build
from composer.storage.finding import find_model
from composer.storage.folder import read_model
from composer.storage.loading import load_strictly

FIRST = "denoiser.network.first.weight"


def warm_start(
    denoiser: Denoiser, conditions: ConditionSet, size: int, model: str | Path, codec: Codec | None = None
) -> tuple[str, list[str]]:
    """Loads a trained stage's weights; conditions that it lacks start silent, so that it draws what it drew before.

    A network with more map channels than the trained one has gets columns of zeros in its first layer, as GLIDE's
    inpainting began (Nichol et al. 2021, section 2.3). Layers that read objects stay fresh, with gates at 0, if the
    trained network has none (GLIGEN).

    Args:
        denoiser: Of the stage's architecture; it takes the stage's weights.
        conditions: The stage's own, which take its weights, and new ones.
        size: Side of the images, in pixels; decides which stage is meant where a model has several.
        model: The model's folder, or the name of one that ships.
        codec: What makes the stage's latents, which stays as it is; None is one that works on pixels.

    Returns:
        The stage's file and the names of the new conditions.

    Raises:
        FileNotFoundError: There is no such model.
        ValueError: No stage of it fits, its weights are of another architecture, or a condition can't be added.
    """
    folder = find_model(model)
    config, weights, _ = read_model(folder)
    stage = _fitting(config["stages"], size, "low_res" in conditions, folder)
    _require_same_latents(stage.get("codec"), codec, folder)
    tensors = {name: x for name, x in weights[stage["file"]].items() if not name.startswith("codec.")}
    known = ConditionSet({name: c for name, c in conditions.named() if name in stage["conditions"]})
    trained = nn.ModuleDict({"denoiser": denoiser, "conditions": known})
    trained_maps = _widen(tensors, trained)
    new = {name: c for name, c in conditions.named() if name not in known}
    grounded = _keep_fresh(tensors, trained, denoiser.network)
    for name, condition in new.items():
        _add(name, condition, denoiser.network, size, trained_maps, grounded)
    load_strictly(trained, tensors, f"{folder / stage['file']}")
    return stage["file"], list(new)


def _widen(tensors: dict[str, Tensor], trained: nn.Module) -> int | None:
    """Adds zeros for map channels that the trained network did not have: columns of its first layer, and rows of the
    last layers that make maps.

    Returns:
        The number of map channels that it had; None if nothing was added.
    """
    own = trained.state_dict()
    if FIRST not in own or FIRST not in tensors or own[FIRST].shape[1] <= tensors[FIRST].shape[1]:
        return None
    added: int = own[FIRST].shape[1] - tensors[FIRST].shape[1]
    network = trained.get_submodule("denoiser.network")
    assert isinstance(network, Network)
    maps = network.spatial_dim
    for name, x in tensors.items():
        if name == FIRST:
            tensors[name] = F.pad(x, (0, 0, 0, 0, 0, added))
        elif x.ndim and name in own and x.shape == (maps - added, *own[name].shape[1:]) and len(own[name]) == maps:
            tensors[name] = torch.cat([x, x.new_zeros(added, *x.shape[1:])])
    return maps - added


def _keep_fresh(tensors: dict[str, Tensor], trained: nn.Module, network: Network) -> bool:
    """Adds the fresh weights of the layers that read objects, if the trained network has none.

    Returns:
        Whether it has some.
    """
    own = {id(p) for layer in network.object_layers() for p in layer.parameters()}
    fresh = {name: p.detach() for name, p in trained.named_parameters() if id(p) in own}
    if tensors.keys() & fresh.keys():
        return True
    tensors.update(fresh)
    return False


def _fitting(stages: Sequence[Mapping[str, Any]], size: int, enlarges: bool, folder: Path) -> Mapping[str, Any]:
    """Chooses the stage that enlarges or doesn't, as wanted; of several models in a chain, the one of that size."""
    alike = [s for s in stages if ("low_res" in s["conditions"]) == enlarges]
    fitting = alike if len(stages) == 1 else [s for s in alike if s["size"] == size]
    if len(fitting) != 1:
        found = (
            f"{s['file']} ({s['size']} px, {'with' if 'low_res' in s['conditions'] else 'without'})" for s in stages
        )
        raise ValueError(
            f"expected a stage of {size} px {'with' if enlarges else 'without'} the condition low_res in {folder}, "
            f"found {', '.join(found)}"
        )
    return fitting[0]


def _require_same_latents(trained: Spec | None, codec: Codec | None, folder: Path) -> None:
    with torch.device("meta"):
        kinds = [made or Pixels() for made in (None if trained is None else build(trained, Codec), codec)]
    before, now = ((kind.channels, kind.factor, kind.scale) for kind in kinds)
    if before != now:
        raise ValueError(
            f"the model in {folder} works on other latents: expected a codec with channels, factor and scale {before}, "
            f"found {now}"
        )


def _add(name: str, condition: Condition, network: Network, size: int, maps: int | None, grounded: bool) -> None:
    """Silences a new condition, after a look at whether its ports are the trained network's.

    Args:
        name: Of the condition.
        condition: It.
        network: The trained network.
        size: Side of the images, in pixels.
        maps: Map channels that the network had, if it has more now.
        grounded: Whether its layers that read objects are trained: their gates are open then.
    """
    try:
        condition.silence() if maps is None else condition.silence(maps)
    except ValueError as error:
        raise ValueError(f"the condition {name} can't be added to a trained model: {error}") from error
    made = condition.try_out((size, size))
    if made.spatial is not None and not network.spatial_dim:
        raise ValueError(
            f"the condition {name} is a map, and this network reads none (spatial_dim: 0): set its spatial_dim above "
            "0; the new columns of its first layer begin as zeros"
        )
    if made.objects is not None and grounded:
        raise ValueError(
            f"the condition {name} makes objects, and this trained network reads objects already: its gates are open, "
            "and the new ones would change what it draws"
        )
    for port, found, width in (
        ("vector_dim", None if made.vector is None else made.vector.shape[1], network.vector_dim),
        ("spatial_dim", None if made.spatial is None else made.spatial.shape[1], network.spatial_dim),
        ("object_dim", None if made.objects is None else made.objects.shape[2], network.object_dim),
    ):
        if found not in (None, width):
            raise ValueError(f"expected the condition {name} with the network's {port} of {width}, found {found}")
