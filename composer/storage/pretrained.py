"""Finds pretrained weights, and reads them without running code that a file may contain."""

import errno
import os
import pickle
import re
import socket
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as registration

from composer.storage.files import shorten_error
from composer.storage.schema import read_json

_ASSETS = Path(__file__).parents[1] / "assets"
_HUB = re.compile(r"hub:(?P<repo>[\w.-]+/[\w.-]+)@(?P<revision>[\w./-]+?)(:(?P<file>[^:]+))?")


_fetches = ContextVar("_fetches", default=True)


class NotFetched(FileNotFoundError):
    """Weights on the Hugging Face hub are not in the cache and could not be fetched."""


@contextmanager
def fetching(allowed: bool) -> Iterator[None]:
    """Allows downloads within the block, if every enclosing block allows them too; else only local files are found."""
    before = _fetches.set(allowed and _fetches.get())
    try:
        yield
    finally:
        _fetches.reset(before)


def offline() -> AbstractContextManager[None]:
    """Forbids downloads within the block: only local files are found."""
    return fetching(False)


def network_allowed() -> bool:
    """Whether weights may be downloaded here; see `offline`."""
    return _fetches.get()


_found: ContextVar[dict[str, Path] | None] = ContextVar("_found", default=None)


@contextmanager
def noting_files() -> Iterator[dict[str, Path]]:
    """Records the local files and folders that `locate` finds within the block, by the names it was given."""
    found: dict[str, Path] = {}
    before = _found.set(found)
    try:
        yield found
    finally:
        _found.reset(before)


MAX_SOURCE = 1000
"""Maximum characters of a name of weights."""

MAX_MODULES = 10_000
SPARE_VALUES = 1 << 22
"""Of buffers that are computed and not stored."""


