"""Instances of photographs by YOLO, from ultralytics: an optional extra under the AGPL-3.0."""

import atexit
import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from composer.decomposition import Batch
from composer.storage.pretrained import locate

from .instances import InstanceMaps, paint

logger = logging.getLogger(__name__)

STRIDE = 32
"""The coarsest grid of the network; an input's sides are multiples of it."""


class YOLO(InstanceMaps):
    """Categories and instances by a YOLO segmentation network of ultralytics (v8, 11, 26).

    Category ids are 1 + the network's classes; where detections overlap, the best score is in front.

    **Licence**: ultralytics and its weights are under the AGPL-3.0, whose terms apply to services and products that use
    them. They are installed by the extra ``yolo`` and imported by this class alone; `RFDETR` gives the
    same representation under the Apache-2.0. Only the network is used; the postprocessing is in this file.

    Checkpoints of ultralytics hold pickled modules. They are read through its allow-list of classes: one that names
    anything else is refused.

    Args:
        weights: A ``.pt`` segmentation checkpoint of ultralytics: a path, or ``hub:owner/name@revision:file``.
        size: Longer side, in pixels, of the network's input; rounded to multiples of 32.
        confidence: Detections of a lower score, in [0, 1], are dropped.
        overlap: Of two detections of a category whose boxes have a larger intersection over union, the lower scored
            is dropped.
        most: Maximum detections per image.
    """

    code_licence = "AGPL-3.0 (ultralytics)"
    weights_licence = "AGPL-3.0"
    weights_arguments = ("weights",)

    def __init__(self, weights: str, size: int = 640, confidence: float = 0.25, overlap: float = 0.7, most: int = 100):
        super().__init__()
        if size < STRIDE:
            raise ValueError(f"YOLO: expected a size of at least {STRIDE} pixels, found {size}")
        path = locate(weights, wanted="a YOLO segmentation checkpoint (.pt)", who="YOLO")
        if not path.is_file():
            raise ValueError(f"YOLO: expected a segmentation checkpoint (.pt), found a folder at {path}")
        logger.warning("YOLO runs ultralytics, which is licensed under the AGPL-3.0, as are its weights")
        self.network, self.names = load_network(path)
        self.size, self.confidence, self.overlap, self.most = size, confidence, overlap, most

    def forward(self, batch: Batch) -> Float[Tensor, "b 2 h w"]:
        image = batch["image"]
        h, w = image.shape[-2:]
        scale = self.size / max(h, w) / STRIDE
        size = max(round(h * scale), 1) * STRIDE, max(round(w * scale), 1) * STRIDE
        x = F.interpolate(image.float(), size, mode="bilinear", antialias=True).clamp(-1, 1) / 2 + 0.5
        (predictions, prototypes), _ = self.network(x)
        rows = [self.detect(p, q, size, (h, w)) for p, q in zip(predictions.mT, prototypes, strict=True)]
        return torch.stack(rows).to(image.dtype)

    def detect(
        self,
        prediction: Float[Tensor, "a d"],
        prototypes: Float[Tensor, "m p q"],
        seen: tuple[int, int],
        size: tuple[int, int],
    ) -> Float[Tensor, "2 h w"]:
        """Turns the network's output for one image into a map.

        Args:
            prediction: For each anchor a box (centre, width, height; pixels of the input), one score per category and
                one coefficient per prototype.
            prototypes: The masks that detections combine (Bolya et al. 2019, section 3).
            seen: Height and width of the network's input.
            size: Height and width of the map.
        """
        from torchvision.ops import batched_nms, box_convert, clip_boxes_to_image

        m = len(prototypes)
        boxes, scores, coefficients = prediction.tensor_split((4, prediction.shape[1] - m), dim=1)
        score, category = scores.max(dim=1)
        sure = score > self.confidence
        boxes, score, category = box_convert(boxes[sure], "cxcywh", "xyxy"), score[sure], category[sure]
        # Boxes are clipped after suppression, whose overlaps include parts outside the image.
        best = batched_nms(boxes, score, category, self.overlap)[: self.most]
        boxes, category = clip_boxes_to_image(boxes[best], seen), category[best]
        masks = (coefficients[sure][best] @ prototypes.flatten(1)).view(-1, *prototypes.shape[1:])
        masks = F.interpolate(masks[:, None], size, mode="bilinear")[:, 0] > 0
        scale = boxes.new_tensor([size[1] / seen[1], size[0] / seen[0]]).repeat(2)
        return paint(masks & inside(boxes * scale, size), category + 1, size)


