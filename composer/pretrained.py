"""Finds weights that others trained, and reads them without running anything that a file brings along."""

import json
import os
import pickle
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

_ASSETS = Path(__file__).parent / "assets"
_HUB = re.compile(r"hub:(?P<repo>[\w.-]+/[\w.-]+)@(?P<revision>[\w./-]+?)(:(?P<file>[^:]+))?")


_fetches = ContextVar("_fetches", default=True)


class NotFetched(FileNotFoundError):
    """Weights of the Hugging Face hub are not in the cache and could not be fetched."""


@contextmanager
def offline() -> Iterator[None]:
    """Finds what is on this machine alone: nothing is fetched inside."""
    before = _fetches.set(False)
    try:
        yield
    finally:
        _fetches.reset(before)


def locate(source: str, *, wanted: str, who: str) -> Path:
    """Turns the name of some weights into a path; hub names are fetched on first use and cached.

    Args:
        source: One of

            - a local path,
            - ``asset:NAME``, a file or folder that ships with this package,
            - ``hub:owner/name@revision:file`` or ``hub:owner/name@revision`` (the folder with configuration, vocabulary
              and weights) on the Hugging Face hub. The revision is required: what a name means must not change.
        wanted: What is looked for, for the error message; a file's name, say.
        who: Who wants it, for the error message.

    Raises:
        FileNotFoundError: It is not here and cannot be fetched.
        ValueError: A hub name without a revision.
    """
    if source.startswith("hub:"):
        return _from_hub(source, wanted, who)
    path = _ASSETS / source.removeprefix("asset:") if source.startswith("asset:") else Path(source).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{who} needs {wanted}: nothing lies at {path}; give the path of a local copy")
    return path


def _from_hub(source: str, wanted: str, who: str) -> Path:
    match = _HUB.fullmatch(source)
    if match is None:
        raise ValueError(f"{who}: expected hub:owner/name@revision or hub:owner/name@revision:file, found {source!r}")
    repo, revision, file = match["repo"], match["revision"], match["file"]
    if file is not None:
        return hub_file(repo, file, revision=revision, wanted=wanted, who=who)
    from huggingface_hub import list_repo_files, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repo, revision=revision, local_files_only=True))
        if any(folder.glob("*.safetensors")) or any(folder.glob("*.bin")):  # weights come last: the folder is whole
            return folder
    except LocalEntryNotFoundError:
        pass
    try:
        _require_network()
        safe = any(name.endswith(".safetensors") for name in list_repo_files(repo, revision=revision))
        kinds = ["*.json", "*.txt", "*.model", "*.safetensors" if safe else "*.bin"]
        return Path(snapshot_download(repo, revision=revision, allow_patterns=kinds, ignore_patterns=["*/*"]))
    except OSError as error:
        raise _absent(who, wanted, f"{repo} --revision {revision}", error) from error


def hub_file(repo: str, file: str, *, revision: str | None, wanted: str, who: str) -> Path:
    """Finds one file of a repository of the Hugging Face hub: in the cache, else over the network.

    Args:
        repo: ``owner/name``.
        file: Path inside the repository.
        revision: A commit, tag or branch; None takes what the main branch holds on first use.
        wanted: What is looked for, for the error message.
        who: Who wants it, for the error message.

    Raises:
        FileNotFoundError: It is not in the cache and cannot be fetched.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repo, file, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    try:
        _require_network()
        return Path(hf_hub_download(repo, file, revision=revision))
    except OSError as error:
        pin = f" --revision {revision}" if revision else ""
        raise _absent(who, wanted, f"{repo} {file}{pin}", error) from error


def _absent(who: str, wanted: str, hub_name: str, error: OSError) -> NotFetched:
    return NotFetched(
        f"{who} needs {wanted}, which is not in the cache and could not be fetched ({error}). "
        f"Fetch it once where there is a network (hf download {hub_name}), or give the path of a local copy"
    )


def _require_network() -> None:
    """Asks the hub once whether it is there: its own client would retry for half a minute."""
    from huggingface_hub import constants

    if not _fetches.get():
        raise ConnectionError("only what is on this machine was asked for")
    if constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        raise ConnectionError("HF_HUB_OFFLINE is set")
    try:
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=5).close()
    except urllib.error.HTTPError:
        return  # it answered; the real request says what is wrong, if anything
    except (urllib.error.URLError, TimeoutError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, socket.gaierror | TimeoutError | ConnectionError):
            raise ConnectionError(f"{constants.ENDPOINT} cannot be reached: {reason}") from error


Network = TypeVar("Network", bound=nn.Module)


def load_frozen(folder: Path, build: Callable[[dict[str, Any]], Network], who: str) -> Network:
    """Loads a small network of our own, frozen, for pictures in channels_last.

    Args:
        folder: Holds ``model.safetensors`` and ``config.json``, which has the constructor's arguments as ``network``.
        build: Makes the network of these arguments.
        who: Names the network in errors.

    Raises:
        FileNotFoundError: One of the files is missing.
        ValueError: The weights do not fit the configuration.
    """
    config = json.loads(locate(str(folder / "config.json"), wanted="config.json", who=who).read_text(encoding="utf-8"))
    state = load_tensors(locate(str(folder / "model.safetensors"), wanted="model.safetensors", who=who))
    network = build(config["network"])
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{folder}: the weights are of another network than config.json says: {error}") from error
    return network.to(memory_format=torch.channels_last).eval().requires_grad_(False)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Reads named tensors from safetensors, or from a torch file that holds nothing but tensors.

    A training checkpoint that keeps its weights under ``state_dict`` gives these.

    Raises:
        ValueError: The file would run code when read, is damaged, or holds something else.
    """
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return dict(load_file(path))
        except SafetensorError as error:
            raise ValueError(f"{path} is no whole safetensors file: {error}") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{path} is refused: expected safetensors, or a torch file of tensors alone, found a pickle that may run "
            "code, a TorchScript archive or a damaged file; ask its author for a safetensors copy"
        ) from error
    content = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path}: expected named tensors, found {type(content).__name__}")
    return dict(content)
