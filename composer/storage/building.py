"""Builds what a model's configuration names: classes of a closed list, so that no model can run code."""

import importlib
import inspect
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from composer.moved import MOVED
from composer.storage.files import printable, resolve_below, shorten_error
from composer.storage.formats import SPEC


class Buildable:
    """Base of all classes that a configuration may name.

    Attributes:
        weights_arguments: The constructor's arguments that name a file or folder: weights, a list of words. An exported
            model includes these files, and no others.
    """

    weights_arguments: ClassVar[tuple[str, ...]] = ()


Spec = Mapping[str, Any]
"""How an object is built: ``{"class_path": "decomposers.Palette", "init_args": {...}}``, nested as needed."""

MODULES = (
    "decomposers",
    "conditions",
    "composer",
    "composer.autoregressive",
    "composer.autoregressive.image_tokens",
    "composer.networks.experts",
    "composer.networks.unet",
    "composer.networks.dvae",
    "composer.networks.autoencoder",
    "composer.networks.codec",
    "composer.diffusion.denoiser",
    "composer.cascade",
    "composer.cascade.low_res",
    "composer.prior",
)

TAG = re.compile(r"[\w-]{1,100}")
"""A tag of weights in open_clip, such as ``openai``."""

T = TypeVar("T", bound=Buildable)


def build(spec: Spec, expected: type[T], plugins: Collection[str] = (), folder: Path | None = None) -> T:
    """Builds an object from its specification.

    Args:
        spec: Class and arguments; arguments that are specifications themselves are built first.
        expected: What the result must be an instance of.
        plugins: Modules beyond `MODULES` that the user trusts.
        folder: The model's own folder; a weights argument that begins with ``model:`` points into it.

    Raises:
        ValueError: The class is not on the closed list, is not a subclass of `expected`, or refuses its arguments.
    """
    SPEC(spec, "the specification")
    cls = class_of(spec, expected, plugins)
    arguments = {
        key: build(value, Buildable, plugins, folder) if is_spec(value) else value
        for key, value in resolve_arguments(cls, spec, folder).items()
    }
    try:
        return cls(**arguments)
    except (OSError, ValueError):  # their messages are clear
        raise
    except Exception as error:  # wrong types or sizes of arguments may raise any error
        raise ValueError(f"{spec['class_path']} does not take these arguments: {shorten_error(error)}") from error


def class_of(spec: Spec, expected: type[T], plugins: Collection[str] = ()) -> type[T]:
    """Finds the class that a specification names, by its current name or one from before it moved.

    Args:
        spec: See `build`.
        expected: What it must be a subclass of.
        plugins: See `build`.

    Raises:
        ValueError: The class is not on the closed list, or not a subclass of `expected`.
    """
    path = str(spec.get("class_path", ""))
    module, _, name = path.rpartition(".")
    module = MOVED.get(module, module)
    if module not in (*MODULES, *plugins):
        raise ValueError(
            f"the model names {path!r}, which is not one of the modules {', '.join((*MODULES, *plugins))}; "
            "allow a module that you trust with plugins=[...] (--plugins on the command line)"
        )
    cls = getattr(importlib.import_module(module), name, None)
    if not (inspect.isclass(cls) and issubclass(cls, Buildable) and issubclass(cls, expected)):
        raise ValueError(f"expected the name of a {expected.__name__}, found {path!r}")
    return cls


def is_spec(value: Any) -> bool:
    """Whether a value names a class and its arguments."""
    return isinstance(value, Mapping) and "class_path" in value


def resolve_arguments(cls: type[Buildable], spec: Spec, folder: Path | None) -> dict[str, Any]:
    """Returns a specification's arguments, with ``model:`` names resolved to paths.

    Args:
        cls: The class that it names.
        spec: See `build`.
        folder: See `build`.

    Raises:
        ValueError: One leads out of the model's folder, or names a local file outside of it.
    """
    arguments = dict(spec.get("init_args") or {})
    for key, value in arguments.items():
        if folder is None or not isinstance(value, str):
            continue
        if value.startswith("model:"):
            arguments[key] = str(resolve_below(folder, value.removeprefix("model:")))
        elif key in cls.weights_arguments and not _is_elsewhere(value):
            raise ValueError(
                f"{spec['class_path']}: expected {key} to lie in the model's folder (model:...), in the package "
                f"(asset:...) or on the hub (hub:...), found {printable(value[:80])!r}, a local file"
            )
    return arguments


def _is_elsewhere(source: str) -> bool:
    """Whether weights come from the package, the hub, or an open_clip tag that is not also a local file."""
    tag = TAG.fullmatch(source) is not None and not Path(source).exists()
    return tag or source.startswith(("asset:", "hub:"))
