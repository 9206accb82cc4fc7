"""Trains the reader of Scenes on their ground truth."""

import time
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import save as dump
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import gaussian_blur

from composer.decomposition import Batch, robust_normalise
from composer.scenes.reader import CATEGORIES, SceneReader, instance_borders, read_instances
from composer.storage.files import write_atomically, write_json
from composer.training.safety import SafeTraining
from composer.training.schedule import over_whole_training

BORDER_WEIGHT = 10.0
"""How much more a border pixel counts than another: fewer than one in a hundred is one."""


class ReaderTraining(SafeTraining):
    """Trains a `SceneReader` for depth, categories and borders, and saves it with its last validation's measurements.

    Generated pictures are noisier and softer than rendered ones and may have any colours, so pictures are bleached,
    tinted, blurred and made noisy at random: a reader that trusts clean pixels alone would measure the generator's
    texture instead of its shapes.

    Args:
        network: The reader to train.
        learning_rate: Peak learning rate of AdamW; linear warm-up, then a cosine to zero.
        warmup: Steps of the warm-up.
        weight_decay: AdamW's weight decay.
        noise: Largest standard deviation of the added noise, in image units (the range is 2).
        blur: Largest standard deviation of the blur, in pixels.
        out: Folder for ``model.safetensors`` (float16), ``config.json`` and ``README.md``; None writes nothing.
    """

    def __init__(
        self,
        network: SceneReader,
        learning_rate: float = 2e-3,
        warmup: int = 200,
        weight_decay: float = 0.02,
        noise: float = 0.1,
        blur: float = 0.8,
        out: str | None = None,
    ):
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)
        self.learning_rate, self.warmup, self.weight_decay = learning_rate, warmup, weight_decay
        self.noise, self.blur, self.out = noise, blur, out
        self.measured: dict[str, Tensor] = {}
        self.pictures = 0
        self.register_buffer("confusion", torch.zeros(1 + len(CATEGORIES), 1 + len(CATEGORIES)), persistent=False)
        self.register_buffer("matches", torch.zeros(2), persistent=False)

    def training_step(self, batch: Batch, _: int) -> Tensor:
        image, depth, instances = flip(batch["image"], batch["depth"], batch["instances"])
        with torch.autocast(image.device.type, enabled=False):
            image = degrade(image, self.noise, self.blur)
        reading = self.network(image.contiguous(memory_format=torch.channels_last))
        category, ids = instances.long().unbind(1)
        border = instance_borders(ids)[:, None].float()
        losses = {
            "depth": F.l1_loss(reading.depth.float(), depth.float()),
            "category": F.cross_entropy(reading.category.float(), category),
            "border": F.binary_cross_entropy_with_logits(
                reading.border.float(), border, pos_weight=border.new_tensor(BORDER_WEIGHT)
            ),
        }
        total = 4 * losses["depth"] + losses["category"] + losses["border"]
        self.log_dict({f"train/{name}": loss for name, loss in losses.items()})
        self.log("train/loss", total, prog_bar=True)
        self.pictures += len(image) * self.trainer.world_size
        return total

    def validation_step(self, batch: Batch, _: int) -> None:
        reading = self.network(batch["image"])
        depth = robust_normalise(reading.depth.float())
        error = (depth - batch["depth"].float()).abs().mean()
        self.log("val/depth_mae", error, prog_bar=True, batch_size=len(depth), sync_dist=True)
        category, ids = batch["instances"].long().unbind(1)
        pairs = category * (1 + len(CATEGORIES)) + reading.category.argmax(1)
        self.confusion += torch.bincount(pairs.flatten(), minlength=self.confusion.numel()).view_as(self.confusion)
        self.matches += sum(count_matches(*row) for row in zip(ids, read_instances(reading)[:, 1], strict=True))

    def on_validation_epoch_end(self) -> None:
        total = self.trainer.strategy.reduce(self.confusion, reduce_op="sum")
        overlap = total.diagonal()
        iou = overlap / (total.sum(0) + total.sum(1) - overlap).clamp(min=1)
        self.log("val/category_miou", iou[1:].mean(), prog_bar=True)
        self.log_dict({f"val/iou_{name}": value for name, value in zip(CATEGORIES, iou[1:], strict=True)})
        matched, instances = self.trainer.strategy.reduce(self.matches, reduce_op="sum")
        self.log("val/instance_rq", 2 * matched / instances.clamp(min=1))
        self.confusion.zero_()
        self.matches.zero_()
        # An averaging callback puts the trained weights back after this; the numbers belong to these.
        self.measured = {name: value.detach().cpu().clone() for name, value in self.network.state_dict().items()}

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), self.learning_rate, weight_decay=self.weight_decay)
        return over_whole_training(self.warmup, int(self.trainer.estimated_stepping_batches)).drive(optimizer)

    def on_fit_start(self) -> None:
        self.started = time.monotonic()

    def on_fit_end(self) -> None:
        if self.out is None or not self.measured or not self.trainer.is_global_zero:
            return
        metrics = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        training = {
            "steps": self.trainer.global_step,
            "pictures": self.pictures,
            "minutes": round((time.monotonic() - self.started) / 60, 1),
            "device": self.device.type,
            "validation": {name: value for name, value in metrics.items() if name.startswith("val/")},
        }
        self.network.load_state_dict(self.measured)
        save(self.network, training, Path(self.out))


