"""Makes a model's configuration from a training run or from several models, and copies the files that it needs."""

import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from composer.decomposition import Decomposer
from composer.storage.building import Spec, class_of, is_spec, resolve_arguments
from composer.storage.finding import find_model
from composer.storage.folder import digest_of, read_model
from composer.storage.formats import FILE, check_names, check_run

GROUPS = ("decomposers", "readers")
"""Sections of a model's configuration that name decomposers."""

CARRIED = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.json", "*.txt", "*.model", "*.md", "LICENSE*", "NOTICE*")
"""Files that are copied into a model's folder: weights, their descriptions, and licences."""


def from_run(config: Mapping[str, Any], name: str, sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Derives a model's configuration from that of its training run.

    Args:
        config: The ``model`` and ``data`` sections of a checkpoint's configuration.
        name: The model's name.
        sampling: The model's sampling settings, as fields of `Sampling` or `TokenSampling`.

    Raises:
        ValueError: The configuration is not that of a stage.
    """
    check_run(config)
    model, data = config["model"]["init_args"], config["data"]
    if "tokens" in model:
        stage = {"file": "base.safetensors", "size": model["size"], "tokens": model["tokens"]}
        stage |= {"autoencoder": model["autoencoder"], "conditions": [model["condition"]], "sampling": dict(sampling)}
        return {"name": name, "stages": [stage], **_decomposers(data, stage["conditions"]), **_source(data)}
    if missing := {"conditions", "size", "denoiser"} - model.keys():
        raise ValueError(f"the checkpoint is not of a stage: its configuration has no {', '.join(sorted(missing))}")
    conditions = model["conditions"]
    groups = _decomposers(data, conditions)
    low_res = groups["decomposers"].pop("low_res", None)
    stage = {
        "file": "base.safetensors" if low_res is None else f"up{model['size']}.safetensors",
        "size": model["size"],
        "denoiser": model["denoiser"],
        "conditions": conditions,
        "sampling": dict(sampling),
    }
    if model.get("codec") is not None:
        stage["codec"] = model["codec"]
    return {
        "name": name,
        "stages": [stage if low_res is None else stage | {"low_res": low_res}],
        **groups,
        **_source(data),
    }


def _source(data: Mapping[str, Any]) -> dict[str, int]:
    """At which size decomposers read images, of a run's data or of a model."""
    return {} if data.get("source") is None else {"source": data["source"]}


def _decomposers(data: Mapping[str, Any], conditions: Collection[str]) -> dict[str, dict[str, Any]]:
    """The decomposers and readers of some conditions, of a run's data."""
    return {group: {k: v for k, v in (data.get(group) or {}).items() if k in conditions} for group in GROUPS}


@dataclass(frozen=True)
class Addon:
    """A stage that was trained on a frozen model, as what it adds to that model.

    Attributes:
        spec: The configuration of the model with the addition; files of decomposers are paths, for `carry_weights`.
        weights: File name -> tensors of that model.
        added: File name -> the tensors that the base lacks or has others of.
        base: Name and SHA-256 of the base, for the add-on's configuration.
        folder: Of the base.
    """

    spec: dict[str, Any]
    weights: dict[str, dict[str, Tensor]]
    added: dict[str, dict[str, Tensor]]
    base: dict[str, str]
    folder: Path

    @classmethod
    def of(
        cls,
        config: Mapping[str, Any],
        spec: Mapping[str, Any],
        weights: Mapping[str, Tensor],
        sampling: Mapping[str, Any],
        plugins: Collection[str] = (),
    ) -> "Addon":
        """Separates what a run trained from the weights of the model that it started from.

        Args:
            config: The ``model`` and ``data`` sections of the run's checkpoint.
            spec: What `from_run` made of it.
            weights: Of its stage.
            sampling: Settings of the stage that differ from the base's.
            plugins: Modules that the user trusts.

        Raises:
            ValueError: The run trained everything, or the base is not what the run started from.
        """
        model = config["model"]["init_args"]
        start, trained = model.get("start_from"), model.get("train_only")
        if not (start and trained):
            raise ValueError(
                "an add-on is what was trained on a model that stays as it is: expected a run with start_from and "
                "train_only; export this one without --addon"
            )
        folder = find_model(start)
        base, theirs, _ = read_model(folder)
        (stage,) = spec["stages"]
        alike = [s for s in base["stages"] if s["size"] == stage["size"] and ("low_res" in s) == ("low_res" in stage)]
        if len(alike) != 1:
            raise ValueError(f"expected one stage of {stage['size']} px in {start}, found {len(alike)}")
        file, old = alike[0]["file"], theirs[alike[0]["file"]]
        added = {k: x for k, x in weights.items() if k not in old or x.shape != old[k].shape or _trains(trained, k)}
        if other := [k for k, x in weights.items() if k not in added and not torch.equal(old[k].to(x), x)]:
            raise ValueError(f"{start} is not the model that the run started from: {other[0]} differs, which is frozen")
        grown = {**stage, "file": file, "sampling": alike[0].get("sampling", {}) | dict(sampling)}
        made = {**spec, "stages": [grown if s is alike[0] else s for s in base["stages"]]}
        for group in GROUPS:
            known = {k: _resolved(v, folder, plugins) for k, v in base.get(group, {}).items()}
            made[group] = {**spec[group], **known}
        name = folder.resolve().name if Path(start).is_dir() else start
        facts = {"name": name, "sha256": digest_of(folder)}
        return cls(made, theirs | {file: old | added}, {file: added}, facts, folder)


def _trains(names: Collection[str], tensor: str) -> bool:
    """Whether `train_only` with these names trains a tensor; see `StageTraining`."""
    kinds = {"first": tensor.startswith("denoiser.network.first."), "grounding": ".grounding." in tensor}
    return any(kinds.get(name, tensor.startswith(f"conditions.{name}.")) for name in names)


def _resolved(spec: Spec, folder: Path, plugins: Collection[str]) -> dict[str, Any]:
    """A decomposer's specification, with paths in place of names in the model's folder."""
    arguments = resolve_arguments(class_of(spec, Decomposer, plugins), spec, folder)
    nested = {
        k: _resolved(v, folder, plugins) for k, v in arguments.items() if isinstance(v, Mapping) and "class_path" in v
    }
    return {**spec, "init_args": arguments | nested}


def assemble(
    parts: Mapping[str, Path], name: str, plugins: Collection[str] = ()
) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """Assembles one model from models of one stage each. Nothing is written.

    Args:
        parts: Name of a stage -> model's folder, from the smallest to the largest.
        name: The new model's name.
        plugins: Modules that the user trusts.

    Returns:
        Its configuration, in which files of decomposers and readers are paths into the parts' folders, for
        `carry_weights`; and file name -> tensors.

    Raises:
        ValueError: A part has several stages, or two parts have different decomposers for the same representation, or
            decomposers that read images at different sizes.
    """
    stages: list[dict[str, Any]] = []
    weights: dict[str, dict[str, Tensor]] = {}
    groups: dict[str, dict[str, Any]] = {"decomposers": {}, "readers": {}}
    sources: list[dict[str, int]] = []
    for stage, path in parts.items():
        config, tensors, _ = read_model(path)
        if len(config["stages"]) != 1:
            raise ValueError(f"expected a model of one stage in {path}, found {len(config['stages'])}")
        if config.get("decomposers"):
            sources.append(_source(config))
        file = f"{stage}.safetensors"
        FILE(file, "the name of a stage")
        stages.append({**config["stages"][0], "file": file})
        weights[file] = next(iter(tensors.values()))
        for group, known in groups.items():
            for key, spec in config.get(group, {}).items():
                spec = _resolved(spec, path, plugins)
                if known.setdefault(key, spec) != spec:
                    raise ValueError(f"{path} has another {key} in its {group} than the parts before it: {spec}")
    if any(source != sources[0] for source in sources):
        raise ValueError(f"expected parts whose decomposers read images at one size, found {sources}")
    return {"name": name, "stages": stages, **groups, **(sources[0] if sources else {})}, weights


def carry_weights(
    config: Mapping[str, Any],
    folder: Path,
    plugins: Collection[str] = (),
    read: Collection[str] | None = None,
    within: Collection[Path] | None = None,
) -> dict[str, Any]:
    """Copies the files that decomposers and readers need into the model's folder, so that the folder can be moved.

    These are the files that a class declares (`Buildable.weights_arguments`), if they are of the kinds `CARRIED`. Build
    everything within `noting_files` first: files that no decomposer reads are not copied.

    Args:
        config: A model's configuration; its local paths become ``model:`` ones, others (``asset:``, ``hub:``) stay.
        folder: The model's folder.
        plugins: Modules that the user trusts.
        read: The local files that were read, by their names in the configuration; None takes every name that is a
            file's.
        within: Folders that files may come from, except from hidden ones inside, or single files; None allows all.

    Raises:
        ValueError: A file lies elsewhere, or is of another kind; nothing has been copied then.
    """
    check_names({group: config.get(group, {}) for group in GROUPS})
    copies: dict[Path, Path] = {}

    def carried(spec: Spec, place: str) -> dict[str, Any]:
        arguments = {
            key: carried(value, f"{place}/{key}") if is_spec(value) else value
            for key, value in (spec.get("init_args") or {}).items()
        }
        for key in class_of(spec, Decomposer, plugins).weights_arguments:
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
    """Lists the files that a model's configuration has in the model's folder, one line per file."""
    specs = [(group, key, spec) for group in GROUPS for key, spec in config.get(group, {}).items()]
    named = [
        (group, key, value) for group, key, spec in specs for value in (spec.get("init_args") or {}).values() if value
    ]
    carried = [(g, key, value.removeprefix("model:")) for g, key, value in named if str(value).startswith("model:")]
    return [f"carried into the model: {path}, from which its {group} read {key}" for group, key, path in carried]


def _carried_files(path: Path, within: Collection[Path] | None) -> dict[str, Path]:
    """The files to copy for an argument: path below the new folder -> file."""
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
