"""A small network that predicts depth, categories and instances from an image of a scene."""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from composer.scenes import SHAPES
from composer.storage.pretrained import load_frozen

CATEGORIES = SHAPES
"""Names of the category ids 1, 2, ...; id 0 is everything else."""

READ_SIZE = 64
"""Side in pixels of the images that the network was trained on."""

SMALLEST_INSTANCE = 4
"""Connected components of fewer pixels than this are noise at a border, not an object."""


@dataclass(frozen=True, kw_only=True)
class SceneReading:
    """The network's output for a batch of images, at their size.

    Attributes:
        depth: Relative inverse depth in (0, 1), near = 1.
        category: Logits of no category and of each of `CATEGORIES`.
        border: Logit of "this pixel touches another instance than its own".
    """

    depth: Float[Tensor, "b 1 h w"]
    category: Float[Tensor, "b c h w"]
    border: Float[Tensor, "b 1 h w"]


class SceneReader(nn.Module):
    """A timm residual network with a feature pyramid (Lin et al. 2017, section 3) up to the image's resolution.

    Most parameters sit at strides 8 to 32, where relative depth depends on the whole image; the last
    level, at stride 1, makes outlines exact to the pixel.

    Args:
        channels: Widths of the backbone's stages at strides 4, 8, 16, 32.
        width: Channels of the pyramid; half of it at the image's resolution.
    """

    def __init__(self, channels: tuple[int, int, int, int] = (32, 64, 128, 160), width: int = 40):
        super().__init__()
        import timm

        self.config = {"channels": list(channels), "width": width}
        self.backbone = timm.create_model("resnet10t", pretrained=False, features_only=True, channels=tuple(channels))
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in self.backbone.feature_info.channels())
        self.smooth = nn.ModuleList(block(width, width) for _ in self.lateral)
        self.fine = block(3, width)
        self.head = nn.Sequential(block(width, width // 2), block(width // 2, width // 2))
        self.out = nn.Conv2d(width // 2, 1 + 1 + len(CATEGORIES) + 1, 1)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> SceneReading:
        """Predicts from images in [-1, 1] whose sides are multiples of 32."""
        features = [conv(f) for conv, f in zip(self.lateral, self.backbone(image), strict=True)]
        x = features[-1]
        for finer, smooth in zip(reversed([self.fine(image), *features[:-1]]), reversed(self.smooth), strict=True):
            x = finer + F.interpolate(smooth(x), finer.shape[-2:], mode="bilinear")
        depth, category, border = self.out(self.head(x)).split((1, 1 + len(CATEGORIES), 1), dim=1)
        return SceneReading(depth=depth.sigmoid(), category=category, border=border)


def block(inputs: int, outputs: int) -> nn.Sequential:
    """Makes a 3x3 convolution with norm and nonlinearity."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


@functools.cache
def load_reader(folder: Path) -> SceneReader:
    """Loads a frozen reader (see `load_frozen`); the same folder gives the same object within a process."""
    return load_frozen(folder, lambda own: SceneReader(tuple(own["channels"]), own["width"]), "the scenes reader")


def instance_borders(ids: Int[Tensor, "b h w"]) -> Bool[Tensor, "b h w"]:
    """Marks pixels of an instance next to another instance, enough to separate two that touch."""
    padded = F.pad(ids, (1, 1, 1, 1))
    around = (padded[:, :-2, 1:-1], padded[:, 2:, 1:-1], padded[:, 1:-1, :-2], padded[:, 1:-1, 2:])
    beside = torch.stack([(other > 0) & (other != ids) for other in around])
    return (ids > 0) & beside.any(dim=0)


def read_instances(reading: SceneReading) -> Int[Tensor, "b 2 h w"]:
    """Takes the most likely categories, and splits them into instances at the likely borders."""
    categories = reading.category.argmax(1).cpu().numpy()
    borders = (reading.border[:, 0] > 0).cpu().numpy()
    maps = [np.stack(group_instances(c, border)) for c, border in zip(categories, borders, strict=True)]
    return torch.from_numpy(np.stack(maps)).to(reading.category.device)


def group_instances(
    category: Int[np.ndarray, "h w"], border: Bool[np.ndarray, "h w"]
) -> tuple[Int[np.ndarray, "h w"], Int[np.ndarray, "h w"]]:
    """Splits a map of categories into instances.

    An instance is a connected component of one category without the borders; a border pixel goes to the nearest
    component of its category. An object split by another in front therefore becomes two. (scikit-image's
    `expand_labels` finds the same components in 1.2 times the time.)

    Args:
        category: Category ids, 0 = none.
        border: True where two instances touch.

    Returns:
        The category ids without small components, and the instance ids 1, 2, ... (0 = none).
    """
    from scipy import ndimage

    ids = np.zeros_like(category)
    for kind in np.unique(category[category > 0]):
        mask = without_flecks(category == kind)
        core = without_flecks(mask & ~border)
        whole, _ = ndimage.label(mask, np.ones((3, 3)))
        nothing_but_border = mask & ~np.isin(whole, whole[core])
        pieces, count = ndimage.label(core | nothing_but_border, np.ones((3, 3)))
        if count:
            nearest = ndimage.distance_transform_edt(pieces == 0, return_distances=False, return_indices=True)
            ids[mask] = ids.max() + pieces[tuple(nearest)][mask]
    return np.where(ids > 0, category, 0), ids


def without_flecks(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Removes connected components of fewer than `SMALLEST_INSTANCE` pixels.

    OpenCV gives the same in the same time; scikit-image renamed the argument of its function in 0.26.
    """
    from scipy import ndimage

    pieces, _ = ndimage.label(mask, np.ones((3, 3)))
    kept: np.ndarray = mask & (np.bincount(pieces.ravel()) >= SMALLEST_INSTANCE)[pieces]
    return kept
