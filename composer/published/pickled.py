"""Reads the tensors of pickled modules without running code that a file may contain."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from composer.storage.files import printable, shorten_error
from composer.storage.pretrained import MAX_MODULES, raise_for_memory


def read_modules(path: Path, classes: Mapping[str, tuple[str, ...]]) -> dict[str, Tensor]:
    """Reads the parameters of a module that was pickled whole.

    torch's own reader builds nothing but tensors and plain values. Where the file names one of `classes`, an empty
    class takes its place, whose objects hold what the file says of them and have no code.

    Args:
        path: The file.
        classes: Names of the classes that the file may hold, by module.

    Returns:
        Name -> tensor, as the module's `state_dict` would.

    Raises:
        ValueError: The file holds anything else, such as another class or code, or is damaged.
    """
    inert = [type(name, (), {"__module__": module}) for module, names in classes.items() for name in names]
    try:
        with torch.serialization.safe_globals([*inert]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # hostile bytes may raise any
        raise_for_memory(path, error)
        raise ValueError(
            f"{path} is refused: expected pickled modules of the classes that OpenAI's dVAE has, found other classes, "
            f"code or a damaged file: {shorten_error(error)}"
        ) from error
    if not isinstance(content, tuple(inert)):
        raise ValueError(f"{path}: expected a pickled module, found {type(content).__name__}")
    try:
        return dict(_tensors(content, tuple(inert)))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no pickled module: {shorten_error(error)}") from error


def _tensors(root: Any, inert: tuple[type, ...]) -> Iterator[tuple[str, Tensor]]:
    waiting, count = [("", root)], 0
    while waiting:
        prefix, module = waiting.pop()
        count += 1
        if not isinstance(module, inert) or count > MAX_MODULES:  # modules in a circle have no end
            raise ValueError(f"expected at most {MAX_MODULES} modules, one of them at {printable(prefix[:100])!r}")
        said = vars(module)
        for name, tensor in {**said["_parameters"], **said["_buffers"]}.items():
            if isinstance(tensor, Tensor):
                yield prefix + name, tensor.detach()
            elif tensor is not None:
                raise ValueError(f"expected a tensor at {printable((prefix + name)[:100])!r}")
        waiting += [(f"{prefix}{name}.", child) for name, child in said["_modules"].items()]