@contextmanager
def no_larger_than(size: int, what: str, most: int = MAX_MODULES) -> Iterator[None]:
    """Refuses, within the block, to build a network with many more values than its weights have bytes.

    A configuration of a few bytes can ask for more memory and layers than the machine has: a network is refused as soon
    as it outgrows its weights, before it is initialised.

    Args:
        size: Bytes of the weights.
        what: Whose weights they are, for the error message.
        most: Maximum number of modules.
    """
    values = modules = 0

    def count(_: nn.Module, name: str, added: Any) -> None:
        nonlocal values, modules
        if isinstance(added, Tensor):
            values += added.numel()
        else:
            modules += 1
        if values > 2 * size + SPARE_VALUES or modules > most:
            raise ValueError(f"{what} asks for a network that is larger than its weights, which have {size} bytes")

    hooks = [
        registration.register_module_parameter_registration_hook(count),
        registration.register_module_buffer_registration_hook(count),
        registration.register_module_module_registration_hook(count),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def unconnected() -> Iterator[None]:
    """Keeps huggingface_hub, and what fetches through it, off the network.

    Otherwise, even to look into its cache, it asks the hub for a list of agents once per process.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def sealed(weights: Path, fetches: bool = False) -> Iterator[None]:
    """Lets a library build a network from files within the block, without downloads and no larger than its weights.

    Args:
        weights: File, or folder of files.
        fetches: Whether the library may download what the files name.
    """
    size = weights.stat().st_size if weights.is_file() else sum(p.stat().st_size for p in weights.iterdir())
    with nullcontext() if fetches else unconnected(), no_larger_than(size, str(weights)):
        yield


def locate(source: str, *, wanted: str, who: str) -> Path:
    """Turns a name of weights into a path; files on the hub are downloaded on first use and cached.

    Args:
        source: One of

            - a local path,
            - ``asset:NAME``, a file or folder of this package,
            - ``hub:owner/name@revision:file`` or ``hub:owner/name@revision`` (the folder with configuration, vocabulary
              and weights) on the Hugging Face hub. The revision is required, so that a name always means the same.
        wanted: What is looked for, such as a file's name, for the error message.
        who: Who wants it, for the error message.

    Raises:
        FileNotFoundError: It is not on this machine and cannot be downloaded, or is neither a file nor a folder.
        ValueError: A hub name without a revision, an asset outside of the package, or a name that is too long.
    """
    if len(source) > MAX_SOURCE:
        raise ValueError(f"{who}: expected a name of {wanted} of at most {MAX_SOURCE} characters, found {len(source)}")
    if source.startswith("hub:"):
        return _from_hub(source, wanted, who)
    if source.startswith("asset:"):
        path = _ASSETS / source.removeprefix("asset:")
        if not Path(os.path.normpath(path)).is_relative_to(_ASSETS):
            raise ValueError(f"{who}: expected the name of a file of the package after asset:, found {source!r}")
    else:
        path = Path(source).expanduser()
    if not (path.is_file() or path.is_dir()):  # reading a pipe or a device would never end
        raise FileNotFoundError(f"{who} needs {wanted}: there is nothing at {path}; give the path of a local copy")
    noted = _found.get()
    if noted is not None and not source.startswith("asset:"):
        noted[source] = path
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
        with unconnected():
            folder = Path(snapshot_download(repo, revision=revision, local_files_only=True))
        if any(folder.glob("*.safetensors")) or any(folder.glob("*.bin")):  # weights come last: the folder is complete
            return folder
    except LocalEntryNotFoundError:
        pass
    try:
        require_network()
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
        revision: A commit, tag or branch; None takes the main branch at first use.
        wanted: What is looked for, for the error message.
        who: Who wants it, for the error message.

    Raises:
        FileNotFoundError: It is not in the cache and cannot be downloaded.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        with unconnected():
            return Path(hf_hub_download(repo, file, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    try:
        require_network()
        return Path(hf_hub_download(repo, file, revision=revision))
    except OSError as error:
        pin = f" --revision {revision}" if revision else ""
        raise _absent(who, wanted, f"{repo} {file}{pin}", error) from error


def _absent(who: str, wanted: str, hub_name: str, error: OSError) -> NotFetched:
    return NotFetched(
        f"{who} needs {wanted}, which is not in the cache and could not be downloaded ({error}). "
        f"Download it once on a machine with a network (hf download {hub_name}), or give the path of a local copy"
    )


def require_network() -> None:
    """Checks once that the hub can be reached: its own client would retry for half a minute.

    Raises:
        ConnectionError: It cannot be reached, or the network may not be used.
    """
    from huggingface_hub import constants

    if not _fetches.get():
        raise ConnectionError("the network may not be used; --allow-network allows downloads")
    if constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        raise ConnectionError("HF_HUB_OFFLINE is set")
    try:
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=5).close()
    except urllib.error.HTTPError:
        return  # it answered; the real request reports errors
    except (urllib.error.URLError, TimeoutError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, socket.gaierror | TimeoutError | ConnectionError):
            raise ConnectionError(f"{constants.ENDPOINT} cannot be reached: {reason}") from error


Network = TypeVar("Network", bound=nn.Module)


def load_frozen(folder: Path, build: Callable[[dict[str, Any]], Network], who: str) -> Network:
    """Loads one of the project's own small networks, frozen and in channels_last.

    Args:
        folder: With ``model.safetensors`` and ``config.json``, whose ``network`` holds the constructor's arguments.
        build: Makes the network from these arguments.
        who: Names the network in errors.

    Raises:
        FileNotFoundError: One of the files is missing.
        ValueError: The weights do not match the configuration.
    """
    config = read_json(locate(str(folder / "config.json"), wanted="config.json", who=who), 1_000_000)
    path = locate(str(folder / "model.safetensors"), wanted="model.safetensors", who=who)
    state = load_tensors(path)
    with sealed(path):
        network = build(config["network"])
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        says = f"{folder}: the weights do not match config.json: {shorten_error(error)}"
        raise ValueError(says) from error
    return network.to(memory_format=torch.channels_last).eval().requires_grad_(False)


def raise_for_memory(path: Path, error: BaseException) -> None:
    """Tells too little memory from a damaged file, for which torch has the same kinds of error.

    Raises:
        MemoryError: Reading the file took more than there is.
    """
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "memory" in str(error)):
        raise MemoryError(f"{path} does not fit into this machine's memory: {shorten_error(error)}") from error


def load_tensors(path: Path, lazily: bool = False) -> dict[str, Tensor]:
    """Reads named tensors from safetensors, or from a torch file that contains only tensors.

    From a training checkpoint, takes the ``state_dict``. Tensors in a list are named by their places, ``0``, ``1``, ...

    Args:
        path: The file.
        lazily: Whether a torch file's bytes are read when they are needed, so that they take no memory of their own;
            the file must not change meanwhile.

    Raises:
        ValueError: The file could run code when read, is damaged, or contains something else.
    """
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return dict(load_file(path))
        except SafetensorError as error:
            raise ValueError(f"{path} is not a complete safetensors file: {shorten_error(error)}") from error
    try:
        mapped = lazily and zipfile.is_zipfile(path)  # files of before torch 1.6 are none
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # that is how torch fails at files cut short
            raise
        raise_for_memory(path, error)
        raise ValueError(
            f"{path} is refused: expected safetensors, or a torch file of tensors only, found a pickle that may run "
            "code, a TorchScript archive or a damaged file; ask its author for a safetensors copy"
        ) from error
    content = content.get("state_dict", content) if isinstance(content, Mapping) else content
    named = content
    if isinstance(content, list | tuple):
        named = {str(i): value for i, value in enumerate(content)}
    if not isinstance(named, Mapping) or not all(isinstance(value, Tensor) for value in named.values()):
        raise ValueError(f"{path}: expected named tensors, found {type(content).__name__}")
    return dict(named)
