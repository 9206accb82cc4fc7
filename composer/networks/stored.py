"""Autoencoders as folders."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from composer.storage.building import Buildable, build
from composer.storage.finding import find_model
from composer.storage.folder import read_model, write_model
from composer.storage.loading import load_strictly, require_fit

T = TypeVar("T", bound="Stored")

FILE = "autoencoder.safetensors"


class Stored(nn.Module, Buildable, ABC):
    """An autoencoder that is saved as a folder, and loaded from one."""

    @abstractmethod
    def encode(self, images: Tensor, /) -> Tensor:
        """Encodes (b 3 h w) images in [-1, 1] as latents or codes."""

    @abstractmethod
    def decode(self, encoded: Tensor, /) -> Tensor:
        """Decodes latents or codes to (b 3 h w) images."""

    @abstractmethod
    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments, as plain JSON values."""

    def save(
        self, folder: str | Path, card: str = "", name: str | None = None, dtype: torch.dtype = torch.float32
    ) -> None:
        """Saves it as a folder: weights, configuration, manifest and card.

        Args:
            folder: Where to.
            card: The model card, Markdown; an empty one keeps the old card.
            name: The model's name; None is the folder's.
            dtype: Precision of the weights on disk; torch.float16 halves the size.
        """
        folder = Path(folder)
        part = specification(type(self), **self.arguments())
        config: dict[str, Any] = {"name": name or folder.resolve().name, "autoencoders": [part]}
        write_model(folder, config, {FILE: {key: value.to(dtype) for key, value in self.state_dict().items()}}, card)

    @classmethod
    def load(cls: type[T], folder: str | Path, network: bool = False) -> T:
        """Loads a folder that `save` wrote.

        Args:
            folder: The folder, or ``owner/name@revision`` on the Hugging Face hub.
            network: Whether it may be downloaded, if it is not on this machine yet.

        Raises:
            FileNotFoundError: There is no model at that place, or a file of it is missing.
            ValueError: It is another kind of model, files are damaged, or weights and configuration do not fit.
        """
        path = find_model(folder, network)
        config, weights, _ = read_model(path, "autoencoders")
        (tensors,) = weights.values()
        require_fit(lambda: build(config["autoencoders"][0], cls), tensors, str(path))
        made = build(config["autoencoders"][0], cls)
        load_strictly(made, tensors, str(path))
        return made.eval()


def specification(cls: type[Stored], **arguments: Any) -> dict[str, Any]:
    """How an autoencoder is built, and the file of its weights, as a model's configuration says it."""
    return {"class_path": f"{cls.__module__}.{cls.__name__}", "init_args": arguments, "file": FILE}
