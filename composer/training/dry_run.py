"""Training and sampling steps on the meta device, where tensors have shapes but no values.

FLOPs come from torch's own counter, a multiply-add as two. Attention counts as two matrix products, so the number
depends on no kernel, precision or device. For memory, every tensor is followed from its allocation to its release, in
Python's and autograd's own order, by the rules of one device. Not seen is what a device needs besides: its kernels'
workspaces, the allocator's gaps, a GPU's context of half a gigabyte.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from composer.conditioning import ConditionSet
from composer.decomposition import Representations
from composer.diffusion.denoiser import Denoiser
from composer.networks.attention import attend_by_matmul, prefers_matmul

Device = Literal["cuda", "cpu"]

LOWERED = {F.conv2d, F.linear, F.scaled_dot_product_attention, torch.matmul, torch.bmm, Tensor.matmul}
LOWERED |= {Tensor.__matmul__}
RAISED = {F.group_norm, F.layer_norm, torch.group_norm, torch.layer_norm}
"""What autocast computes in the lower precision, and on a GPU alone in float32, of the operations that stages use."""


@contextmanager
def count_flops() -> Iterator[FlopCounterMode]:
    """Counts the FLOPs within the block, with unfused kernels, as torch's counter does not know all fused ones."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


@dataclass(frozen=True)
class Step:
    """The forward pass of a training step, on the meta device.

    Attributes:
        network: What is trained, and what the step computes with it.
        inputs: Number of images -> the inputs of the loss.
        loss: Inputs -> the loss, a single number.
    """

    network: nn.Module
    inputs: Callable[[int], tuple[Any, ...]]
    loss: Callable[..., Tensor]

    def forward_flops(self) -> int:
        """FLOPs of the forward pass, per image."""
        with count_flops() as counter:
            self.loss(*self.inputs(1))
        return counter.get_total_flops()

    def flops(self, images: int = 1) -> tuple[int, int]:
        """FLOPs of the forward pass, and in total, with what checkpointing computes again."""
        with count_flops() as counter:
            loss = self.loss(*self.inputs(images))
            forward = counter.get_total_flops()
            torch.autograd.backward(loss)
        self.network.zero_grad()
        return forward, counter.get_total_flops()

    def memory(self, images: int, kernels: "Kernels") -> tuple[int, int]:
        """Live bytes beside weights and gradients: when the backward pass starts, and the peak."""
        for parameter in self.network.parameters():
            parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
        with LiveBytes(self.network) as live, kernels:
            inputs = self.inputs(images)
            loss = self.loss(*inputs)
            kernels.forget()
            kept = live.now
            # Begun from a tensor, it would run without `kernels`, which what checkpointing computes again needs.
            torch.autograd.backward([get_gradient_edge(loss)])
        self.network.zero_grad()
        return kept, live.peak


def stage_step(denoiser: Denoiser, conditions: ConditionSet, side: int) -> Step:
    """Does what `StageTraining.training_step` does, with every condition kept.

    Args:
        denoiser: The stage's.
        conditions: The stage's.
        side: Height and width of the latents.
    """

    def loss(image: Tensor, reps: Representations) -> Tensor:
        cond = conditions(reps, (image.shape[2], image.shape[3]))
        return denoiser.loss(image, cond, image.new_empty(len(image)), torch.empty_like(image)).mean()

    network = nn.ModuleList([denoiser, conditions]).train()
    return Step(network, lambda images: _batch(conditions, denoiser.network.channels, side, images), loss)


def training_flops(denoiser: Denoiser, conditions: ConditionSet, side: int, images: int = 1) -> tuple[int, int]:
    """FLOPs of a stage's training step, see `Step.flops`."""
    return stage_step(denoiser, conditions, side).flops(images)


def training_memory(
    denoiser: Denoiser, conditions: ConditionSet, side: int, images: int, kernels: "Kernels"
) -> tuple[int, int]:
    """Live bytes of a stage's training step, see `Step.memory`."""
    return stage_step(denoiser, conditions, side).memory(images, kernels)


