"""Feature maps of frozen networks, in which a training compares images."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from composer.scenes.reader import SceneReader, load_reader
from composer.storage.pretrained import locate


class FeatureMaps(ABC):
    """The layers of a frozen network that see how alike two images look.

    It is no module of the training: it is in no optimizer, average or checkpoint.
    """

    @abstractmethod
    def __call__(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Returns feature maps (b c h' w'), float32, through which gradients flow back to the images.

        Args:
            images: In [-1, 1].
        """


class SceneFeatures(FeatureMaps):
    """The first convolutions of the small reader of Scenes, at the image's size and at 1/2 to 1/32 of it.

    The reader was trained on whole Scenes of 64 pixels, with blur, noise and changed colours. What it sees is local,
    so crops of larger Scenes serve too.

    Args:
        weights: The reader's folder.
    """

    def __init__(self, weights: str = "asset:scenes_reader"):
        self._reader: SceneReader = load_reader(locate(weights, wanted="the scenes reader", who="SceneFeatures"))

    def __call__(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """See `FeatureMaps`.

        Raises:
            ValueError: Height or width is not a multiple of 32.
        """
        h, w = images.shape[2:]
        if h % 32 or w % 32:
            raise ValueError(f"SceneFeatures reads images whose sides are multiples of 32 pixels, found {w} x {h}")
        reader = self._reader.to(images.device)
        images = images.contiguous(memory_format=torch.channels_last)
        return [layer.float() for layer in (reader.fine(images), *reader.backbone(images))]
