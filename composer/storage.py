"""Models as folders: safetensors, a JSON configuration with names from a closed list, and a manifest of hashes.

Nothing in such a folder can run code: weights are safetensors, and the configuration may only name classes of the
modules below, or of plugins that the user allows, by name, at the call.
"""

import hashlib
import importlib
import inspect
import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from safetensors.torch import load_file, save
from torch import Tensor, nn

from .conditioning import Condition
from .decomposition import Decomposer
from .denoiser import Denoiser, NoiseLevels
from .files import replacing_all, write_atomically
from .finding import FORMAT, read_config, require_model
from .low_res import Corruption
from .prior.interface import Prior
from .unet import UNet

Spec = Mapping[str, Any]
"""How an object is built: ``{"class_path": "decomposers.Palette", "init_args": {...}}``, nested as needed."""

MODULES = (
    "decomposers",
    "conditions",
    "composer",
    "composer.unet",
    "composer.denoiser",
    "composer.low_res",
    "composer.prior",
)
BUILDABLE = (Decomposer, Condition, Denoiser, NoiseLevels, UNet, Corruption, Prior)

T = TypeVar("T")


def build(spec: Spec, expected: type[T], plugins: Collection[str] = (), folder: Path | None = None) -> T:
    """Builds what a specification names.

    Args:
        spec: Class and arguments; arguments that are specifications themselves are built first.
        expected: What the result must be an instance of.
        plugins: Modules beyond `MODULES` that the user trusts.
        folder: The model's own folder; a weights argument that begins with ``model:`` points into it.

    Raises:
        ValueError: The class is not on the closed list, is no `expected`, or refuses its arguments.
    """
    path = str(spec.get("class_path", ""))
    module, _, name = path.rpartition(".")
    if module not in (*MODULES, *plugins):
        raise ValueError(
            f"the model names {path!r}, which is not one of the modules {', '.join((*MODULES, *plugins))}; "
            "allow a module that you trust with plugins=[...] (--plugins on the command line)"
        )
    cls = getattr(importlib.import_module(module), name, None)
    if not (inspect.isclass(cls) and issubclass(cls, BUILDABLE) and issubclass(cls, expected)):
        raise ValueError(f"expected the name of a {expected.__name__}, found {path!r}")
    arguments = {key: _argument(value, plugins, folder) for key, value in (spec.get("init_args") or {}).items()}
    try:
        return cls(**arguments)
    except TypeError as error:
        raise ValueError(f"{path} does not take these arguments: {error}") from error


def _argument(value: Any, plugins: Collection[str], folder: Path | None) -> Any:
    if isinstance(value, Mapping) and "class_path" in value:
        return build(value, object, plugins, folder)
    if isinstance(value, str) and value.startswith("model:") and folder is not None:
        return str(folder / value.removeprefix("model:"))
    return value


def digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(folder: Path) -> str:
    """The SHA-256 that names the exact state of the model in a folder: that of its manifest.

    Raises:
        FileNotFoundError: There is no model.
    """
    require_model(folder)
    return digest(folder / "manifest.json")


def write_model(folder: Path, config: Mapping[str, Any], weights: Mapping[str, dict[str, Tensor]], card: str) -> None:
    """Writes a model's folder, all of it or nothing: a process that is killed leaves the old model or the new one.

    Args:
        folder: Where to; files of the same names are replaced, all others stay and belong to the model.
        config: What `build` needs, as plain JSON values.
        weights: File name -> tensors.
        card: The model card, Markdown; an empty one leaves a card that is there.
    """
    with replacing_all(folder) as new:
        for name, tensors in weights.items():
            write_atomically(new / name, save({k: v.detach().contiguous().cpu() for k, v in tensors.items()}))
        write_atomically(new / "config.json", (json.dumps({"format": FORMAT, **config}, indent=2) + "\n").encode())
        if card or not (folder / "README.md").exists():
            write_atomically(new / "README.md", card.encode())
        places = _files(folder) | _files(new)
        manifest = {name: digest(places[name]) for name in sorted(places.keys() - {"manifest.json", "README.md"})}
        write_atomically(new / "manifest.json", (json.dumps(manifest, indent=2) + "\n").encode())


def _files(folder: Path) -> dict[str, Path]:
    """Names of the files in a folder and below -> the files, without hidden ones."""
    found = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {name.as_posix(): p for name, p in found.items() if not any(part.startswith(".") for part in name.parts)}


