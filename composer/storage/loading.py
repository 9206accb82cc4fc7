"""Loads weights into a network, only if they match exactly."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from composer.storage.files import printable
from composer.storage.pretrained import no_larger_than


def require_fit(make: Callable[[], nn.Module], tensors: Mapping[str, Tensor], what: str) -> None:
    """Checks that weights match a network before it takes any memory, whatever size its configuration asks for.

    Args:
        make: Builds the network.
        tensors: The weights.
        what: Whose configuration it is, for the error message.

    Raises:
        ValueError: They do not match, or the network is much larger than its weights.
    """
    size, modules = sum(tensor.nbytes for tensor in tensors.values()), 1000 + 8 * len(tensors)
    with no_larger_than(size, what, modules), torch.device("meta"), _Unfilled():
        module = make()
    _require_same(module, tensors, what)


class _Unfilled(TorchFunctionMode):
    """Skips random initialisation, for which PyTorch imports its compiler for seconds even on the meta device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func in (Tensor.normal_, Tensor.uniform_) else func(*args, **(kwargs or {}))


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Loads weights that must fit exactly, in any floating precision.

    Raises:
        ValueError: Names, shapes or dtypes differ; the first of each is named.
    """
    own = module.state_dict()
    _require_same(module, tensors, what)
    module.load_state_dict({k: v.to(own[k].dtype) for k, v in tensors.items()})


def _require_same(module: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    own = module.state_dict()
    missing, foreign = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    shapes = [k for k in own if k in tensors and own[k].shape != tensors[k].shape]
    kinds = [k for k in own if k in tensors and own[k].is_floating_point() != tensors[k].is_floating_point()]
    if missing or foreign or shapes or kinds:
        found = [
            f"{len(names)} {kind} (first: {printable(names[0][:100])})"
            for kind, names in (
                ("missing", missing),
                ("foreign", foreign),
                ("of another shape", shapes),
                ("not of real numbers", kinds),
            )
            if names
        ]
        raise ValueError(f"the weights do not belong to this configuration of {what}: {'; '.join(found)}")
