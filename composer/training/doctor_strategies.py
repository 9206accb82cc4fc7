"""Which way of training on one or several devices fits their memory."""

from dataclasses import dataclass

from torch import nn

UNIT = 1 << 16
"""Numbers from which on a layer is large."""

MOST = 1 << 16
"""The largest number of devices that is considered."""


@dataclass(frozen=True)
class Strategies:
    """Bytes on each device, by strategy.

    Attributes:
        static: Weights, gradients, moments and averages: `fully_shard` divides them among the devices.
        working: What a step adds to them at its peak.
        copied: Of the trained weights in validation, while the averages are in their place.
        buckets: Of gradients that DDP sends, beside the gradients.
        gathered: Layers that `fully_shard` holds whole at a time, with their gradients.
        decomposers: Their weights, on every device.
    """

    static: int
    working: int
    copied: int
    buckets: int
    gathered: int
    decomposers: int

    @property
    def alone(self) -> int:
        """On a single device."""
        return self.static + max(self.working, self.copied) + self.decomposers

    @property
    def ddp(self) -> int:
        """On each of several devices that all hold everything."""
        return self.alone + self.buckets

    def sharded(self, devices: int) -> int:
        """On each of several devices that divide the weights."""
        shared = self.static / devices + max(self.working, self.copied / devices)
        return round(shared) + self.gathered + self.decomposers

    def fewest(self, space: float) -> int | None:
        """The smallest power of two of devices, 2 or more, with so many bytes that fit with `fully_shard`."""
        devices = 2
        while self.sharded(devices) > space:
            devices *= 2
            if devices > MOST:
                return None
        return devices

    def advise(self, space: float) -> str:
        """Which strategy fits devices with so many bytes."""
        if self.ddp <= space:
            return "one, or any number with ddp"
        least = self.fewest(space)
        several = "none" if least is None else f"{least} or more with fully_shard"
        if self.alone <= space:
            return "one" if least is None else f"one, or {several}"
        return f"{several}: take a smaller batch, or checkpointing" if least is None else several


def is_large(layer: nn.Module) -> bool:
    """Whether `fully_shard` gathers a layer's own parameters by themselves, not with its whole network's."""
    return sum(p.numel() for p in layer.parameters(recurse=False)) >= UNIT


def gathered_bytes(modules: list[nn.Module]) -> int:
    """Bytes of what `sharding.shard` has whole at a time: all small layers, two large ones, and their gradients.

    Args:
        modules: Each is gathered for itself.
    """
    small, large = 0, [0]
    for layer in (layer for module in modules for layer in module.modules()):
        size = sum(p.nbytes for p in layer.parameters(recurse=False))
        if is_large(layer):
            large.append(size)
        else:
            small += size
    return 2 * (small + 2 * max(large))
