"""A stage's training and sampling step without numbers: its operations counted, its memory followed.

On the meta device a tensor has a shape and no numbers. Every operation is counted, a multiply-add as two, and every
tensor is followed from its making to its release, in Python's and autograd's own order. Not seen is what a device does
besides: its kernels' workspaces, the allocator's gaps, a GPU's context of half a gigabyte.
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry

from .conditioning import Conditioning, ConditionSet
from .denoiser import Denoiser

Device = Literal["cuda", "cpu"]

LOWERED = {F.conv2d, F.linear, F.scaled_dot_product_attention, torch.matmul, torch.bmm, Tensor.matmul}
LOWERED |= {Tensor.__matmul__}
RAISED = {F.group_norm, F.layer_norm, torch.group_norm, torch.layer_norm}
"""What autocast computes in the lower precision, and on a GPU alone in float32, of the operations that stages use."""


@dataclass(frozen=True)
class Step:
    """Operations of the way there and in all; bytes alive when the way back begins, and at the most."""

    forward: int
    operations: int
    kept: int
    peak: int


def training_step(denoiser: Denoiser, conditions: ConditionSet, side: int, images: int, kernels: "Kernels") -> Step:
    """Does what `StageTraining.training_step` and its way back do, with every condition kept."""
    stage = nn.ModuleList([denoiser, conditions]).train()
    with torch.device("meta"):
        for parameter in stage.parameters():
            parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
        with Watch(stage) as watch, kernels:
            cond = _encode(conditions, images, side)
            image, noise = torch.empty(2, images, 3, side, side)
            loss = denoiser.loss(image, cond, torch.empty(images), noise).mean()
            kernels.forget()
            forward, kept = watch.operations, watch.alive
            _way_back(loss)
    stage.zero_grad()
    return Step(forward, watch.operations, kept, watch.peak)


def _way_back(loss: Tensor) -> None:
    """Calls the engine of ``loss.backward()``, which itself would leave the modes that are on for its duration.

    What checkpointing computes again needs them too.
    """
    engine = torch.autograd.Variable._execution_engine
    engine.run_backward(
        (loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True
    )


@torch.no_grad()
def sampling_step(denoiser: Denoiser, conditions: ConditionSet, size: int, rows: int, kernels: "Kernels") -> Step:
    """Does what one step of a sampler does; encoding the conditions is no part of it, but their encodings are alive."""
    stage = nn.ModuleList([denoiser, conditions]).eval()
    with torch.device("meta"), Watch(stage) as watch, kernels:
        cond = denoiser.prepare(_encode(conditions, rows, size))
        before, kept = watch.operations, watch.alive
        denoiser(torch.empty(rows, 3, size, size), torch.empty(rows), cond)
    operations = watch.operations - before
    return Step(operations, operations, kept, watch.peak)


def _encode(conditions: ConditionSet, images: int, side: int) -> Conditioning:
    examples = {name: condition.example(images, (side, side)) for name, condition in conditions.named()}
    cond: Conditioning = conditions(examples, (side, side))
    return cond


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations, and the bytes of the tensors that are alive.

    Args:
        stage: Its parameters, their gradients and its buffers are not counted.

    Attributes:
        operations: Floating-point operations so far.
        alive: Bytes alive now.
        peak: The most bytes that were alive.
    """

    def __init__(self, stage: nn.Module):
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = self.alive = self.peak = 0
        gradients = [p.grad for p in stage.parameters() if p.grad is not None]
        self._known = {t.untyped_storage()._cdata for t in (*stage.parameters(), *stage.buffers(), *gradients)}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.operations += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._follow(tensor.untyped_storage())
        return out

    def _follow(self, storage: torch.UntypedStorage) -> None:
        """A storage is known by its address, until it dies and another may come to lie there."""
        address, size = storage._cdata, storage.nbytes()
        if address in self._known:
            return
        self._known.add(address)
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._release, address, size).atexit = False

    def _release(self, address: int, size: int) -> None:
        self._known.discard(address)
        self.alive -= size


class Kernels(TorchFunctionMode):
    """Does to meta tensors what a device's autocast and its fused attention do to real ones.

    Autocast itself knows no meta device. Fused attention keeps no scores; what `UNet` does on a CPU in bf16 does.

    Args:
        device: Whose rules apply.
        precision: What mixed precision computes in; None for no mixed precision.
    """

    def __init__(self, device: Device, precision: torch.dtype | None):
        super().__init__()
        self.on_gpu, self.precision = device == "cuda", precision
        self._cast: dict[int, Tensor] | None = {}

    def forget(self) -> None:
        """Lets go of the weights that were cast, as autocast does when the way there ends."""
        self._cast = None

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.precision is not None and func in LOWERED:
            args, kwargs = tree_map(self._lowered, (args, kwargs))
        elif self.precision is not None and self.on_gpu and func in RAISED:
            args, kwargs = tree_map(_raised, (args, kwargs))
        if func is F.scaled_dot_product_attention:
            fused = self.on_gpu or args[0].dtype == torch.float32 or args[0].shape[2] > 1024
            return (_fused_attention if fused else _plain_attention)(*args, **kwargs)
        if func is F.dropout and self.on_gpu:
            return _fused_dropout(*args, **kwargs)
        return func(*args, **kwargs)

    def _lowered(self, x: Any) -> Any:
        """Weights are cast once on the way there."""
        if not isinstance(x, Tensor) or x.dtype != torch.float32:
            return x
        if self._cast is None or not (x.is_leaf and x.requires_grad):
            return x.to(self.precision)
        if id(x) not in self._cast:
            self._cast[id(x)] = x.to(self.precision)
        return self._cast[id(x)]


def _raised(x: Any) -> Any:
    return x.float() if isinstance(x, Tensor) and x.dtype == torch.bfloat16 else x


def _fused_attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    mask = None if attn_mask is None else torch.zeros_like(attn_mask, dtype=q.dtype)
    out: Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=mask)[0]
    return out


def _plain_attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    scores = (q * q.shape[3] ** -0.5) @ k.transpose(2, 3)
    if attn_mask is not None:
        scores = scores + torch.zeros_like(attn_mask, dtype=q.dtype)
    out: Tensor = scores.softmax(3) @ v
    return out


def _fused_dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """A GPU keeps a byte an entry to know what it dropped."""
    return torch.native_dropout(x, p, training)[0] if training and p > 0 else x