def read_model(
    folder: Path, parts: Literal["stages", "priors"] = "stages"
) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]], str]:
    """Reads a model's folder after checking every file against the manifest.

    Args:
        folder: The model's.
        parts: What it has to consist of.

    Returns:
        The configuration, file name -> tensors, and the SHA-256 of the manifest, which names the model's exact state.

    Raises:
        FileNotFoundError: Not a model folder, or a file of it is missing.
        ValueError: A file's bytes are not those that were saved, or the format or the kind of model is another.
    """
    require_model(folder)
    for name, expected in json.loads((folder / "manifest.json").read_text(encoding="utf-8")).items():
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; the model is incomplete: copy or export it again")
        if digest(path) != expected:
            raise ValueError(f"{path} is damaged or was changed: its SHA-256 is not the manifest's; copy it again")
    config = read_config(folder, parts)
    weights = {part["file"]: load_file(folder / part["file"]) for part in config[parts]}
    return config, weights, digest(folder / "manifest.json")


def from_run(config: Mapping[str, Any], name: str, sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Derives a model's configuration from that of the training run which made it.

    Args:
        config: The ``model`` and ``data`` sections that travel with a checkpoint.
        name: The model's name.
        sampling: Fields of `Sampling`, the model's own.
    """
    model, data = config["model"]["init_args"], config["data"]
    conditions = model["conditions"]
    decomposers = {k: v for k, v in data["decomposers"].items() if k in conditions}
    low_res = decomposers.pop("low_res", None)
    stage = {
        "file": "base.safetensors" if low_res is None else f"up{model['size']}.safetensors",
        "size": model["size"],
        "denoiser": model["denoiser"],
        "conditions": conditions,
        "sampling": dict(sampling),
    }
    return {
        "name": name,
        "stages": [stage if low_res is None else stage | {"low_res": low_res}],
        "decomposers": decomposers,
        "readers": {k: v for k, v in (data.get("readers") or {}).items() if k in conditions},
    }


def assemble(parts: Mapping[str, Path], folder: Path, name: str) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """Joins models of one stage each to one model of several.

    Args:
        parts: Name of a stage -> model's folder, from the smallest to the largest.
        folder: The new model's, to which files of decomposers and readers are copied.
        name: The new model's name.

    Returns:
        Its configuration, and file name -> tensors.

    Raises:
        ValueError: A part has several stages, or two parts take the same representation from different decomposers.
    """
    stages: list[dict[str, Any]] = []
    weights: dict[str, dict[str, Tensor]] = {}
    groups: dict[str, dict[str, Any]] = {"decomposers": {}, "readers": {}}
    for stage, path in parts.items():
        config, tensors, _ = read_model(path)
        if len(config["stages"]) != 1:
            raise ValueError(f"expected a model of one stage in {path}, found {len(config['stages'])}")
        file = f"{stage}.safetensors"
        stages.append({**config["stages"][0], "file": file})
        weights[file] = next(iter(tensors.values()))
        for group, known in groups.items():
            for key, spec in config.get(group, {}).items():
                spec = json.loads(json.dumps(spec).replace('"model:', f'"{path.as_posix()}/'))
                if known.setdefault(key, spec) != spec:
                    raise ValueError(f"{path} and the parts before it take {key} from different {group}: {spec}")
    return carry_weights({"name": name, "stages": stages, **groups}, folder), weights


def carry_weights(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Copies files that decomposers and readers were built from into the model's folder, so that it can be moved.

    Args:
        config: A model's configuration; its local paths become ``model:`` ones, others (``asset:``, ``hub:``) stay.
        folder: The model's folder.
    """

    def carried(spec: Spec, place: str) -> dict[str, Any]:
        arguments = dict(spec.get("init_args") or {})
        for key, value in arguments.items():
            if isinstance(value, str) and (path := Path(value)).exists():
                target = folder / place / path.name
                target.parent.mkdir(parents=True, exist_ok=True)
                if path.is_dir():
                    shutil.copytree(path, target, dirs_exist_ok=True)
                else:
                    shutil.copyfile(path, target)
                arguments[key] = f"model:{place}/{path.name}"
        return {**spec, "init_args": arguments}

    groups = ("decomposers", "readers")
    return {**config, **{g: {k: carried(v, f"{g}/{k}") for k, v in config.get(g, {}).items()} for g in groups}}


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Loads weights that must fit exactly, in any floating precision.

    Raises:
        ValueError: Names or shapes differ; names the first of each.
    """
    own = module.state_dict()
    missing, foreign = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    shapes = [k for k in own if k in tensors and own[k].shape != tensors[k].shape]
    if missing or foreign or shapes:
        found = [
            f"{len(names)} {kind} (first: {names[0]})"
            for kind, names in (("missing", missing), ("foreign", foreign), ("of another shape", shapes))
            if names
        ]
        raise ValueError(f"the weights do not belong to this configuration of {what}: {'; '.join(found)}")
    module.load_state_dict({k: v.to(own[k].dtype) for k, v in tensors.items()})
