"""The sample grid of a training."""

from pathlib import Path

import lightning as L
import numpy as np
import torch
from torch import Tensor

from composer.cascade.cascade import Cascade
from composer.cascade.composition import Composition
from composer.cascade.low_res import LowRes
from composer.cascade.options import SampleOptions
from composer.cascade.parts import Parts
from composer.cascade.stage import Sampling, Stage
from composer.cascade.start import SmallImage
from composer.decomposition import Batch, Decomposition
from composer.images.sheet import sheet
from composer.storage.files import replacing
from composer.terminal import note
from composer.training.autoencoder import AutoencoderTraining
from composer.training.dvae import DVAETraining
from composer.training.image_tokens import ImageTokensTraining
from composer.training.sharding import FullyShard
from composer.training.stage import StageTraining

GridRow = tuple[str, dict[str, Tensor]]
"""Of a sample grid: its label, and a picture (3 h w) under the name of each of its columns."""


class SampleGrid(L.Callback):
    """Draws a grid after each validation, with one row per image: original, representations, samples.

    An autoencoder's rows are original and reconstruction. The picture goes to ``samples/`` in the run's folder and to
    every logger that takes images: TensorBoard, Weights & Biases. Seeds are fixed, so pictures compare. It is sampled
    as a finished model does it (`Cascade.sample`).

    Args:
        count: Rows.
        samples: Pictures sampled for each row from all of its conditions, with the averaged weights.
        steps: Steps of DPM-Solver++(2M).
        guidance: Weight of classifier-free guidance; 1 is none.
        percentile: Of dynamic thresholding (see `threshold`); None clips.
        prompts: Captions to draw from alone, one further row per caption; sample k has the seed k.

    Raises:
        ValueError: A number is below 1; or, once the training is set up, the model cannot draw from captions alone.
    """

    def __init__(
        self,
        count: int = 4,
        samples: int = 2,
        steps: int = 20,
        guidance: float = 2.0,
        percentile: float | None = None,
        prompts: list[str] | None = None,
    ):
        if min(count, samples, steps) < 1:
            raise ValueError("expected count, samples and steps of at least 1")
        self.count, self.samples, self.prompts = count, samples, prompts or []
        self.sampling = Sampling(steps=steps, guidance=guidance, percentile=percentile)
        self._batch: Batch = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Checks that the model can draw the prompts, before the training starts."""
        if not self.prompts:
            return
        conditions = _conditions_of(pl_module) if isinstance(pl_module, StageTraining | ImageTokensTraining) else []
        decomposers = dict(trainer.datamodule.decomposition.named())
        readers = [name for name in conditions if name in decomposers and decomposers[name].can_read({"caption": []})]
        if not readers or "low_res" in conditions:
            why = "it enlarges images" if "low_res" in conditions else "none of them reads captions"
            raise ValueError(
                f"--grid.prompts: expected a model that draws from captions alone; this one has the conditions "
                f"{', '.join(conditions) or 'none'}: {why}. Leave the prompts out"
            )
        for name, prompt in ((name, prompt) for name in readers for prompt in self.prompts):
            if (lost := decomposers[name].unread(prompt)) and trainer.is_global_zero:
                text = f"note: --grid.prompts: {name} does not know or has no room for {' '.join(lost)!r} of {prompt!r}"
                note(text)

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if batch_idx == 0:
            reps = {name: value[: self.count] for name, value in batch["representations"].items()}
            self._batch = {"image": batch["image"][: self.count], "representations": reps}

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Runs before `EMA` puts the trained weights back."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        if not trainer.is_global_zero and not isinstance(trainer.strategy, FullyShard):
            return
        if isinstance(pl_module, AutoencoderTraining | DVAETraining):
            rows = self._reconstruct(pl_module)
        elif isinstance(pl_module, StageTraining | ImageTokensTraining):
            rows = self._draw_images(pl_module, trainer.datamodule.decomposition)
            rows += self._draw_prompts(pl_module, trainer.datamodule.decomposition)
        else:
            return  # what trains something else has nothing to sample
        if not trainer.is_global_zero:  # it drew along, since it has a share of the weights
            return
        names = list(dict.fromkeys(name for _, row in rows for name in row))
        labels = [label for label, _ in rows] if self.prompts else []
        grid = sheet([[row.get(name) for name in names] for _, row in rows], labels, names)
        with replacing(Path(trainer.default_root_dir) / "samples" / f"{trainer.global_step:07d}.png") as f:
            grid.save(f, "png")
        for logger in trainer.loggers:
            if isinstance(logger, L.pytorch.loggers.TensorBoardLogger):
                logger.experiment.add_image("samples", np.asarray(grid), trainer.global_step, dataformats="HWC")
            elif hasattr(logger, "log_image"):  # Weights & Biases'
                logger.log_image("samples", [grid], step=trainer.global_step)

    def _reconstruct(self, training: AutoencoderTraining | DVAETraining) -> list[GridRow]:
        images = self._batch["image"]
        pairs = zip(images, training.reconstruct(images), strict=True)
        return [("", {"image": image, "reconstruction": found}) for image, found in pairs]

    def _draw_images(
        self, training: StageTraining | ImageTokensTraining, decomposition: Decomposition
    ) -> list[GridRow]:
        image, by, known = self._batch["image"], dict(decomposition.named()), _conditions_of(training)
        reps = {name: value for name, value in self._batch["representations"].items() if name in known}
        start, options = None, SampleOptions(size=(image.shape[-2], image.shape[-1]))
        if "low_res" in reps:
            reps["low_res"] = by["low_res"]({"image": image})  # clean, as the stage before would give it
            start, options = SmallImage(reps["low_res"][:, :3]), SampleOptions()
        asked = Composition(parts=Parts(reps).drop("low_res"), start=start)
        cascade, seeds = self._cascade(training, decomposition), range(len(image))
        columns = {"image": image} | {n: by[n].preview(v) for n, v in reps.items() if n in by}
        for k in range(self.samples):
            columns[f"sample {k}"] = cascade.sample(asked, [k * self.count + row for row in seeds], options)
        return [("", {name: column[row] for name, column in columns.items()}) for row in seeds]

    def _draw_prompts(
        self, training: StageTraining | ImageTokensTraining, decomposition: Decomposition
    ) -> list[GridRow]:
        if not self.prompts:
            return []
        cascade = self._cascade(training, decomposition)
        read = decomposition({"caption": self.prompts, "seed": torch.zeros(len(self.prompts), device=cascade.device)})
        asked = {name: value for name, value in read.items() if name in _conditions_of(training)}
        columns = {name: by.preview(asked[name]) for name, by in decomposition.named() if name in asked}
        for k in range(self.samples):
            columns[f"sample {k}"] = cascade.sample(asked, seeds=[k] * len(self.prompts))
        return [
            (prompt, {name: column[row] for name, column in columns.items()}) for row, prompt in enumerate(self.prompts)
        ]

    def _cascade(self, training: StageTraining | ImageTokensTraining, decomposition: Decomposition) -> Cascade:
        """The stage in training, as the model of one stage that it is going to be."""
        if isinstance(training, ImageTokensTraining):
            return Cascade([training.stage(self.sampling.guidance)], decomposition, Decomposition({}))
        link = decomposition["low_res"] if "low_res" in training.conditions else None
        assert link is None or isinstance(link, LowRes)
        spec = {"file": "training"}
        stage = Stage(training.denoiser, training.conditions, training.size, self.sampling, spec, link, training.codec)
        return Cascade([stage], decomposition, Decomposition({}))


def _conditions_of(training: StageTraining | ImageTokensTraining) -> list[str]:
    """Names of the conditions that the model in training reads."""
    return list(training.conditions) if isinstance(training, StageTraining) else [training.condition]
