"""Sampling options that override the model's settings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from composer.names import SamplerName


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """How a cascade samples; None keeps the model's setting.

    Attributes:
        sampler: As in `Sampling`, for the first stage that runs; so are all fields down to `tile`,
            and guidance also for one that draws by tokens.
        steps: See `Sampling`.
        guidance: See `Sampling`.
        guidance_interval: See `Sampling`.
        eta: See `Sampling`.
        percentile: See `Sampling`.
        augmentation: See `Sampling`.
        tile: See `Sampling`.
        temperature: As in `TokenSampling`, for a first stage that draws by tokens; so is `top_k`.
        top_k: See `TokenSampling`.
        stages: Name of a stage -> fields of `Sampling` to override; they win over those above.
        size: Height and width of the result in pixels; None is the square that the last stage was trained on.
        until: Name of the stage to stop after; None runs all of them.
    """

    sampler: SamplerName | None = None
    steps: int | None = None
    guidance: float | None = None
    guidance_interval: Sequence[float] | None = None
    eta: float | None = None
    percentile: float | None = None
    augmentation: float | None = None
    tile: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    stages: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    size: tuple[int, int] | None = None
    until: str | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "guidance", "eta", "percentile", "augmentation", "tile", "temperature", "top_k"):
            value = getattr(self, name)
            if not isinstance(value, float | int | None):
                raise ValueError(f"expected a number, such as SampleOptions({name}=10), found {value!r}")
        size: Any = self.size
        if size is not None and (not isinstance(size, Sequence) or len(size) != 2):
            raise ValueError(f"expected a height and a width, such as SampleOptions(size=(256, 256)), found {size!r}")

    def __or__(self, other: "SampleOptions | None") -> "SampleOptions":
        """Both; the right side wins."""
        return self if other is None else replace(self, **other.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """The fields that are not None, by name."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in own.items() if value not in (None, {})}

    @property
    def first(self) -> dict[str, Any]:
        """The options for the first stage that runs, as fields of `Sampling` or `TokenSampling`."""
        return {name: value for name, value in self.to_dict().items() if name not in ("stages", "size", "until")}
