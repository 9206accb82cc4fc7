"""Depth and instances of Scenes, predicted from an image of one by the included small network."""

from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional as F

from composer.decomposition import Batch, robust_normalise
from composer.scenes.colours import name_colour
from composer.scenes.reader import CATEGORIES, READ_SIZE, SceneReader, SceneReading, load_reader, read_instances
from composer.storage.pretrained import locate

from .depth import DepthMaps
from .instances import InstanceMaps


class SceneDepth(DepthMaps):
    """Relative inverse depth of an image of a Scene.

    In the same form as the ground truth: (b 1 h w), robustly normalised to [0, 1], near = 1. `SceneInstances` with the
    same weights shares the network within a process.

    Args:
        weights: Folder with ``model.safetensors`` and ``config.json``: a path, ``asset:NAME`` or a hub name.
    """

    code_licence = "Apache-2.0"
    weights_licence = "Apache-2.0"
    weights_arguments = ("weights",)

    def __init__(self, weights: str = "asset:scenes_reader"):
        super().__init__()
        self.reader = load_reader(locate(weights, wanted="the scenes reader", who="SceneDepth").resolve())

    def forward(self, batch: Batch) -> Float[Tensor, "b 1 h w"]:
        image = batch["image"]
        depth = robust_normalise(read_scenes(self.reader, image).depth)
        return F.interpolate(depth, image.shape[-2:], mode="bilinear", antialias=True).to(image.dtype)


class SceneInstances(InstanceMaps):
    """Categories and instances in an image of a Scene.

    Category ids 1 to 5 are sphere, cube, cylinder, cone and torus, as in the ground truth; instances are renumbered.
    `SceneDepth` with the same weights shares the network within a process.

    Args:
        weights: Folder with ``model.safetensors`` and ``config.json``: a path, ``asset:NAME`` or a hub name.
    """

    code_licence = "Apache-2.0"
    weights_licence = "Apache-2.0"
    weights_arguments = ("weights",)
    names = CATEGORIES

    def __init__(self, weights: str = "asset:scenes_reader"):
        super().__init__()
        self.reader = load_reader(locate(weights, wanted="the scenes reader", who="SceneInstances").resolve())

    def forward(self, batch: Batch) -> Float[Tensor, "b 2 h w"]:
        image = batch["image"]
        ids = read_instances(read_scenes(self.reader, image)).to(image.dtype)
        return F.interpolate(ids, image.shape[-2:], mode="nearest-exact")

    def describe(self, category: int, pixels: Float[Tensor, "n 3"]) -> str:
        """An instance's colour and shape, such as "red cube"."""
        return f"{name_colour(pixels)} {super().describe(category, pixels)}"

    def loss(self, wanted: Shaped[Tensor, "b 2 h w"], batch: Batch) -> Float[Tensor, " b"]:
        """Cross-entropy of the categories per pixel, as splitting instances has no gradient."""
        logits = read_scenes(self.reader, batch["image"]).category
        category = F.interpolate(wanted[:, :1].float(), logits.shape[-2:], mode="nearest-exact")[:, 0].long()
        return F.cross_entropy(logits, category, reduction="none").mean((1, 2))


def read_scenes(reader: SceneReader, image: Float[Tensor, "b 3 h w"]) -> SceneReading:
    """Runs the reader on images of any size, resized to its 64 pixels, in float32."""
    small = image.float()
    if image.shape[-2:] != (READ_SIZE, READ_SIZE):
        small = F.interpolate(small, (READ_SIZE, READ_SIZE), mode="bilinear", antialias=True)
    reading: SceneReading = reader(small)
    return reading
