"""A training's data alone, as its configuration names it."""

import warnings
from collections.abc import Sequence
from typing import Any

from composer.data.folder import RESERVED, ImageFolder, find_folders
from composer.data.loading import ImageData
from composer.decomposition import Decomposition
from composer.training.cli import TrainingCLI, specs_of


class _DataAlone(TrainingCLI):
    """Reads a training's whole configuration, but builds its data with the named decomposers alone."""

    def __init__(self, words: Sequence[str], names: Sequence[str], plugins: Sequence[str]):
        self.names = names
        super().__init__(words, plugins, run=False)

    def before_instantiate_classes(self) -> None:
        data = self.config.data
        if unknown := sorted(set(self.names) - data.decomposers.keys()):
            known = ", ".join(sorted(data.decomposers))
            raise ValueError(f"no decomposer named {', '.join(unknown)}; the configuration has {known}")
        if reserved := sorted(set(self.names) & RESERVED):
            raise ValueError(f"no column may be named {', '.join(reserved)}: give the representation another name")
        data.decomposers, data.readers = {name: data.decomposers[name] for name in self.names}, None
        self.config.model = None

    def instantiate_trainer(self, **kwargs: Any) -> None:
        """Nothing is trained."""


def build_data(words: Sequence[str], names: Sequence[str], plugins: Sequence[str]) -> ImageData:
    """Builds the data of a training's configuration, with the named decomposers alone.

    Args:
        words: Of the training's command line: ``-c FILE`` and what it changes.
        names: Of representations.
        plugins: Modules that the user trusts.

    Raises:
        ValueError: There is no such decomposer.
    """
    data: ImageData = _build(words, names, plugins).datamodule
    return data


def _build(words: Sequence[str], names: Sequence[str], plugins: Sequence[str]) -> _DataAlone:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="LightningCLI's args parameter")  # the words are none of its own
        return _DataAlone(words, names, plugins)


def build_decomposers(
    words: Sequence[str], names: Sequence[str], plugins: Sequence[str]
) -> tuple[Decomposition, dict[str, Any]]:
    """Builds the named decomposers of a training's configuration, and says how each is built.

    Args:
        words: Of the training's command line: ``-c FILE`` and what it changes.
        names: Of representations.
        plugins: Modules that the user trusts.

    Raises:
        ValueError: There is no such decomposer.
    """
    built = _build(words, names, plugins)
    return Decomposition(built.datamodule.decomposers), specs_of(built.config.data.decomposers)


def build_folders(
    words: Sequence[str], names: Sequence[str], plugins: Sequence[str]
) -> tuple[list[ImageFolder], Decomposition]:
    """Builds the folders of images and the named decomposers of a training's configuration.

    Args:
        words: Of the training's command line: ``-c FILE`` and what it changes.
        names: Of representations.
        plugins: Modules that the user trusts.

    Raises:
        ValueError: There is no such decomposer, or no folder of images.
    """
    data = build_data(words, names, plugins)
    folders = [folder for part in (data.train, data.validation) for folder in find_folders(part)]
    if not folders:
        raise ValueError("columns lie beside images: expected an ImageFolder in the configuration's data, found none")
    return folders, Decomposition(data.decomposers)