def inside(boxes: Float[Tensor, "n 4"], size: tuple[int, int]) -> Tensor:
    """Masks (n h w) of boxes (x, y, x, y in pixels), pixels judged by their upper left corner."""
    x = torch.arange(size[1], device=boxes.device)[None, None, :]
    y = torch.arange(size[0], device=boxes.device)[None, :, None]
    left, top, right, bottom = boxes[:, :, None, None].unbind(1)
    return (x >= left) & (x < right) & (y >= top) & (y < bottom)


def load_network(path: Path) -> tuple[nn.Module, tuple[str, ...]]:
    """Reads a segmentation network, and its categories' names, without running code of the checkpoint.

    Raises:
        ImportError: The extra is not installed.
        ValueError: The checkpoint is not a segmentation network of known classes.
    """
    try:
        with contained():
            from ultralytics.nn.tasks import torch_safe_load
            from ultralytics.utils import SETTINGS

            SETTINGS.update(sync=False)  # no telemetry
    except ModuleNotFoundError as error:
        raise ImportError(
            f"YOLO needs ultralytics (AGPL-3.0), and {error.name} is missing; install the extra: "
            "pip install 'composer-diffusion[yolo]', or use RFDETR"
        ) from error
    trusted = torch.serialization.get_safe_globals()
    try:
        checkpoint, _ = torch_safe_load(str(path), safe_only=True)
    except (TypeError, ModuleNotFoundError) as error:
        raise ValueError(
            f"YOLO: {path} is refused: expected a checkpoint of YOLO v8 or later (those of v5 name other classes), "
            f"found one of unknown classes: {error}"
        ) from error
    finally:  # it adds to what every later torch.load trusts
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(trusted)
    network: Any = checkpoint.get("ema") or checkpoint.get("model")
    head: Any = cast(Any, network).model[-1] if isinstance(network, nn.Module) else network
    if not type(head).__name__.startswith("Segment"):
        raise ValueError(f"YOLO: {path} contains {type(head).__name__}, expected a segmentation network (...-seg.pt)")
    if head.end2end:
        head.end2end = False  # all versions have the head that needs suppression
    names = tuple(str(network.names[i]) for i in range(len(network.names)))
    return network.float().eval().requires_grad_(False), names


@contextlib.contextmanager
def contained() -> Iterator[None]:
    """Undoes the global effects of importing ultralytics.

    Within the block: no network, no installation of packages, only known classes, settings in a temporary folder.
    Afterwards `torch.save`, print options, OpenCV's threads and the environment are restored, except for three
    variables that keep ultralytics quiet on later imports.
    """
    quiet = {"YOLO_OFFLINE": "1", "YOLO_AUTOINSTALL": "false", "ULTRALYTICS_SAFE_LOAD": "1"}
    environment, save, printing = dict(os.environ), torch.save, cast(Any, torch._tensor_str)
    options = printing.get_printoptions()
    import cv2

    threads = cv2.getNumThreads()
    settings = os.environ.get("YOLO_CONFIG_DIR") or tempfile.mkdtemp(prefix="composer-yolo-")
    if "YOLO_CONFIG_DIR" not in os.environ:
        atexit.register(shutil.rmtree, settings, ignore_errors=True)
    os.environ.update(quiet, YOLO_CONFIG_DIR=settings, YOLO_VERBOSE="false")
    try:
        with np.printoptions():
            yield
    finally:
        os.environ.clear()
        os.environ.update(environment | quiet)
        torch.save = save
        printing.set_printoptions(**options)
        cv2.setNumThreads(threads)
