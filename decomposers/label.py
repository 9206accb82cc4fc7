"""The class of a fixed list that a person names."""

import torch
from jaxtyping import Shaped
from torch import Tensor

from composer.decomposition import Batch, Decomposer
from composer.names import Kind

from .tokens import captions_device, write_texts


class Label(Decomposer):
    """The number of a class, from data that has labels (``batch["label"]``) or from a person, for ADM's networks.

    Args:
        classes: Number of classes, counted from 0; 1000 in ImageNet.
    """

    kind = Kind.TEXT

    def __init__(self, classes: int = 1000):
        super().__init__()
        self.classes = classes

    def can_read(self, batch: Batch) -> bool:
        return "label" in batch

    def forward(self, batch: Batch) -> Shaped[Tensor, "b 1"]:
        """Takes the labels from the batch."""
        return torch.as_tensor(batch["label"], dtype=torch.long, device=captions_device(batch)).view(-1, 1)

    def from_text(self, text: str) -> Shaped[Tensor, "1 1"]:
        """Reads a number.

        Raises:
            ValueError: It is not one of the classes.
        """
        if not (text.isdecimal() and int(text) < self.classes):
            raise ValueError(f"expected the number of a class from 0 to {self.classes - 1}, found {text!r}")
        return torch.tensor([[int(text)]])

    def preview(self, value: Shaped[Tensor, "b 1"]) -> Tensor:
        """Draws the number."""
        return write_texts([f"class {int(n)}" for n in value[:, 0]]).to(value.device)

    def distance(self, wanted: Shaped[Tensor, "b 1"], got: Shaped[Tensor, "b 1"]) -> Tensor:
        """0 for the same class, 1 for another."""
        return (wanted[:, 0] != got[:, 0]).float()
