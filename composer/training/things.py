"""Trains the judge, which detects objects, on the ground truth of Scenes."""

import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import save as dump
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import gaussian_blur

from composer.data.datasets import ImageDataset, Row, SceneImages
from composer.decomposition import Batch
from composer.scenes import describe
from composer.scenes.things import QUESTIONS, Judge, Marks, list_asked, mark, see, tabulate
from composer.storage.files import write_atomically, write_json
from composer.training.safety import SafeTraining
from composer.training.schedule import over_whole_training

SPREAD = 1.0
"""Standard deviation of a mark, in cells."""


class ThingImages(ImageDataset):
    """Scenes with a table of their things.

    Args:
        scenes: The pictures; a row's ``things`` (4 6) are as `tabulate` gives them.
    """

    def __init__(self, scenes: SceneImages):
        self.scenes = scenes

    def __len__(self) -> int:
        return len(self.scenes)

    def row(self, index: int, seed: int) -> Row:
        row = self.scenes.row(index, seed)
        scene, _ = describe(self.scenes.split, index, self.scenes.seed)
        return {"image": row["image"], "caption": row["caption"], "things": tabulate(scene)}


class JudgeTraining(SafeTraining):
    """Trains a `Judge` on the objects of Scenes, and saves it with its accuracy on held-out Scenes.

    Generated pictures are noisier and softer than rendered ones, so pictures are blurred and made noisy at random.

    Args:
        network: The judge to train.
        learning_rate: Peak learning rate of AdamW; linear warm-up, then a cosine to zero.
        warmup: Steps of the warm-up.
        weight_decay: AdamW's weight decay.
        noise: Largest standard deviation of the added noise, in image units (the range is 2).
        blur: Standard deviation of the blur that pictures are mixed with, in pixels.
        out: Folder for ``model.safetensors`` (float16), ``config.json`` and ``README.md``; None writes nothing.
    """

    def __init__(
        self,
        network: Judge,
        learning_rate: float = 3e-3,
        warmup: int = 100,
        weight_decay: float = 0.02,
        noise: float = 0.1,
        blur: float = 0.8,
        out: str | None = None,
    ):
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)
        self.learning_rate, self.warmup, self.weight_decay = learning_rate, warmup, weight_decay
        self.noise, self.blur, self.out = noise, blur, out
        self._right: Counter[str] = Counter()
        self._seen = 0

    def training_step(self, batch: Batch, _: int) -> Tensor:
        generator = torch.Generator().manual_seed(int(batch["seed"][0]))
        with torch.autocast(self.device.type, enabled=False):
            image = soften(batch["image"], self.noise, self.blur, generator)
        losses = compare(self.network(image.contiguous(memory_format=torch.channels_last)), batch["things"])
        self.log_dict({f"train/{name}": loss for name, loss in losses.items()})
        total = torch.stack([*losses.values()]).sum()
        self.log("train/loss", total, prog_bar=True)
        return total

    def validation_step(self, batch: Batch, _: int) -> None:
        for things, seen in zip(batch["things"], see(self.network, batch["image"]), strict=True):
            self._right.update(name for name, right in mark(list_asked(things), seen).items() if right)
            self._seen += 1

    def on_validation_epoch_end(self) -> None:
        for name in QUESTIONS:
            self.log(f"val/{name}", self._right[name] / self._seen, prog_bar=name in ("bound", "places"))
        self._right.clear()
        self._seen = 0

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), self.learning_rate, weight_decay=self.weight_decay)
        return over_whole_training(self.warmup, int(self.trainer.estimated_stepping_batches)).drive(optimizer)

    def on_fit_start(self) -> None:
        self.started = time.monotonic()

    def on_fit_end(self) -> None:
        if self.out is None or not self.trainer.is_global_zero:
            return
        metrics = self.trainer.callback_metrics
        training = {
            "steps": self.trainer.global_step,
            "pictures": self.trainer.global_step * self.trainer.datamodule.batch_size,
            "minutes": round((time.monotonic() - self.started) / 60, 1),
            "device": self.device.type,
            "seen": len(self.trainer.datamodule.validation),
            "right": {name: float(metrics[f"val/{name}"]) for name in QUESTIONS},
        }
        save(self.network, training, Path(self.out))


