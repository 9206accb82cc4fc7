"""Systems that draw pictures from captions, each asked in its own way, so that they can be compared."""

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from composer.cascade.any_stage import AnyStage
from composer.cascade.cascade import Cascade
from composer.cascade.composition import Composition
from composer.cascade.options import SampleOptions
from composer.cascade.stage import Stage
from composer.cascade.token_stage import TokenStage
from composer.decomposition import Batch
from composer.evaluation.adherence import quantise, with_prior
from composer.evaluation.best_of import best_of
from composer.evaluation.boxes import OBJECTS
from composer.evaluation.prompts import from_captions
from composer.networks.autoencoder import Autoencoder
from composer.prior import Prior
from composer.training.dry_run import Step, stage_step
from composer.training.dry_steps import autoencoder_step, dvae_step, image_tokens_step, prior_step

AUTOENCODER, PRIOR = "autoencoder", "prior"
"""Names of the parts of a system that are no stages."""


class System:
    """A model, and how it is asked for pictures of captions.

    Args:
        name: What it is called in tables.
        cascade: The model.
        prior: Draws the semantics of the captions; None gives captions alone.
        best_of: Number of candidates of a picture, of which the one whose caption the model's own reader likes best is
            kept (DALL-E's reranking).
        boxes: Whether it is also given the objects of the true image, with their boxes (GLIGEN), where they are known.
        options: How to sample; unless `until` says otherwise, only the first stage draws.

    Attributes:
        pictures: How many were drawn so far.
        calls: Rows that the stages' networks computed for them: a picture in 30 guided steps takes 60.
        seconds: Processor time of drawing them.

    Raises:
        ValueError: The model reads no captions, or no objects although `boxes` asks for them.
        KeyError: It has no stage of that name.
    """

    def __init__(
        self,
        name: str,
        cascade: Cascade,
        prior: Prior | None = None,
        best_of: int = 1,
        boxes: bool = False,
        options: SampleOptions | None = None,
    ):
        self.name, self.cascade, self.prior, self.best_of, self.boxes = name, cascade, prior, best_of, boxes
        self.options = SampleOptions(until=cascade.stages[0].name) | options
        cascade.settings(options=self.options)  # fails before anything is drawn
        self._read = [*from_captions(cascade, [""])]
        for what, there in (("captions", bool(self._read)), (OBJECTS, OBJECTS in cascade.names or not boxes)):
            if not there:
                raise ValueError(f"{name}: expected a model that reads {what}, found {', '.join(cascade.names)}")
        self.pictures = self.calls = 0
        self.seconds = 0.0

    @property
    def stages(self) -> list[AnyStage[Any]]:
        """The stages that draw."""
        names = [stage.name for stage in self.cascade.stages]
        return list(self.cascade.stages[: names.index(str(self.options.until)) + 1])

    @property
    def parameters(self) -> int:
        """Parameters of the stages that draw, their conditions and autoencoders, and of the prior."""
        parts: list[nn.Module] = [stage.weights() for stage in self.stages]
        return sum(p.numel() for part in [*parts, *([self.prior] if self.prior else [])] for p in part.parameters())

    def draw(self, batch: Batch, seeds: Sequence[int]) -> Float[Tensor, "b 3 h w"]:
        """Draws a picture per caption, rounded as in a PNG, on the CPU.

        Args:
            batch: ``caption``, and ``boxes`` where they are known.
            seeds: One per picture.
        """
        started = time.process_time()
        with self._counting():
            images = self._sample(batch, seeds)
        self.seconds += time.process_time() - started
        self.pictures += len(seeds)
        return images

    def _sample(self, batch: Batch, seeds: Sequence[int]) -> Tensor:
        captions = batch["caption"]
        parts = with_prior(from_captions(self.cascade, captions), self.prior, captions, seeds)
        if self.boxes and "boxes" in batch:
            objects = self.cascade.decompose({"boxes": batch["boxes"]})[OBJECTS]
            parts |= {OBJECTS: objects.to(self.cascade.device)}
        if self.best_of == 1:
            return quantise(self.cascade.sample(parts, seeds, self.options).cpu())
        wanted = self.cascade.read({"caption": captions}, self._read)
        asked = Composition(parts=parts, wanted=wanted)
        best: list[Tensor] = [
            best_of(self.cascade, asked.row(i), [seed], self.best_of, options=self.options).images
            for i, seed in enumerate(seeds)
        ]
        return quantise(torch.cat(best))

    @contextmanager
    def _counting(self) -> Iterator[None]:
        def count(network: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            self.calls += len(inputs[0])

        hooks = [_network_of(stage).register_forward_hook(count) for stage in self.stages]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def training_flops(self, samples: Mapping[str, int], sides: Mapping[str, int]) -> int:
        """FLOPs of a training: three times those of the forward pass (Kaplan et al. 2020, section 2.1).

        Frozen networks that only encode, such as CLIP, are not counted.

        Args:
            samples: Part -> samples that it was trained on; parts are the stages, ``autoencoder`` and ``prior``.
            sides: Part -> height and width of the images that it was trained on, where they were crops.

        Raises:
            KeyError: There is no such part.
        """
        steps = self._steps(sides)
        if unknown := sorted({*samples, *sides} - steps.keys()):
            raise KeyError(f"{self.name}: no part {', '.join(unknown)}; this system has {', '.join(steps)}")
        return sum(3 * count * steps[part].forward_flops() for part, count in samples.items())

    def _steps(self, sides: Mapping[str, int]) -> dict[str, Step]:
        """A training step of each part."""
        steps: dict[str, Step] = {}
        for stage in self.stages:
            side, crop = sides.get(stage.name, stage.size), sides.get(AUTOENCODER, stage.size)
            if isinstance(stage, TokenStage):
                steps[stage.name] = image_tokens_step(_on_meta(stage.tokens))
                steps[AUTOENCODER] = dvae_step(_on_meta(stage.autoencoder), crop)
            elif isinstance(stage, Stage):
                denoiser, conditions = _on_meta(stage.denoiser), _on_meta(stage.conditions)
                denoiser.precision = None  # there is no autocast on the meta device
                steps[stage.name] = stage_step(denoiser, conditions, side // stage.codec.factor)
                if isinstance(stage.codec, Autoencoder):
                    steps[AUTOENCODER] = autoencoder_step(_on_meta(stage.codec), crop)
        return steps if self.prior is None else {**steps, PRIOR: prior_step(copy.deepcopy(self.prior))}


def _network_of(stage: AnyStage[Any]) -> nn.Module:
    """The network that a stage calls again and again."""
    if isinstance(stage, TokenStage):
        return stage.tokens.transformer
    assert isinstance(stage, Stage)
    return stage.denoiser.network


def _on_meta(module: Any) -> Any:
    return copy.deepcopy(module).to("meta")
