"""A device that stands in for Apple's: nothing on it is of float64, and it computes with nothing that lies elsewhere.

Its numbers are the CPU's, so that results can be compared. It goes by the name of "meta", a device that torch has
everywhere, and it has no gradients.
"""

import sys
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "meta"
COPYING = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
INDEXING = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default)


class There(torch.Tensor):
    """A tensor on the device; `here` holds its numbers."""

    @staticmethod
    def __new__(cls, here):
        refuse_float64(here.dtype)
        layout = {"strides": here.stride(), "storage_offset": here.storage_offset(), "dtype": here.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, here.shape, **layout, device=torch.device(NAME))

    def __init__(self, here):
        self.here = here

    def __repr__(self):  # type: ignore[override]
        return f"There({self.here})"

    def as_subclass(self, cls):
        """Tensors of that class, on the device."""
        both = There if cls is torch.Tensor else type(f"There{cls.__name__}", (cls, There), {})
        return both(self.here)

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):  # type: ignore[override]
        return compute(function, args, kwargs or {})


class Operations(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return compute(function, args, kwargs or {})


class Literals(TorchFunctionMode):
    """Numbers go to the device by way of the CPU: torch itself gives a "meta" tensor none."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.Tensor.new_tensor:
            function, args, kwargs = (
                torch.tensor,
                args[1:],
                {"dtype": args[0].dtype, "device": args[0].device, **kwargs},
            )
        if function in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return function(*args, **kwargs).to(device)
        return function(*args, **kwargs)


def refuse_float64(dtype):
    if dtype in (torch.float64, torch.complex128):
        raise TypeError(f"the device knows no {dtype}")


def compute(function, args, kwargs):
    """Computes on the CPU. The result is there if an input was, or if `device` says so."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    there = {id(tensor.here): tensor for tensor in tensors if isinstance(tensor, There)}
    indices = {id(index) for index in tree_leaves(args[1:2])} if function in INDEXING else set()
    away = [t for t in tensors if t.ndim and not isinstance(t, There) and id(t) not in indices]
    if there and away and function not in COPYING:
        raise RuntimeError(f"{function} was given tensors on two devices")
    if there and kwargs.get("dtype") is not None:
        refuse_float64(kwargs["dtype"])  # also on the way to the CPU: it converts first
    device = kwargs.get("device")
    goes = bool(there) if device is None else torch.device(device).type == NAME
    if function is torch.ops.aten.copy_.default:
        goes = isinstance(args[0], There)
    if device is not None:
        kwargs = {**kwargs, "device": "cpu"}
    numbers = tree_map(lambda x: x.here if isinstance(x, There) else x, (args, kwargs))
    result = function(*numbers[0], **numbers[1])

    def placed(x):
        if not (goes and isinstance(x, torch.Tensor)):
            return x
        return there[id(x)] if id(x) in there else There(x)  # what is computed in place stays the tensor that it was

    return tree_map(placed, result)


@contextmanager
def stand_in():
    """Makes the device usable, and has Composer take it for one without float64."""
    forget()
    try:
        with pytest.MonkeyPatch.context() as patch, torch.no_grad(), Operations(), Literals():
            patch.setattr("composer.devices.NO_FLOAT64", {NAME})
            patch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which knows no device of this name
            yield NAME
    finally:
        forget()


def forget():
    """Empties what a process keeps: networks and tables that lie on the device must not stay behind."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in ("composer", "decomposers"):
            for value in vars(module).values():
                if hasattr(value, "cache_clear"):
                    value.cache_clear()
