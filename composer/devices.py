"""Where networks run: an NVIDIA or AMD GPU (cuda), an Apple GPU (mps), or the CPU."""

import torch
from torch import Tensor

from composer.names import DEVICES

NO_FLOAT64 = {"mps"}


def pick_device(name: str | None = None) -> torch.device:
    """Chooses the device to run on.

    Args:
        name: One of `DEVICES`; None takes the first of them that this machine has.

    Raises:
        ValueError: This machine has no such device.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    found = [device for device in DEVICES if present[device]]
    if name is not None and name not in found:
        raise ValueError(f"expected a device that this machine has, {' or '.join(found)}, found {name}")
    return torch.device(name or found[0])


def with_float64(x: Tensor) -> Tensor:
    """Moves a tensor to the CPU if its device does not support float64 (mps)."""
    return x.cpu() if x.device.type in NO_FLOAT64 else x


def to_float64(x: Tensor) -> Tensor:
    """Converts to float64, on the CPU if the tensor's device does not support it (mps)."""
    return with_float64(x).double()  # in two steps: one alone would convert before it copies
