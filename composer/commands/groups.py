"""Options that several commands have: a model and how it runs, and how it samples; light."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from composer.cascade.options import SampleOptions
from composer.commands.signature import Value
from composer.commands.values import FIELDS, Guidance, Percentile, Steps, interval, size, stage
from composer.names import SHIPPED, SamplerName

if TYPE_CHECKING:
    from collections.abc import Sequence

    from composer.cascade.cascade import Cascade

Device = Literal["cuda", "mps", "cpu"]
ModelName = Annotated[str, Value(metavar="MODEL")]


@dataclass(frozen=True)
class Machine:
    """Machine

    Attributes:
        allow_network: fetch a model of the hub, and weights of others that it names (hub:...), where they are not here
            yet
        precision: inside the network (default fp32)
        device: what to run on (default: the first of them that is there)
    """

    allow_network: bool = False
    precision: Literal["fp32", "bf16"] | None = None
    device: Device | None = None

    def load(self, model: str, plugins: Sequence[str], weaker: str | None = None) -> Cascade:
        """Loads a model onto the device.

        Args:
            model: Its folder or name.
            plugins: Modules that the user trusts.
            weaker: A model to guide away from.

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
class Model(Machine):
    """Model

    Attributes:
        allow_network: fetch a model of the hub, and weights of others that it names (hub:...), where they are not here
            yet
        precision: inside the network (default fp32)
        device: what to run on (default: the first of them that is there)
        model: a model's folder, or owner/name@revision on the Hugging Face hub
    """

    model: ModelName = SHIPPED


@dataclass(frozen=True)
class Sampling:
    """Sampling: as far as it is to differ from the model's own.

    Attributes:
        steps: sampling steps
        guidance: weight of classifier-free guidance; 1 is none
        guidance_interval: noise levels (0 to 1) at which it guides, such as 0.2-0.8; elsewhere its weight is 1
            (default: all)
        autoguidance: guide away from this weaker model's estimate, not from the one without conditions
        sampler: euler, heun, dpmpp_2m, ancestral
        eta: share of fresh noise of --sampler ancestral, 0 to 1 (default 1)
        percentile: dynamic thresholding, such as 0.995 (default: clip)
        tile: side of the tiles to draw a large picture by, such as 256
        stages: how a later stage samples, such as up256:steps=20,augmentation=0.1
        until: stage to stop after, such as base (default: run all)
        size: pixels of the result (default: the last stage's)
    """

    steps: Steps | None = None
    guidance: Guidance | None = None
    guidance_interval: Annotated[tuple[float, float], Value(interval, "LOW-HIGH")] | None = None
    autoguidance: ModelName | None = None
    sampler: SamplerName | None = None
    eta: Annotated[float, Value(FIELDS["eta"], "E")] | None = None
    percentile: Percentile | None = None
    tile: Annotated[int, Value(FIELDS["tile"], "N")] | None = None
    stages: Annotated[tuple[Any, ...], Value(stage, "NAME:FIELD=VALUE,...", ("--stage",), repeats=True)] = ()
    until: Annotated[str, Value(metavar="STAGE")] | None = None
    size: Annotated[tuple[int, int], Value(size, "WxH")] | None = None

    @property
    def options(self) -> SampleOptions:
        """The same as `Cascade.sample` takes it; the weaker model is the loading's business."""
        said = {name: value for name, value in vars(self).items() if name not in ("autoguidance", "stages")}
        return SampleOptions(**said, stages=dict(self.stages))
