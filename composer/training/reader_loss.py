"""A loss on what frozen readers compute from the estimate, so that images follow their conditions."""

import torch
from jaxtyping import Float
from torch import Tensor

from composer.conditioning import ConditionSet, Keep
from composer.decomposition import Decomposer, Decomposition, Representations


class ReaderLoss:
    """Decomposes the estimates of rows with little noise, and adds their distance from the rows' representations.

    At much noise the estimate is an average of many pictures, of which no reader knows what it shows. A network learns
    to please its reader: measure the trained model with another one, of other weights.

    Args:
        readers: Name of a condition -> what reads it from the estimate. They are frozen, and no part of the model.
        weights: Name -> weight of its loss relative to the denoiser's own; 1 where it is missing.
        below: Noise level under which a row's estimate is read.

    Raises:
        ValueError: A weight or `below` is not positive, or a weight belongs to no reader.

    Reference: ControlNet++ (Li et al. 2024), section 3.3.
    """

    def __init__(self, readers: dict[str, Decomposer], weights: dict[str, float] | None = None, below: float = 1.0):
        self.readers, self.below = Decomposition(readers), below
        self.weights = dict.fromkeys(readers, 1.0) | (weights or {})
        if unknown := sorted(self.weights.keys() - readers.keys()):
            raise ValueError(f"expected weights of {', '.join(readers)}; found {', '.join(unknown)}")
        if min([below, *self.weights.values()]) <= 0:
            raise ValueError(f"expected below and weights above 0, found {below} and {weights}")

    def check(self, conditions: ConditionSet, size: int) -> None:
        """Runs every reader once, to find errors before the training.

        Raises:
            ValueError: There is no condition of its name, or what it reads has no gradient.
        """
        for name, reader in self.readers.named():
            if name not in conditions:
                raise ValueError(f"reader_loss reads {name}; this model has {', '.join(conditions)}")
            image = torch.rand(1, 3, size, size, requires_grad=True)
            wanted = dict(conditions.named())[name].example(1, (size, size))
            try:
                loss = reader.loss(wanted, {"image": image * 2 - 1, "seed": torch.zeros(1, dtype=torch.long)})
                torch.autograd.grad(loss.sum(), image)
            except RuntimeError as error:
                raise ValueError(
                    f"reader_loss: {type(reader).__name__} gives no gradient, leave {name} out ({error})"
                ) from error

    def __call__(
        self, given: Representations, keep: Keep, sigma: Float[Tensor, " b"], seed: Tensor, estimate: Tensor
    ) -> Float[Tensor, " b"]:
        """The loss, row by row.

        Args:
            given: What the rows were given.
            keep: Which of it they kept.
            sigma: Noise levels.
            seed: Of the samples, for readers that draw.
            estimate: (b 3 h w) estimates of the clean images.
        """
        total = torch.zeros_like(sigma)
        self.readers.to(estimate.device)
        with torch.autocast(estimate.device.type, enabled=False):
            for name, reader in self.readers.named():
                rows = keep[name] & (sigma < self.below)
                if name in given and rows.any():
                    batch = {"image": estimate[rows].clamp(-1, 1), "seed": seed[rows]}
                    found = reader.loss(given[name][rows], batch)
                    total = total.index_put((rows,), self.weights[name] * found, accumulate=True)
        return total