def soften(
    image: Float[Tensor, "b 3 h w"], noise: float, blur: float, generator: torch.Generator
) -> Float[Tensor, "b 3 h w"]:
    """Blurs images and adds noise, each row by its own amount; colours stay.

    Args:
        image: Pictures.
        noise: Largest standard deviation of the noise.
        blur: Standard deviation of the blur that pictures are mixed with, in pixels.
        generator: What is drawn from, on the CPU.
    """
    soft, strength = torch.rand(2, len(image), 1, 1, 1, generator=generator).to(image.device)
    image = image.lerp(gaussian_blur(image, [5, 5], [max(blur, 1e-3)] * 2), soft)
    grain: Tensor = strength * noise * torch.randn(image.shape, generator=generator).to(image.device)
    return image + grain


def compare(marks: Marks, things: Float[Tensor, "b k 6"]) -> dict[str, Float[Tensor, ""]]:
    """The loss of marks: focal loss of their presence, cross entropies of their kinds, distance of their positions.

    The marks are wanted to be 1 at a thing's middle and to fall as a Gaussian around it, where they count less (Zhou et
    al. 2019, eq. 1); all else counts at the middles alone.
    """
    h, w = marks.thing.shape[-2:]
    real = things[..., 0] >= 0
    cells = (things[..., 3:5] * w).long().clamp(0, w - 1)
    grid = torch.stack(torch.meshgrid(torch.arange(w), torch.arange(h), indexing="xy"), 2).to(things.device)
    square = (grid - cells[:, :, None, None]).square().sum(-1)
    wanted = (torch.exp(-square / (2 * SPREAD**2)) * real[..., None, None]).amax(1)
    likely, log, log_not = (
        marks.thing[:, 0].sigmoid(),
        F.logsigmoid(marks.thing[:, 0]),
        F.logsigmoid(-marks.thing[:, 0]),
    )
    focal = torch.where(wanted == 1, (1 - likely).square() * log, (1 - wanted).pow(4) * likely.square() * log_not).sum()
    row, slot = real.nonzero().T
    (x, y), (across, down, foot) = cells[row, slot].T, (things[row, slot, 3:] * w).T
    losses = {"thing": -focal / len(row)}
    for number, name in enumerate(("shape", "colour", "size")):
        losses[name] = F.cross_entropy(getattr(marks, name)[row, :, y, x], things[row, slot, number].long())
    losses["where"] = F.l1_loss(marks.where[row, :, y, x], torch.stack([across - x, down - y, foot - y], 1))
    return losses


def save(network: Judge, training: dict[str, Any], folder: Path) -> None:
    """Writes weights in float16, configuration and a page of numbers; each file replaces the old one whole."""
    state = {name: value.detach().cpu() for name, value in network.state_dict().items()}
    state = {name: (v.half() if v.is_floating_point() else v).contiguous() for name, v in state.items()}
    config = {"network": network.config, "training": training}
    write_atomically(folder / "model.safetensors", dump(state))
    write_json(folder / "config.json", config)
    write_atomically(folder / "README.md", _describe(network, training).encode())


def _describe(network: Judge, training: dict[str, Any]) -> str:
    rows = "\n".join(f"| {name} | {share:.4f} |" for name, share in training["right"].items())
    return f"""# Judge of things

Lists the things in a picture of Scenes of 64 x 64 pixels: shape, colour, size and place. It measures what generated
pictures hold, and nothing reads or trains with it: it is another network than the reader (`../scenes_reader`), trained
on scenes of another seed.

{sum(p.numel() for p in network.parameters()) / 1e6:.2f} million parameters, stored in float16; trained from scratch for
{training["steps"]} steps, {training["pictures"]} pictures, {training["minutes"]} minutes on a {training["device"]} by

    composer fit -c configs/scenes_judge.yaml

Share of {training["seen"]} pictures (split `val`) of which all things are right; one too many or too few is wrong:

| | |
|---|---|
{rows}

`kinds`: the shapes; `colours`; `bound`: both together; `sizes`: with these as well; `places`: the bound ones, where a
caption puts them. Code and weights: Apache-2.0.
"""
