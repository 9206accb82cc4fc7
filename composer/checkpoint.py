"""Checkpoints of a training: written whole or not at all, never with broken weights, read without running any code."""

import errno
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .files import replacing

WEIGHTS = ("state_dict", "ema")


def save(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Writes a checkpoint atomically.

    Raises:
        FloatingPointError: A weight is not finite.
        OSError: It couldn't be written. In both cases the file that stood at `path` is untouched.
    """
    for part in WEIGHTS:
        for name, value in checkpoint.get(part, {}).items():
            if not bool(value.isfinite().all()):
                raise FloatingPointError(
                    f"the weights of {name} are not finite; nothing was written, {path} is what it was. "
                    "Resume from it with a lower learning rate"
                )
    try:
        with replacing(path) as file:
            torch.save(dict(checkpoint), file)
    except (OSError, RuntimeError) as error:  # PyTorch's zip writer hides the cause in a RuntimeError
        cause = next((e for e in (error, error.__context__) if isinstance(e, OSError)), None)
        code = errno.EIO if cause is None else cause.errno
        raise OSError(
            code,
            f"cannot write the checkpoint ({error}); {shutil.disk_usage(path.parent).free / 2**20:.0f} MiB are free. "
            "Any earlier one is untouched: make room, then resume with --ckpt_path last",
            str(path),
        ) from error


def load(path: Path) -> dict[str, Any]:
    """Reads a checkpoint. Only tensors and plain values are accepted, so a foreign file can't run code.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The file is damaged, or holds pickled objects.
    """
    if not path.is_file():
        raise FileNotFoundError(f"expected a checkpoint at {path}, found nothing")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds pickled Python objects, which could run code; only tensors and plain values are read. "
            "If it comes from elsewhere, ask for its weights as safetensors"
        ) from error
    except (RuntimeError, EOFError, ValueError) as error:
        raise ValueError(f"{path} is damaged or no checkpoint: {error}") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ValueError(f"{path} is no checkpoint of a training: expected a dict with 'state_dict'")
    return checkpoint


def load_stage(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Reads what a trained stage consists of, without Lightning.

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
    if "config" not in checkpoint:
        raise ValueError(f"{path} does not say how its model is built: it was not written by `composer fit`")
    return checkpoint["config"], {**checkpoint["state_dict"], **checkpoint.get("ema", {})}


def expected_size(model: nn.Module) -> int:
    """Bytes of a checkpoint of a training: all weights, and of the trained ones an average and AdamW's two moments.

    Args:
        model: What is trained, on any device.
    """
    weights: int = sum(tensor.nbytes for tensor in model.state_dict().values())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return weights + 3 * 4 * trained  # those three in float32


def require_space(folder: Path, needed: int) -> None:
    """Refuses to start what would fill the disk.

    Args:
        folder: Where checkpoints will be written; made if missing.
        needed: Bytes.

    Raises:
        OSError: Less is free.
    """
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"a checkpoint of this training and its replacement take {needed / 2**20:.0f} MiB, "
            f"{free / 2**20:.0f} MiB are free: make room, or choose another folder with --trainer.default_root_dir",
            str(folder),
        )
