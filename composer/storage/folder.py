"""Models as folders: safetensors, a JSON configuration with names from a closed list, and a manifest of hashes.

Nothing in such a folder can run code: weights are safetensors, and the configuration may only name classes of the
modules below, or of plugins that the user allows, by name, at the call.
"""

import hashlib
import importlib
import inspect
import json
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from composer.cascade.low_res import Corruption
from composer.conditioning import Condition
from composer.decomposition import Decomposer
from composer.diffusion.denoiser import Denoiser, NoiseLevels
from composer.networks.unet import UNet
from composer.prior.interface import FILE as PRIOR_FILE
from composer.prior.interface import Prior
from composer.storage.files import below, brief, printable, replacing_all, write_atomically
from composer.storage.finding import FORMAT, read_config, require_model
from composer.storage.formats import FILE, MAX_JSON, SPEC, check_manifest, check_names, check_run
from composer.storage.pretrained import load_tensors, no_larger_than
from composer.storage.schema import read_json

Spec = Mapping[str, Any]
"""How an object is built: ``{"class_path": "decomposers.Palette", "init_args": {...}}``, nested as needed."""

MODULES = (
    "decomposers",
    "conditions",
    "composer",
    "composer.networks.unet",
    "composer.diffusion.denoiser",
    "composer.cascade.low_res",
    "composer.prior",
)
GROUPS = ("decomposers", "readers")
"""What a model reads pictures with, in its configuration."""

BUILDABLE = (Decomposer, Condition, Denoiser, NoiseLevels, UNet, Corruption, Prior)

TAG = re.compile(r"[\w-]{1,100}")
"""A name such as ``openai``, by which open_clip knows some weights."""

CARRIED = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.json", "*.txt", "*.model", "*.md", "LICENSE*", "NOTICE*")
"""Files that a model's folder takes along: weights, what describes them, and licences."""

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
    SPEC(spec, "what is to be built")
    cls = _class(spec, expected, plugins)
    arguments = {
        key: build(value, object, plugins, folder) if _is_spec(value) else value
        for key, value in _arguments(cls, spec, folder).items()
    }
    try:
        return cls(**arguments)
    except (OSError, ValueError):  # they say what is wrong
        raise
    except Exception as error:  # arguments of other types and sizes than a class expects fail in its every line
        raise ValueError(f"{spec['class_path']} does not take these arguments: {brief(error)}") from error


def _class(spec: Spec, expected: type[T], plugins: Collection[str]) -> type[T]:
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
    return cls


def _is_spec(value: Any) -> bool:
    return isinstance(value, Mapping) and "class_path" in value


def _arguments(cls: type, spec: Spec, folder: Path | None) -> dict[str, Any]:
    """A specification's arguments, ``model:`` names as paths.

    Raises:
        ValueError: One leads out of the model's folder, or names a file of this machine in place of the model's.
    """
    arguments = dict(spec.get("init_args") or {})
    for key, value in arguments.items():
        if folder is None or not isinstance(value, str):
            continue
        if value.startswith("model:"):
            arguments[key] = str(below(folder, value.removeprefix("model:")))
        elif key in _weights_arguments(cls) and not _is_elsewhere(value):
            raise ValueError(
                f"{spec['class_path']}: expected {key} to lie in the model's folder (model:...), in the package "
                f"(asset:...) or on the hub (hub:...), found {printable(value[:80])!r}, a file of this machine"
            )
    return arguments


def _is_elsewhere(source: str) -> bool:
    """Whether some weights are the package's, the hub's, or known to open_clip by a tag that is no file here."""
    tag = TAG.fullmatch(source) is not None and not Path(source).exists()
    return tag or source.startswith(("asset:", "hub:"))


def _weights_arguments(cls: type) -> tuple[str, ...]:
    return cls.weights_arguments if issubclass(cls, Decomposer) else ()


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

    Raises:
        ValueError: A file name is another than ``NAME.safetensors``.
    """
    for name in weights:
        FILE(name, "the name of a file of weights")
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
    manifest = read_json(folder / "manifest.json", MAX_JSON)
    check_manifest(manifest, str(folder / "manifest.json"))
    for name, expected in manifest.items():
        path, named = below(folder, name), printable(str(folder / name))
        if not path.is_file():
            raise FileNotFoundError(f"{named} is missing; the model is incomplete: copy or export it again")
        if digest(path) != expected:
            raise ValueError(f"{named} is damaged or was changed: its SHA-256 is not the manifest's; copy it again")
    config = read_config(folder, parts)
    files = [part.get("file", PRIOR_FILE) for part in config[parts]]
    if unlisted := [name for name in ("config.json", *files) if name not in manifest]:
        raise ValueError(f"{folder / 'manifest.json'} does not list {', '.join(unlisted)}: copy or export it again")
    return config, {name: load_tensors(folder / name) for name in files}, digest(folder / "manifest.json")


def from_run(config: Mapping[str, Any], name: str, sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Derives a model's configuration from that of the training run which made it.

    Args:
        config: The ``model`` and ``data`` sections that travel with a checkpoint.
        name: The model's name.
        sampling: Fields of `Sampling`, the model's own.

    Raises:
        ValueError: The configuration is that of no stage.
    """
    check_run(config)
    if missing := {"conditions", "size", "denoiser"} - config["model"]["init_args"].keys():
        raise ValueError(f"the checkpoint's configuration is that of no stage: it has no {', '.join(sorted(missing))}")
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


