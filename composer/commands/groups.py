"""Groups of options: a model and how it runs, what is drawn and how, what is measured; light to import."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from composer.cascade.options import SampleOptions
from composer.commands.signature import Value
from composer.commands.values import (
    FIELDS,
    MAX_SIDE,
    Count,
    Data,
    Device,
    Guidance,
    Json,
    Model,
    Network,
    Out,
    Percentile,
    Precision,
    Rows,
    Seed,
    Seeds,
    Steps,
    Words,
    read_interval,
    read_part,
    read_size,
    read_stage,
    read_weights,
    whole,
)
from composer.names import SHIPPED, SamplerName

if TYPE_CHECKING:
    from composer.cascade.cascade import Cascade


@dataclass(frozen=True)
class MachineOptions:
    """Machine"""

    allow_network: Network = False
    precision: Precision | None = None
    device: Device | None = None

    def load(self, model: str, plugins: Sequence[str], weaker: str | None = None) -> "Cascade":
        """Loads a model onto the device, and a weaker one to guide away from.

        Raises:
            ValueError: This machine has no such device.
        """
        import torch

        from composer.cascade.cascade import Cascade
        from composer.devices import pick_device

        device = pick_device(self.device)
        cascade = Cascade.load(model, plugins, self.allow_network)
        if weaker is not None:
            cascade.lead_away_from(Cascade.load(weaker, plugins, self.allow_network))
        return cascade.to(device, torch.bfloat16 if self.precision == "bf16" else None)


@dataclass(frozen=True)
class ModelOptions(MachineOptions):
    """Model"""

    model: Model = SHIPPED


@dataclass(frozen=True)
class PictureOptions:
    """Pictures

    Attributes:
        image_caption: a caption of the (first) picture, for tasks that use one
        by: how much to add at left,top,right,bottom, in pixels or in shares of the picture's sides
        region: change only this part of the (first) picture: a mask file (white may change) or left,top,right,bottom
        soften: width in pixels over which the change fades in
    """

    image_caption: Words = ""
    by: Annotated[str, Value(metavar="L,T,R,B")] = "0,0,0.5,0"
    region: Annotated[str, Value(metavar="R")] | None = None
    soften: Annotated[int, Value(whole(0, 256), "N")] = 2


@dataclass(frozen=True)
class DrawingOptions:
    """Drawing: prints how well each picture matches what was asked; closed: 1 is a perfect match, 0 is no better than
    chance

    Attributes:
        seeds: one picture per seed, such as 0,1,2
        best_of: draw N per seed and keep the one that matches best (default 1)
        weights: how much each condition counts for --best-of, such as sketch=2,palette=0.5
        strengths: weight of a condition, noise levels (0 to 1) and region at which it counts, such as
            palette=0.7@0.2-0.8:mask.png; each of the three may be left out
        sheet: draw all combinations of these values as one picture, such as guidance=1,3 seed=0,1; separate values that
            contain commas by ';'
    """

    seeds: Seeds = (0,)
    best_of: Annotated[int, Value(whole(1, 1000), "N")] = 1
    weights: Annotated[Mapping[str, float], Value(read_weights, "NAME=W,...")] = field(default_factory=dict)
    strengths: Annotated[tuple[str, ...], Value(metavar="NAME=S", nargs="+", repeats=True)] = ()
    sheet: Annotated[tuple[str, ...], Value(metavar="OPTION=V,V", nargs="+", repeats=True)] = ()


@dataclass(frozen=True)
class FileOptions:
    """Files

    Attributes:
        from_png: draw this PNG again from the recipe that it carries
        no_limits: allow recipes of --from-png that ask for very large pictures or very many steps
        no_recipe: write no recipe into the PNGs
    """

    out: Out = Path("out")
    from_png: Annotated[Path, Value(Path, "FILE")] | None = None
    no_limits: bool = False
    no_recipe: bool = False


@dataclass(frozen=True)
class SamplingOptions:
    """Sampling: overrides the model's own settings.

    Attributes:
        steps: number of sampling steps
        guidance: weight of classifier-free guidance; 1 turns it off
        guidance_interval: noise levels (0 to 1) at which guidance is on, such as 0.2-0.8 (default: all)
        autoguidance: guide away from this weaker model instead of from the estimate without conditions
        sampler: sampling method
        eta: amount of fresh noise that --sampler ancestral adds, 0 to 1 (default 1)
        percentile: percentile of dynamic thresholding, such as 0.995 (default: clip to the valid range)
        tile: draw a large picture in tiles of this side in pixels, such as 256, to save memory
        temperature: for models that draw by tokens: below 1, likely codes are drawn more often (default: the model's)
        top_k: for models that draw by tokens: draw each code from the K most likely ones (default: the model's)
        stages: sampling options of one stage, such as up256:steps=20,augmentation=0.1
        until: stop after this stage, such as base (default: run all stages)
        size: size of the result in pixels (default: the last stage's)
    """

    steps: Steps | None = None
    guidance: Guidance | None = None
    guidance_interval: Annotated[tuple[float, float], Value(read_interval, "LOW-HIGH")] | None = None
    autoguidance: Model | None = None
    sampler: SamplerName | None = None
    eta: Annotated[float, Value(FIELDS["eta"], "E")] | None = None
    percentile: Percentile | None = None
    tile: Annotated[int, Value(FIELDS["tile"], "N")] | None = None
    temperature: Annotated[float, Value(FIELDS["temperature"], "T")] | None = None
    top_k: Annotated[int, Value(FIELDS["top_k"], "K")] | None = None
    stages: Annotated[tuple[Any, ...], Value(read_stage, "NAME:FIELD=VALUE,...", ("--stage",), repeats=True)] = ()
    until: Annotated[str, Value(metavar="STAGE")] | None = None
    size: Annotated[tuple[int, int], Value(read_size, "WxH")] | None = None

    @property
    def options(self) -> SampleOptions:
        """The same for `Cascade.sample`; the weaker model is set when the model is loaded."""
        said = {name: value for name, value in vars(self).items() if name not in ("autoguidance", "stages")}
        return SampleOptions(**said, stages=dict(self.stages))


@dataclass(frozen=True)
class DistributionOptions:
    """Distributions: compares pictures drawn from the captions, as a set, with the images. Memory does not grow with
    the number of images, except for KID, which keeps all features: 2 x 246 MB for 30,000 images and Inception's 2048.

    Attributes:
        metrics: what to measure
        features: features for FID and KID: a reader of the model, or the file of Inception's weights
        clip: weights for the CLIP score (default: the model's own reader of captions)
        sums: folder that keeps what was summed up, so that an interrupted evaluation goes on where it ended
        part: which part of the pictures to draw; start each part in a process of its own with the same --sums; the one
            that ends last prints the figures of all
    """

    metrics: tuple[Literal["adherence", "fid", "kid", "clip"], ...] = ("adherence",)
    features: Annotated[str, Value(metavar="NAME")] = "semantics"
    clip: Annotated[str, Value(metavar="WEIGHTS")] | None = None
    sums: Annotated[Path, Value(Path, "FOLDER")] | None = None
    part: Annotated[tuple[int, int], Value(read_part, "I/N")] = (1, 1)


@dataclass(frozen=True)
class PromptOptions:
    """Prompts

    Attributes:
        prompts: a CSV with the columns Prompts and Category; asset:scenes_prompts.csv is ours
        against: a second model, for a blind vote
        n: pictures per prompt
    """

    prompts: Annotated[str, Value(metavar="FILE")] | None = None
    against: Model | None = None
    n: Annotated[int, Value(whole(1, 1000), "N")] = 4
    out: Out = Path("out/prompts")


@dataclass(frozen=True)
class ThingOptions:
    """Things

    Attributes:
        things: count whether pictures of one to three things show what was asked, and measure nothing else; the folder
            of the judge, or asset:scenes_judge, which is included
        captions: captions to draw: short ones, or ones that name every property
        boxes: measure whether objects are found in the boxes in which they are asked for, and nothing else; for models
            with the condition objects
    """

    things: Annotated[str, Value(metavar="JUDGE")] | None = None
    captions: Literal["complete", "short"] = "complete"
    boxes: bool = False


@dataclass(frozen=True)
class DataOptions:
    """What is measured, and on what

    Attributes:
        rows: images and pictures per batch
        min_side: refuse images of a folder whose shorter side is below N pixels (default: the side they are measured
            at)
        prior: a prior, such as scenes_prior_diffusion, that adds semantics to captions that are asked for without any
        alone: measure each condition alone only, which halves the work
    """

    data: Data = "scenes:val"
    count: Count = 256
    min_side: Annotated[int, Value(whole(0, MAX_SIDE), "N")] | None = None
    seed: Seed = 0
    rows: Rows = 32
    prior: Annotated[str, Value(metavar="NAME")] | None = None
    alone: bool = False
    json: Json | None = None
