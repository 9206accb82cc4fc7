"""Models as folders: safetensors, a JSON configuration with names from a closed list, and a manifest of hashes.

Nothing in such a folder can run code: weights are safetensors, and the configuration may only name classes of a closed
list (`composer.storage.building`), or of plugins that the caller names.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from composer.storage.files import flush_file, printable, replacing_all, resolve_below, write_atomically, write_json
from composer.storage.finding import FORMAT, Kind, find_model, read_config, require_model
from composer.storage.formats import FILE, MAX_JSON, check_manifest
from composer.storage.pretrained import load_tensors
from composer.storage.schema import read_json

PRIOR_FILE = "prior.safetensors"
"""The weights of a prior; a stage's file is named in its configuration."""

STRANGERS_FILE = "strangers_v1.safetensors"
"""The readers' representations of held-out images, by condition. Optional.

These images are strangers to any request: their distance from it is what chance gives.

The number in the name is the version of its layout.
"""


def digest(path: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(folder: Path) -> str:
    """Returns the SHA-256 that identifies a model exactly: that of its manifest.

    Raises:
        FileNotFoundError: There is no model.
    """
    require_model(folder)
    return digest(folder / "manifest.json")


def write_model(folder: Path, config: Mapping[str, Any], weights: Mapping[str, dict[str, Tensor]], card: str) -> None:
    """Writes a model's folder atomically: if the process is killed, either the old model or the new one is left.

    Args:
        folder: Where to; files of the same names are replaced, all others stay and belong to the model.
        config: What `build` needs, as plain JSON values.
        weights: File name -> tensors. Without `STRANGERS_FILE` among them, an old one is removed from
            the manifest, since it was made for the old model.
        card: The model card, Markdown; an empty one keeps the old card.

    Raises:
        ValueError: A file name is not ``NAME.safetensors``.
    """
    for name in weights:
        FILE(name, "the name of a file of weights")
    with replacing_all(folder) as new:
        for name, tensors in weights.items():
            save_file({k: v.detach().contiguous().cpu() for k, v in tensors.items()}, new / name)
            flush_file(new / name)
        write_json(new / "config.json", {"format": FORMAT, **config})
        if card or not (folder / "README.md").exists():
            write_atomically(new / "README.md", card.encode())
        places = _files(folder) | _files(new)
        others = {"manifest.json", "README.md", *({STRANGERS_FILE} - weights.keys())}
        manifest = {name: digest(places[name]) for name in sorted(places.keys() - others)}
        write_json(new / "manifest.json", manifest)


def _files(folder: Path) -> dict[str, Path]:
    """Relative name -> path, of all files in a folder and its subfolders that are not hidden."""
    found = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {name.as_posix(): p for name, p in found.items() if not any(part.startswith(".") for part in name.parts)}


def read_model(
    folder: Path, parts: Kind = "stages", network: bool = False
) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]], str]:
    """Reads a model's folder after checking every file against the manifest.

    An add-on's folder has the whole model's configuration, but only the tensors that its base lacks or has others of;
    ``base`` says which model that is, by name and SHA-256.

    Args:
        folder: The model's.
        parts: What it must consist of.
        network: Whether the base of an add-on may be downloaded.

    Returns:
        The configuration, file name -> tensors, and the SHA-256 of the manifest, which identifies the model. Of an
        add-on the whole model's, as if it had no base.

    Raises:
        FileNotFoundError: Not a model folder, a file of it is missing, or the base of an add-on is.
        ValueError: A file's bytes have changed, the format or kind of model differs, or an add-on's base is another.
    """
    require_model(folder)
    manifest = read_json(folder / "manifest.json", MAX_JSON)
    check_manifest(manifest, str(folder / "manifest.json"))
    for name, expected in manifest.items():
        path, named = resolve_below(folder, name), printable(str(folder / name))
        if not path.is_file():
            raise FileNotFoundError(f"{named} is missing; the model is incomplete: copy or export it again")
        if digest(path) != expected:
            raise ValueError(f"{named} is damaged or was changed: its SHA-256 is not the manifest's; copy it again")
    config = read_config(folder, parts)
    theirs = _read_base(folder, config.pop("base"), network) if "base" in config else {}
    files = [part.get("file", PRIOR_FILE) for part in config[parts]]
    if unlisted := [name for name in ("config.json", *files) if name not in {*manifest, *theirs}]:
        raise ValueError(f"{folder / 'manifest.json'} does not list {', '.join(unlisted)}: copy or export it again")
    own = {name: load_tensors(folder / name) for name in files if name in manifest}
    weights = {name: theirs.get(name, {}) | own.get(name, {}) for name in files}
    return config, weights, digest(folder / "manifest.json")


def _read_base(folder: Path, base: Mapping[str, str], network: bool) -> dict[str, dict[str, Tensor]]:
    """Reads the weights of an add-on's base, which lies beside the add-on, is included, or is on the hub."""
    name, beside = base["name"], folder.resolve().parent / base["name"]
    path = beside if (beside / "manifest.json").is_file() else find_model(name, network)
    if not (path / "manifest.json").is_file():
        raise FileNotFoundError(
            f"{folder} is an add-on to the model {name}, which is neither included nor in {folder.resolve().parent}: "
            "put that model there"
        )
    if (found := digest_of(path)) != base["sha256"]:
        raise ValueError(
            f"{folder} is an add-on to another model {name} than the one in {path}: expected the SHA-256 "
            f"{base['sha256']}, found {found}"
        )
    return read_model(path, network=network)[1]


def read_strangers(folder: Path) -> dict[str, Tensor]:
    """Reads `STRANGERS_FILE`, condition -> representations of held-out images; empty if the manifest lists none."""
    manifest = read_json(folder / "manifest.json", MAX_JSON)
    return load_tensors(folder / STRANGERS_FILE) if STRANGERS_FILE in manifest else {}
