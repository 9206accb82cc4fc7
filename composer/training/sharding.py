"""Training whose weights, gradients, moments and averages are spread over all processes (FSDP, Zhao et al. 2023)."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, ParallelStrategy, StrategyRegistry
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    FullyShardedDataParallel,
    OptimStateKeyType,
    fully_shard,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from composer.training.doctor_strategies import is_large

NAME = "fully_shard"
"""What ``--trainer.strategy`` calls it."""


class FullyShard(ModelParallelStrategy):
    """Lightning's strategy for `torch.distributed.fsdp.fully_shard`, with checkpoints as every other training has them.

    A checkpoint is assembled by the first process, tensor by tensor, and is read by any strategy on any number of
    processes.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(save_distributed_checkpoint=False, **kwargs)
        # Layers' outputs are views; nothing here changes them in place
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        checkpoint: dict[str, Any] = ParallelStrategy.load_checkpoint(self, checkpoint_path, weights_only)
        return checkpoint

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        options = StateDictOptions(full_state_dict=True, strict=strict)
        set_model_state_dict(self.model, dict(checkpoint["state_dict"]), options=options)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, numbered in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            named = FullyShardedDataParallel.rekey_optim_state_dict(numbered, OptimStateKeyType.PARAM_NAME, self.model)
            options = StateDictOptions(full_state_dict=True)
            set_optimizer_state_dict(self.model, optimizer, optim_state_dict=named, options=options)


StrategyRegistry.register(NAME, FullyShard, description=FullyShard.__doc__)


def shard(module: nn.Module, device: torch.device) -> None:
    """Spreads a module's parameters over all processes; each large layer is gathered when it runs.

    Args:
        module: It is called as a whole.
        device: Of the processes.
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    module.to(memory_format=torch.contiguous_format)
    for layer in module.modules():
        if layer is not module and is_large(layer):
            fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)


def trained_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name; of those that are spread, this process's shares."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()  # what is gathered for the whole network stays so after a forward pass
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def own(tensor: Tensor) -> Tensor:
    """This process's share of a tensor: of one that is not spread, all of it."""
    local: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local


def whole(tensor: Tensor) -> Tensor:
    """A tensor that was spread over the processes, in one piece; all of them have to ask for it."""
    full: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full


def spread_as(tensor: Tensor, like: Tensor) -> Tensor:
    """Spreads a tensor that every process has as another one is spread.

    Args:
        tensor: Its shape is that of `like`.
        like: A parameter.
    """
    if not isinstance(like, DTensor) or isinstance(tensor, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
