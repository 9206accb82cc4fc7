"""Muon for convolutions, AdamW for the rest, as one optimizer."""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the Newton-Schulz iteration's quintic: steepest at 0, at the price of singular values that end in 0.7 to 1.2."""


Loss: TypeAlias = float | Tensor


class Muon(Optimizer):
    """Steps along the orthogonalised momentum of some weights, and by AdamW for all others (Jordan et al. 2024).

    Every singular value of a step is about 1, so that rare directions of the gradient count as much as frequent ones. A
    convolution is the matrix (out, in * height * width). `torch.optim.Muon` takes matrices alone, and a training has
    one optimizer: hence both in one, whose state is saved and resumed as that of any other.

    Args:
        matrices: Weights of 2 or more dimensions that Muon trains.
        others: Parameters that AdamW trains, or groups of them with settings of their own.
        rate: Muon's learning rate: the largest singular value of a step, where a matrix is wider than high.
        momentum: Of the gradients, Nesterov's.
        weight_decay: Decoupled weight decay of both.
        **adamw: What else AdamW takes, its own learning rate `lr` among it.

    Reference: https://kellerjordan.github.io/posts/muon/
    """

    def __init__(
        self,
        matrices: Sequence[nn.Parameter],
        others: Sequence[nn.Parameter] | Sequence[dict[str, Any]],
        rate: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
        **adamw: Any,
    ):
        if rate <= 0 or not 0 <= momentum < 1:
            raise ValueError(f"expected a rate above 0 and momentum in [0, 1), found {rate} and {momentum}")
        self._adamw = AdamW(others, weight_decay=weight_decay, **adamw)
        groups = [group | {"muon": False} for group in self._adamw.param_groups]
        groups.append({"params": list(matrices), "muon": True, "lr": rate, "momentum": momentum})
        super().__init__(groups, {"weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Loss] | None = None) -> Loss | None:  # type: ignore[override]
        """Takes a step; parameters without a gradient stay."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # What was loaded replaces groups and state, so AdamW is handed its own anew.
        self._adamw.param_groups = [group for group in self.param_groups if not group["muon"]]
        self._adamw.state = self.state
        self._adamw.step()
        for group in self.param_groups:
            if group["muon"]:
                self._step(group)
        return loss

    def _step(self, group: dict[str, Any]) -> None:
        for p in group["params"]:
            if p.grad is None:
                continue
            state = self.state[p]
            if not state:
                state["momentum"] = torch.zeros_like(p)
            state["momentum"].lerp_(p.grad, 1 - group["momentum"])
            update = orthogonalise(p.grad.lerp(state["momentum"], group["momentum"]).flatten(1))
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.add_(update.reshape(p.shape), alpha=-group["lr"] * math.sqrt(max(1, len(update) / update.shape[1])))


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """About U V of the singular value decomposition U S V of a matrix, in bfloat16.

    Args:
        matrix: (n m).
        steps: Of the Newton-Schulz iteration, matrix products alone. In float32 a CPU takes 25 times as long for them.
    """
    a, b, c = COEFFICIENTS
    x = matrix.bfloat16()
    wide = len(x) <= x.shape[1]
    x = x if wide else x.T
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.T


def make_optimizer(
    trained: Sequence[nn.Parameter], inner: Sequence[Tensor], muon_rate: float | None, **adamw: Any
) -> Optimizer:
    """AdamW for all parameters, or Muon for some of them.

    Args:
        trained: All that is trained, in the order of its state.
        inner: The weights among them that Muon may train.
        muon_rate: Muon's learning rate; None leaves everything to AdamW.
        **adamw: What AdamW takes.
    """
    if muon_rate is None:
        return AdamW(trained, **adamw)
    ids = {id(weight) for weight in inner}
    return Muon([p for p in trained if id(p) in ids], [p for p in trained if id(p) not in ids], muon_rate, **adamw)