def assemble(
    parts: Mapping[str, Path], name: str, plugins: Collection[str] = ()
) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """Joins models of one stage each to one model of several. Nothing is written.

    Args:
        parts: Name of a stage -> model's folder, from the smallest to the largest.
        name: The new model's name.
        plugins: Modules that the user trusts.

    Returns:
        Its configuration, in which files of decomposers and readers are paths into the parts' folders, for
        `carry_weights`; and file name -> tensors.

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
        FILE(file, "the name of a stage")
        stages.append({**config["stages"][0], "file": file})
        weights[file] = next(iter(tensors.values()))
        for group, known in groups.items():
            for key, spec in config.get(group, {}).items():
                spec = {**spec, "init_args": _arguments(_class(spec, Decomposer, plugins), spec, path)}
                if known.setdefault(key, spec) != spec:
                    raise ValueError(f"{path} and the parts before it take {key} from different {group}: {spec}")
    return {"name": name, "stages": stages, **groups}, weights


def carry_weights(
    config: Mapping[str, Any],
    folder: Path,
    plugins: Collection[str] = (),
    read: Collection[str] | None = None,
    within: Collection[Path] | None = None,
) -> dict[str, Any]:
    """Copies files that decomposers and readers were built from into the model's folder, so that it can be moved.

    What is copied is what a class declares (`Decomposer.weights_arguments`), of the kinds `CARRIED`. Build everything
    first, by `noting_files`: a file that no decomposer can be built from has no place in a model.

    Args:
        config: A model's configuration; its local paths become ``model:`` ones, others (``asset:``, ``hub:``) stay.
        folder: The model's folder.
        plugins: Modules that the user trusts.
        read: The local files that were read, as they are named in the configuration; None takes every name that is a
            file's.
        within: Folders that files may come from, hidden ones inside excepted, or single files; None allows all places.

    Raises:
        ValueError: A file lies elsewhere, or is of another kind; nothing has been copied then.
    """
    check_names({group: config.get(group, {}) for group in GROUPS})
    copies: dict[Path, Path] = {}

    def carried(spec: Spec, place: str) -> dict[str, Any]:
        arguments = dict(spec.get("init_args") or {})
        for key in _weights_arguments(_class(spec, Decomposer, plugins)):
            value = arguments.get(key)
            if not isinstance(value, str) or value.startswith(("asset:", "hub:", "model:")):
                continue
            path = Path(value).expanduser()
            if value in read if read is not None else path.exists():
                files = _carried_files(path.resolve(), within)
                copies.update({folder / place / target: source for target, source in files.items()})
                arguments[key] = f"model:{place}/{path.resolve().name}"
        return {**spec, "init_args": arguments}

    made = {**config, **{g: {k: carried(v, f"{g}/{k}") for k, v in config.get(g, {}).items()} for g in GROUPS}}
    for target, source in copies.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    return made


def carried_files(config: Mapping[str, Any]) -> list[str]:
    """Says which files a model's configuration has in the model's folder, a line each."""
    specs = [(group, key, spec) for group in GROUPS for key, spec in config.get(group, {}).items()]
    named = [
        (group, key, value) for group, key, spec in specs for value in (spec.get("init_args") or {}).values() if value
    ]
    carried = [(g, key, value.removeprefix("model:")) for g, key, value in named if str(value).startswith("model:")]
    return [f"carried into the model: {path}, from which its {group} read {key}" for group, key, path in carried]


def _carried_files(path: Path, within: Collection[Path] | None) -> dict[str, Path]:
    """The files to copy of what an argument names: path below the new folder -> file."""
    listed = sorted(path.iterdir()) if path.is_dir() else [path]
    files = [file for file in listed if file.is_file() and any(file.match(kind) for kind in CARRIED)]
    if not files:
        raise ValueError(f"{path} is not carried into the model: expected files of the kinds {', '.join(CARRIED)}")
    for file in files:
        if within is not None and not any(_is_within(file.resolve(), place.resolve()) for place in within):
            raise ValueError(
                f"the model's decomposers were built from {file}, which lies neither in this folder nor in the run's. "
                f"It would become a part of the model: if others may have it, add --carry {path}"
            )
    return {f"{path.name}/{file.name}" if path.is_dir() else file.name: file for file in files}


def _is_within(file: Path, place: Path) -> bool:
    if not file.is_relative_to(place):
        return False
    return not any(part.startswith(".") for part in file.relative_to(place).parts)


def require_fit(make: Callable[[], nn.Module], tensors: Mapping[str, Tensor], what: str) -> None:
    """Makes sure that weights are those of a network before it takes any memory, however large it says to be.

    Args:
        make: Builds the network.
        tensors: The weights.
        what: Whose configuration it is, for the error message.

    Raises:
        ValueError: They are not, or the network is much larger than they are.
    """
    size, modules = sum(tensor.nbytes for tensor in tensors.values()), 1000 + 8 * len(tensors)
    with no_larger_than(size, what, modules), torch.device("meta"), _Unfilled():
        module = make()
    _require_same(module, tensors, what)


class _Unfilled(TorchFunctionMode):
    """Draws no numbers: on the meta device there are none, yet PyTorch would import its compiler for seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func in (Tensor.normal_, Tensor.uniform_) else func(*args, **(kwargs or {}))


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Loads weights that must fit exactly, in any floating precision.

    Raises:
        ValueError: Names, shapes or kinds of numbers differ; names the first of each.
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
                ("no real numbers", kinds),
            )
            if names
        ]
        raise ValueError(f"the weights do not belong to this configuration of {what}: {'; '.join(found)}")
