"""Checkpoints of a training: written atomically, with a hash, and only if all numbers are finite.

They are read without running any code, and only if their bytes are those that were written. The hash is the comment of
the zip archive that PyTorch writes, so that `torch.load` reads the file as ever.
"""

import errno
import hashlib
import logging
import os
import pickle
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from composer.storage.files import WINDOWS, replacing

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
"""The newest checkpoint of a run and the one before, which takes its place where it is damaged."""

AT_ONCE = 3
"""Checkpoints on the disk while one is written: these two and the new one."""

log = logging.getLogger(__name__)

_END = b"PK\x05\x06"
"""Begins the last record of a zip archive: 22 bytes, of which the last two hold the length of the comment after it."""

_SEAL = b"composer sha256 "


def save(checkpoint: Mapping[str, Any], path: Path, keep: Path | None = None) -> None:
    """Writes a checkpoint atomically, with a SHA-256 of its bytes.

    Args:
        checkpoint: Tensors and plain values.
        path: The file.
        keep: Where to keep the checkpoint that was at `path`, in the same folder; None replaces it.

    Raises:
        FloatingPointError: A weight, its average or a moment of the optimiser is not finite.
        OSError: It couldn't be written. In both cases the file that stood at `path` is untouched.
    """
    if (name := _broken(checkpoint)) is not None:
        raise FloatingPointError(
            f"{name} is not finite; nothing was written, {path} is what it was. "
            "Resume from it with a lower learning rate"
        )
    try:
        with replacing(path, keep) as file:
            hashing: Any = _Hashing(file)  # as much of a file as torch.save asks for
            torch.save(dict(checkpoint), hashing)
            seal = _SEAL + hashing.hash.hexdigest().encode()
            file.seek(-2, os.SEEK_END)
            file.write(len(seal).to_bytes(2, "little") + seal)
    except (OSError, RuntimeError) as error:  # PyTorch's zip writer hides the cause in a RuntimeError
        cause = next((e for e in (error, error.__context__) if isinstance(e, OSError)), None)
        code = errno.EIO if cause is None else cause.errno
        raise OSError(
            code,
            f"cannot write the checkpoint ({error}); {shutil.disk_usage(path.parent).free / 2**20:.0f} MiB are free. "
            "Any earlier one is untouched: make room, then resume with --ckpt_path last",
            str(path),
        ) from error


class _Hashing:
    """A file that hashes what is written to it."""

    def __init__(self, file: IO[bytes]):
        self.file, self.hash = file, hashlib.sha256()

    def write(self, data: bytes | memoryview) -> int:
        self.hash.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def _broken(checkpoint: Mapping[str, Any]) -> str | None:
    """Names a tensor of weights, averages or moments that is not finite, if there is one."""
    for group in ("state_dict", "ema", "optimizer_states"):
        for name, tensor in _tensors(checkpoint.get(group, {}), group):
            # A sum is faster, and finite only where all numbers are; of finite ones it may still overflow.
            if not tensor.sum().isfinite() and not tensor.isfinite().all():
                return name
    return None


def _tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield name, value.detach()
    elif isinstance(value, Mapping | list | tuple):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, part in items:
            yield from _tensors(part, f"{name}.{key}")


def load(path: Path) -> dict[str, Any]:
    """Reads a checkpoint. Only tensors and plain values are accepted, so a foreign file can't run code.

    Tensors are memory-mapped: their bytes are read when they are used, and processes of a machine share them.

    Where a run's last checkpoint is damaged or missing, the one before it is read, and a warning says so.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The file is damaged, or holds pickled objects.
    """
    try:
        return _read(path)
    except (OSError, ValueError) as error:
        before = path.with_name(PREVIOUS)
        if path.name != LAST or not before.is_file():
            raise
        try:
            checkpoint = _read(before)
        except (OSError, ValueError) as second:
            raise ValueError(f"{error}; {second}") from error
        log.warning("%s; taking the one before: %s, of step %s", error, before, checkpoint.get("global_step"))
        return checkpoint


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"expected a checkpoint at {path}, found nothing")
    if not is_sound(path):
        raise ValueError(f"{path} is damaged: its bytes are not those that were written")
    try:
        # Windows replaces no file that is mapped; PyTorch's old format can't be
        mapped = not WINDOWS and zipfile.is_zipfile(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds pickled Python objects, which could run code; only tensors and plain values are read. "
            "If it comes from elsewhere, ask for its weights as safetensors"
        ) from error
    except Exception as error:  # a stranger's file makes it fail in many ways
        raise ValueError(f"{path} is damaged or no checkpoint: {error}") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ValueError(f"{path} is no checkpoint of a training: expected a dict with 'state_dict'")
    return checkpoint