def flip(
    image: Float[Tensor, "b 3 h w"], depth: Float[Tensor, "b 1 h w"], instances: Float[Tensor, "b 2 h w"]
) -> tuple[Tensor, Tensor, Tensor]:
    """Mirrors half of the rows, image and ground truth alike."""
    rows = (torch.rand(len(image), device=image.device) < 0.5)[:, None, None, None]
    image, depth, instances = (torch.where(rows, x.flip(-1), x) for x in (image, depth, instances))
    return image, depth, instances


def count_matches(truth: Int[Tensor, "h w"], found: Int[Tensor, "h w"]) -> Float[Tensor, " 2"]:
    """How many instances two maps share (intersection over union above 1/2), and how many they have together.

    Twice the first over the second is the recognition quality of Kirillov et al. 2019, eq. 2, whatever the category.
    """
    size = int(found.max()) + 1
    table = torch.bincount((truth * size + found).flatten(), minlength=size * (int(truth.max()) + 1)).view(-1, size)
    areas = table.sum(1, keepdim=True), table.sum(0, keepdim=True)
    iou = table / (areas[0] + areas[1] - table).clamp(min=1)
    instances = (areas[0][1:] > 0).sum() + (areas[1][:, 1:] > 0).sum()
    return torch.stack([(iou[1:, 1:] > 0.5).sum(), instances]).float()


def degrade(image: Float[Tensor, "b 3 h w"], noise: float, blur: float) -> Float[Tensor, "b 3 h w"]:
    """Bleaches, tints, blurs and adds noise, each row by its own amount; channels may be swapped."""
    b, _, h, w = image.shape

    def amount(high: float, channels: int = 1) -> Tensor:
        return torch.rand(b, channels, 1, 1, device=image.device) * high

    if torch.rand(()) < 0.5:
        image = image[:, torch.randperm(3, device=image.device)]
    image = image.lerp(image.mean(1, keepdim=True).expand_as(image), amount(1.0).square())
    image = image * (0.8 + amount(0.4)) + amount(0.2, channels=3) - 0.1
    image = image.lerp(gaussian_blur(image, [5, 5], [max(blur, 1e-3)] * 2), amount(1.0))
    coarse = F.interpolate(torch.randn(b, 3, h // 4, w // 4, device=image.device), (h, w), mode="bilinear")
    return image + amount(noise) * torch.randn_like(image) + amount(noise) * coarse


def save(network: SceneReader, training: dict[str, Any], folder: Path) -> None:
    """Writes weights in float16, configuration and a page of numbers; each file replaces the old one whole."""
    state = {n: v.detach().cpu() for n, v in network.state_dict().items()}
    state = {n: (v.half() if v.is_floating_point() else v).contiguous() for n, v in state.items()}
    config = {"network": network.config, "categories": list(CATEGORIES), "training": training}
    write_atomically(folder / "model.safetensors", dump(state))
    write_json(folder / "config.json", config)
    write_atomically(folder / "README.md", describe(network, training).encode())


def describe(network: SceneReader, training: dict[str, Any]) -> str:
    """The page that goes with the weights."""
    rows = "\n".join(f"| {name.removeprefix('val/')} | {value:.4f} |" for name, value in training["validation"].items())
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    return f"""# Scenes reader

Reads relative inverse depth, categories ({", ".join(CATEGORIES)}) and instance borders from a picture of 64 x
64 pixels. `decomposers.SceneDepth` and `decomposers.SceneInstances` use it to measure what generated pictures hold.

{millions:.2f} million parameters, stored in float16; trained from scratch on rendered Scenes (split `train`) for
{training["steps"]} steps, {training["pictures"]} pictures, {training["minutes"]} minutes on a {training["device"]} by

    composer fit -c configs/scenes_reader.yaml

On the split `val`, at the end of the training:

| | |
|---|---|
{rows}

`depth_mae` is a share of the depth range (0 to 1, near = 1); `category_miou` is the mean over the categories of
intersection over union, counted over the pixels of all pictures, and `iou_*` are its terms; `instance_rq` is the
recognition quality (Kirillov et al. 2019) of the instances, without regard to category. Code and weights: Apache-2.0.
"""
