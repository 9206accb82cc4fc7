"""Models of the Hugging Face hub: downloaded at one commit, only the files that the manifest lists; and uploaded."""

import functools
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from composer.storage.files import printable, replacing, resolve_below
from composer.storage.formats import HUB_NAME, MAX_JSON, check_manifest
from composer.storage.pretrained import (
    NotFetched,
    fetching,
    hub_file,
    network_allowed,
    require_network,
    unconnected,
)
from composer.storage.schema import read_json

MANIFEST, CARD = "manifest.json", "README.md"

MAX_BYTES = 50_000_000_000
"""Maximum size in bytes of a whole model; the paper's 5 billion parameters in total take 20 GB in float32."""

MAX_FILES = 500
MAX_CARD = 4_000_000
"""Maximum size in bytes of a model card; a larger one is not downloaded."""

FILES = re.compile(r"(?!.*\.\.)(\w[\w.-]*/)*(\w[\w.-]*\.(safetensors|json|txt|model|md)|(LICENSE|NOTICE)[\w.-]*)", re.A)
"""Paths that a manifest on the hub may list: safetensors, text files, licences; no hidden files."""

_COMMIT = re.compile(r"[0-9a-f]{40}")

log = logging.getLogger(__name__)


def fetch_model(repo: str, revision: str | None, network: bool) -> Path | None:
    """Finds the folder of a model on the hub: in the cache, else over the network.

    Downloads the manifest, the files that it lists, and the card. They are linked, under their own names, into a folder
    of their own in the hub's cache. `composer.storage.folder.read_model` checks their hashes.

    Args:
        repo: ``owner/name``.
        revision: A commit, which is downloaded once; or a tag or branch, None for the main one, which is looked up on
            the hub each time if the network may be used. The commit found is logged once as a warning.
        network: Whether files that are not in the cache may be downloaded.

    Returns:
        The folder; None if the cache has no such model and the network may not be used.

    Raises:
        NotFetched: There is no such model, the hub cannot be reached, or not all of it is in the cache.
        ValueError: The manifest lists other files than `FILES`, too many, or too large ones.
    """
    name = repo if revision is None else f"{repo}@{revision}"
    wanted = "main" if revision is None else revision
    with fetching(network):
        try:
            manifest = _find_manifest(repo, wanted)
            if manifest is None:
                return None
            commit = manifest.parent.name
            if commit != wanted:
                _say_commit(name, repo, commit)
            folder = manifest.parents[2] / "composer" / commit
            if not (folder / MANIFEST).is_file():
                _gather(repo, commit, manifest, folder)
            return folder
        except NotFetched:
            raise
        except OSError as error:
            raise NotFetched(
                f"there is no folder {name}, and the model {name} could not be fetched from the Hugging Face hub: "
                f"{_line(error)}. Check its name; a private one needs `hf auth login`"
            ) from error


def _find_manifest(repo: str, revision: str) -> Path | None:
    """Finds the manifest in the hub's cache, in a folder named after the commit."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    cached = None
    with unconnected(), suppress(LocalEntryNotFoundError, HFValidationError):
        cached = Path(hf_hub_download(repo, MANIFEST, revision=revision, local_files_only=True))
    if not network_allowed() or (cached is not None and _COMMIT.fullmatch(revision)):
        return cached
    try:
        require_network()
    except ConnectionError as error:
        if cached is None:
            raise
        log.warning("%s: using the cached model (%s)", repo, error)
        return cached
    _require_at_most(_size(repo, revision, MANIFEST), MAX_JSON, f"the manifest of {repo}")
    return Path(hf_hub_download(repo, MANIFEST, revision=revision))


@functools.cache
def _say_commit(name: str, repo: str, commit: str) -> None:
    log.warning("using %s at commit %s; to always use this commit: %s@%s", name, commit, repo, commit)


def _gather(repo: str, commit: str, manifest: Path, folder: Path) -> None:
    """Links a model's files into a folder, the manifest last: if it is there, the folder is complete."""
    names = read_names(manifest)
    if network_allowed():
        _require_at_most(sum(_size(repo, commit, name) for name in names), MAX_BYTES, f"the model {repo}")
    for name in names:
        found = hub_file(repo, name, revision=commit, wanted=name, who=f"the model {repo}")
        _link(found, folder / name)
    with nullcontext() if network_allowed() else unconnected(), suppress(OSError):  # the card is optional
        if _size(repo, commit, CARD) <= MAX_CARD:
            _link(hub_file(repo, CARD, revision=commit, wanted=CARD, who=f"the model {repo}"), folder / CARD)
    _link(manifest, folder / MANIFEST)