def is_sound(path: Path) -> bool:
    """Whether a checkpoint is undamaged, judged by its hash or, without one, by the zip's checksums."""
    with path.open("rb") as file:
        return _is_sound(file)


def _is_sound(file: IO[bytes]) -> bool:
    length = len(_SEAL) + 64
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - length - 2))
    tail = file.read()
    if tail[2:].startswith(_SEAL) and len(tail) == length + 2:
        return tail[:2] == length.to_bytes(2, "little") and tail[2 + len(_SEAL) :] == _digest(file, size - len(tail))
    return _is_sound_without_hash(file, size)


def _digest(file: IO[bytes], size: int) -> bytes:
    """The hash of so many bytes and of an empty comment's length."""
    file.seek(0)
    found = hashlib.sha256()
    while size > 0 and (part := file.read(min(size, 1 << 20))):
        found.update(part)
        size -= len(part)
    found.update(bytes(2))
    return found.hexdigest().encode()


def _is_sound_without_hash(file: IO[bytes], size: int) -> bool:
    """Whether a checkpoint of an earlier version or another program looks whole, by the CRCs of its zip archive."""
    file.seek(0)
    if file.read(2) != _END[:2]:
        return True  # PyTorch's old format, or none: reading it tells
    file.seek(max(0, size - 22))
    last = file.read()
    try:
        archive = zipfile.ZipFile(file)
        small = sum(part.file_size for part in archive.infolist()) <= size  # no bomb
        sound = last[:4] == _END and last[-2:] == bytes(2) and small and archive.testzip() is None
    except Exception:  # zipfile fails in many ways on what is no sound archive
        return False
    if sound:
        log.warning("note: %s has no SHA-256: it is not of this version; only its checksums were checked", file.name)
    return sound


def load_stage(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Reads a trained stage from a checkpoint, without Lightning.

    Args:
        path: A checkpoint that `composer fit` wrote.

    Returns:
        The ``model`` and ``data`` sections of its configuration, as plain values with class names in them; and the
        averaged weights, or the trained ones where no average was kept, under ``denoiser.`` and ``conditions.``.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The file is no such checkpoint.
    """
    checkpoint = load(path)
    if not isinstance(checkpoint.get("config"), dict):
        raise ValueError(f"{path} does not say how its model is built: it was not written by `composer fit`")
    parts = [checkpoint[part] for part in ("state_dict", "ema") if part in checkpoint]
    if not all(isinstance(part, dict) and all(isinstance(v, Tensor) for v in part.values()) for part in parts):
        raise ValueError(f"{path} is no checkpoint of a training: its weights are no named tensors")
    return checkpoint["config"], averaged_weights(checkpoint)


def averaged_weights(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The weights of a checkpoint: the averaged ones, or the trained ones if there is no average."""
    weights: dict[str, Tensor] = checkpoint.get("state_dict", {}) | checkpoint.get("ema", {})
    return weights


def expected_size(model: nn.Module) -> int:
    """Bytes of a checkpoint: all weights, and for the trained ones an average and AdamW's two moments.

    Args:
        model: What is trained, on any device.
    """
    weights: int = sum(tensor.nbytes for tensor in model.state_dict().values())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return weights + 3 * 4 * trained  # those three in float32


def require_space(folder: Path, size: int) -> None:
    """Refuses a training whose checkpoints would fill the disk: the last two and the next one.

    Args:
        folder: Where checkpoints will be written; made if missing.
        size: Bytes of one.

    Raises:
        OSError: Less is free.
    """
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    needed = size * (AT_ONCE - sum((folder / name).exists() for name in (LAST, PREVIOUS)))
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"the checkpoints of this training take {needed / 2**20:.0f} MiB, "
            f"{free / 2**20:.0f} MiB are free: make room, or choose another folder with --trainer.default_root_dir",
            str(folder),
        )
