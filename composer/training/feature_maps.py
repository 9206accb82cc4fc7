"""Feature maps of frozen networks, in which a training compares images."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from composer.scenes.reader import SceneReader, load_reader
from composer.storage.pretrained import load_tensors, locate
from composer.training.autoencoder_loss import perceptual_distance


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

    def distance(self, images: Float[Tensor, "b 3 h w"], found: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
        """How far apart true images and their reconstructions look.

        Args:
            images: The true images, in [-1, 1]; no gradient flows to them.
            found: Their reconstructions.
        """
        return perceptual_distance(images, found, self)


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


BACKBONES = {"vgg": "vgg16-397923af.pth", "alex": "alexnet-owt-7be5be79.pth"}
"""Files of the networks' weights on ImageNet, as torchvision names them and ``torch.hub`` keeps them."""


class LPIPS(FeatureMaps):
    """The learned perceptual distance (Zhang et al. 2018), as torchmetrics computes it; Rombach et al. take ``vgg``.

    torchmetrics brings the learned weights of the layers; those of the network itself are torchvision's, a file that
    has to be there already.

    Args:
        net: The network.
        weights: Its file; None is where ``torch.hub`` keeps it.

    Raises:
        FileNotFoundError: It is not there.
        ValueError: The file holds something else.
    """

    def __init__(self, net: Literal["vgg", "alex"] = "vgg", weights: str | None = None):
        from torchmetrics.functional.image.lpips import _NoTrainLpips

        name = BACKBONES[net]
        source = weights or str(Path(torch.hub.get_dir()) / "checkpoints" / name)
        wanted = f"torchvision's weights {name} (https://download.pytorch.org/models/{name})"
        path = locate(source, wanted=wanted, who="LPIPS")
        self._net = _NoTrainLpips(net=net, pnet_rand=True)
        stored, own = load_tensors(path), self._net.net.state_dict()
        found = {key: stored.get(f"features.{key.partition('.')[2]}") for key in own}
        if any(value is None or value.shape != own[key].shape for key, value in found.items()):
            raise ValueError(f"LPIPS needs {wanted}: {path} holds other weights")
        self._net.net.load_state_dict(found)
        self._net.requires_grad_(False)

    def __call__(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """See `FeatureMaps`."""
        net = self._net.to(images.device)
        return [layer.float() for layer in net.net(net.scaling_layer(images))]

    def distance(self, images: Float[Tensor, "b 3 h w"], found: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
        """See `FeatureMaps`; with the learned weights of the layers."""
        apart: Tensor = self._net.to(images.device)(images.detach(), found)
        return apart.flatten().float()
