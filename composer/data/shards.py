"""Shards: plain tar files in webdataset's naming, each with an index for random access beside it.

``00000.tar`` holds the files of its items one after the other, ``<key>.png``, ``<key>.txt``, ``<key>.<name>.npy``;
``00000.json`` says where each item lies, its key, offset and size in bytes, and what was refused. Any reader of
webdataset reads the tar.
"""

import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, NamedTuple

from composer.images.reading import MAX_BYTES
from composer.storage.files import read_text, replacing, write_atomically

Members = dict[str, bytes]
"""Suffix of a member's name, such as ``png`` or ``depth.npy`` -> its content."""

MAX_INDEX = 1_000_000_000
"""Maximum size in bytes of a shard's index."""


class Item(NamedTuple):
    """Where an item lies in its shard: from the header of its first member to the end of its last."""

    key: str
    offset: int
    size: int


class Refusal(NamedTuple):
    """An image that is not in a shard, and why."""

    file: str
    reason: str
    detail: str


class Index(NamedTuple):
    """What a shard holds, and what was left out."""

    items: list[Item]
    refused: list[Refusal]


def write_shard(path: Path, items: Iterable[tuple[str, Mapping[str, bytes]]], refused: list[Refusal]) -> Index:
    """Writes a shard, then its index: a shard with an index is complete.

    Args:
        path: Of the tar file.
        items: Key and members of each item.
        refused: What is left out; it may be filled while `items` is read.
    """
    index = []
    with replacing(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for key, members in items:
            begin = tar.offset
            for suffix, data in members.items():
                header = tarfile.TarInfo(f"{key}.{suffix}")
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))
            index.append(Item(key, begin, tar.offset - begin))
    listed, left = (",\n".join(json.dumps(entry) for entry in entries) for entries in (index, refused))
    write_atomically(index_path(path), f'{{"items": [\n{listed}\n], "refused": [\n{left}\n]}}\n'.encode())
    return Index(index, refused)


def index_path(shard: Path) -> Path:
    """The path of a shard's index."""
    return shard.with_suffix(".json")


def read_index(shard: Path) -> Index:
    """Reads a shard's index.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is no index.
    """
    path = index_path(shard)
    try:
        found = json.loads(read_text(path, MAX_INDEX))
        items = [Item(str(key), int(offset), int(size)) for key, offset, size in found["items"]]
        return Index(items, [Refusal(*map(str, entry)) for entry in found["refused"]])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(
            f'expected {{"items": [[key, offset, size], ...], "refused": ...}} in {path}: {error}'
        ) from error


def scan_shard(file: IO[bytes]) -> Iterator[tuple[str, int, int]]:
    """Finds the items of any tar in webdataset's naming, by reading the headers alone.

    Members that are no regular files, and those in hidden names, are passed over. Items whose members are not one
    after the other count as several.

    Yields:
        Key, offset and size of each.

    Raises:
        tarfile.ReadError: The file is no tar, or is damaged.
    """
    key, begin, end = "", 0, 0
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            own, _, suffix = split_name(member.name)
            if not member.isfile() or not suffix:
                continue
            if own != key and end:
                yield key, begin, end - begin
            if own != key:
                key, begin = own, member.offset
            end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    if end:
        yield key, begin, end - begin


def split_name(name: str) -> tuple[str, str, str]:
    """Splits a member's name at the first dot after its folders: key, dot, suffix; the suffix in small letters."""
    folder, slash, base = name.rpartition("/")
    stem, dot, suffix = base.partition(".")
    return f"{folder}{slash}{stem}", dot, suffix.lower() if stem else ""


def read_item(file: IO[bytes], offset: int, size: int) -> Members:
    """Reads the members of one item; nothing of them is interpreted.

    Raises:
        ValueError: There is no item at this place.
    """
    if not 0 < size <= 2 * MAX_BYTES:
        raise ValueError(f"expected an item of at most {2 * MAX_BYTES:,} bytes, found {size:,}")
    file.seek(offset)
    data = io.BytesIO(file.read(size))
    try:
        with tarfile.open(fileobj=data, mode="r:") as tar:
            return {split_name(m.name)[2]: _content(tar, m) for m in tar if m.isfile()}
    except (tarfile.TarError, OSError) as error:
        raise ValueError(f"expected an item of a tar file at byte {offset:,}: {error}") from error


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None  # only of members that are no files
    content = file.read()
    if len(content) != member.size:
        raise tarfile.ReadError(f"{member.name} is cut off")
    return content