@torch.no_grad()
def sampling_step(
    denoiser: Denoiser, conditions: ConditionSet, size: int, rows: int, kernels: "Kernels"
) -> tuple[int, int]:
    """FLOPs and peak of live bytes of one step of a sampler; only the latter includes encoding the conditions."""
    stage = nn.ModuleList([denoiser, conditions]).eval()
    with LiveBytes(stage) as live, kernels:
        image, reps = _batch(conditions, denoiser.network.channels, size, rows)
        cond = denoiser.prepare(conditions(reps, (size, size)))
        denoiser(image, image.new_empty(rows), cond)
    with count_flops() as counter:
        denoiser(image, image.new_empty(rows), cond)
    return counter.get_total_flops(), live.peak


def _batch(conditions: ConditionSet, channels: int, side: int, images: int) -> tuple[Tensor, Representations]:
    with torch.device("meta"):
        reps = {name: condition.example(images, (side, side)) for name, condition in conditions.named()}
        return torch.empty(images, channels, side, side), reps


@runtime_checkable
class Encoder(Protocol):
    """A codec or an autoencoder."""

    def encode(self, images: Tensor, /) -> Tensor:
        """Encodes images (b 3 h w)."""
        ...


def encoding_flops(codec: Encoder, side: int) -> int:
    """FLOPs of encoding an image of that side."""
    with count_flops() as counter, torch.device("meta"):
        codec.encode(torch.empty(1, 3, side, side))
    return counter.get_total_flops()


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Tracks the bytes of live tensors, except for those of a stage and its gradients.

    Attributes:
        now: Bytes alive now.
        peak: The most bytes that were alive.
    """

    def __init__(self, stage: nn.Module):
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        held = [*stage.parameters(), *stage.buffers(), *(p.grad for p in stage.parameters() if p.grad is not None)]
        self._known = weakref.WeakSet(tensor.untyped_storage() for tensor in held)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, list | tuple) else (out,):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self._known:
                self._known.add(storage)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._release, storage.nbytes()).atexit = False
        return out

    def _release(self, size: int) -> None:
        self.now -= size


class Kernels(TorchFunctionMode):
    """Emulates a device's autocast and fused kernels on meta tensors, which autocast does not support.

    Args:
        device: Whose rules apply.
        precision: What mixed precision computes in; None for no mixed precision.
    """

    def __init__(self, device: Device, precision: torch.dtype | None):
        super().__init__()
        self.on_gpu, self.precision = device == "cuda", precision
        self._weights: dict[int, Tensor] | None = {}

    def forget(self) -> None:
        """Frees the weights that were cast, as autocast does when the forward pass ends."""
        self._weights = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.precision is not None:
            args, kwargs = [self._cast(func, x) for x in args], {k: self._cast(func, x) for k, x in kwargs.items()}
        if func is F.scaled_dot_product_attention:
            by_matmul = not self.on_gpu and prefers_matmul(args[0])
            return (attend_by_matmul if by_matmul else _attend_fused)(*args, **kwargs)
        if func is F.dropout and self.on_gpu:
            return _drop_fused(*args, **kwargs)
        return func(*args, **kwargs)

    def _cast(self, func: Any, x: Any) -> Any:
        """Weights are cast once in a forward pass."""
        if isinstance(x, Tensor) and func in RAISED and self.on_gpu and x.dtype == self.precision:
            return x.float()
        if not isinstance(x, Tensor) or func not in LOWERED or x.dtype != torch.float32:
            return x
        if self._weights is None or not (x.is_leaf and x.requires_grad):
            return x.to(self.precision)
        if id(x) not in self._weights:
            self._weights[id(x)] = x.to(self.precision)
        return self._weights[id(x)]


class _FusedAttention(torch.autograd.Function):
    """Keeps its inputs, its output and a float32 per query, but no scores."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        out = torch.empty_like(q.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        ctx.save_for_backward(q, k, v, mask, out, q.new_empty(q.shape[:3], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *(torch.empty_like(x) for x in ctx.saved_tensors[:3]), None


def _attend_fused(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    mask = None if attn_mask is None else torch.zeros_like(attn_mask, dtype=q.dtype)
    out: Tensor = _FusedAttention.apply(q, k, v, mask)
    return out


def _drop_fused(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """A GPU keeps a byte per entry to know what it dropped."""
    return x * torch.empty_like(x, dtype=torch.bool) if training and p > 0 else x