def _size(repo: str, revision: str, file: str) -> int:
    """Returns the size of a file in bytes, without downloading it."""
    from huggingface_hub import hf_hub_download

    size: int | None = hf_hub_download(repo, file, revision=revision, dry_run=True).file_size
    if size is None:
        raise OSError(f"the hub does not say how large {file} is")
    return size


def _require_at_most(size: int, most: int, what: str) -> None:
    if size > most:
        raise ValueError(f"expected at most {most:,} bytes for {what}, found {size:,}")


def read_names(manifest: Path) -> list[str]:
    """Returns the files that a manifest on the hub lists.

    Raises:
        ValueError: It is not a manifest, or lists other files than `FILES`, or too many.
    """
    listed = read_json(manifest, MAX_JSON)
    check_manifest(listed, str(manifest))
    if len(listed) > MAX_FILES:
        raise ValueError(f"expected at most {MAX_FILES} files in a model of the hub, found {len(listed):,}")
    for name in listed:
        if FILES.fullmatch(name) is None or name in (MANIFEST, CARD):
            raise ValueError(
                f"a model of the hub consists of .safetensors, .json, .txt, .model and .md files and licences; this "
                f"one's manifest lists {printable(name)}"
            )
    return list(listed)


def _link(source: Path, target: Path) -> None:
    """Links a cached file under its own name: in the cache it is a link to a file without suffix."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        try:
            os.link(source.resolve(), target)
        except FileExistsError:
            raise
        except OSError:  # another disk, or one without hard links
            with source.open("rb") as file, replacing(target) as copy:
                shutil.copyfileobj(file, copy)


def _line(error: Exception) -> str:
    """Returns an error of the hub's client in one line."""
    return printable(" ".join(str(error).split())[:300])


def push_model(
    repo: str,
    save: Callable[[Path], None],
    spec: Mapping[str, Any],
    source: Path | None,
    message: str,
    private: bool | None,
) -> str:
    """Uploads a model's folder and card, all in one commit; files of other names in the repository stay.

    Args:
        repo: ``owner/name``; it is made if it is missing.
        save: Writes the model into a folder.
        spec: The model's configuration; files in the model's folder that it names (``model:...``) are uploaded too.
        source: The folder that the model was loaded from; its card is uploaded if `save` writes none.
        message: Of the commit.
        private: Whether a new repository is private; None leaves it to the owner's settings.

    Returns:
        The URL of the commit.

    Raises:
        ValueError: The name is not valid; or the model has files that could not be downloaded again (`FILES`), is too
            large, or names files in its folder but was not loaded from one.
        OSError: The hub cannot be reached, or refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    name = HUB_NAME.fullmatch(repo)
    if name is None or name["revision"]:
        raise ValueError(f"expected owner/name on the Hugging Face hub, found {printable(repo[:100])!r}")
    with tempfile.TemporaryDirectory(prefix="composer-") as made:
        folder = Path(made)
        _bring(spec, source, folder)
        save(folder)
        names = read_names(folder / MANIFEST)
        _require_at_most(sum((folder / name).stat().st_size for name in names), MAX_BYTES, f"the model {repo}")
        api, files = HfApi(), [*names, MANIFEST, CARD]
        try:
            require_network()
            api.create_repo(repo, private=private, exist_ok=True)
            additions = [CommitOperationAdd(name, folder / name) for name in files]
            commit = api.create_commit(repo, additions, commit_message=message)
        except OSError as error:
            raise OSError(
                f"{repo} was not pushed to the Hugging Face hub: {_line(error)}. It needs a network, and `hf auth "
                "login` with a token that has write access"
            ) from error
    return str(commit.commit_url)


def _bring(spec: Mapping[str, Any], source: Path | None, folder: Path) -> None:
    """Copies the card, and the files that a model's configuration names in its own folder."""
    if source is not None and (source / CARD).is_file():
        shutil.copyfile(source / CARD, folder / CARD)
    for name in _own(spec):
        if source is None:
            raise ValueError(
                f"the model reads {name} in its folder, but was loaded from none: save it, load it, then push"
            )
        path = resolve_below(source, name)
        for file in [path] if path.is_file() else filter(Path.is_file, path.rglob("*")):
            target = folder / file.relative_to(source.resolve())
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


def _own(value: Any) -> Iterator[str]:
    """Yields the files and folders that a configuration, or a part of it, names by ``model:``."""
    if isinstance(value, str) and value.startswith("model:"):
        yield value.removeprefix("model:")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _own(inner)
