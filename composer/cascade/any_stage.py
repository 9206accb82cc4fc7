"""What a cascade asks of a stage, whether it draws by diffusion or by tokens."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Generic, NoReturn, Protocol, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from composer.cascade.composition import Composition
from composer.cascade.low_res import LowRes
from composer.decomposition import Representations
from composer.diffusion.samplers import Progress
from composer.storage.building import Spec

S = TypeVar("S", bound="Settings")


@dataclass(frozen=True, kw_only=True)
class Settings(ABC):
    """How a stage samples."""

    def override(self: S, changes: Mapping[str, Any], what: str) -> S:
        """Replaces some fields.

        Raises:
            ValueError: There is no such field; the message names `what`.
        """
        known = [one.name for one in fields(self)]
        if unknown := sorted(changes.keys() - set(known)):
            raise ValueError(f"the sampling of {what} has {', '.join(known)}; found {', '.join(unknown)}")
        return replace(self, **changes)

    @property
    @abstractmethod
    def calls(self) -> int:
        """How often the network computes each pixel, for each term of guidance."""

    @property
    @abstractmethod
    def adds_noise(self) -> bool:
        """Whether pictures of one initial noise differ by their seeds."""


class Conditions(Protocol):
    """Names of conditions: those of a `ConditionSet`, or plain ones."""

    def __contains__(self, name: str, /) -> bool: ...

    def __iter__(self) -> Iterator[str]: ...


How = TypeVar("How", bound=Settings)


class AnyStage(ABC, Generic[How]):
    """A stage of a cascade.

    Attributes:
        conditions: Names of its conditions.
        size: Height and width of its images, in pixels.
        sampling: How it samples unless a call overrides it.
        spec: How it was built, for `Cascade.save`.
        low_res: Makes the condition ``low_res`` from the previous stage's image; None for a stage without it.
    """

    conditions: Conditions
    size: int
    sampling: How
    spec: Spec
    low_res: LowRes | None

    @property
    def name(self) -> str:
        """Its name: that of the file of its weights, without the suffix."""
        return Path(self.spec["file"]).stem

    @property
    @abstractmethod
    def stride(self) -> int:
        """Height and width of its images are multiples of it, in pixels."""

    @property
    @abstractmethod
    def precision(self) -> torch.dtype | None:
        """The reduced precision inside the network; None is float32."""

    @property
    def device(self) -> torch.device:
        """Where its weights lie."""
        return next(self.weights().parameters()).device

    @abstractmethod
    def weights(self) -> nn.Module:
        """The stage's networks, which give its weights the names that they have in its file."""

    @abstractmethod
    def to(self, device: torch.device | str, precision: torch.dtype | None) -> None:
        """Moves the stage to a device, and sets its precision; None is float32."""

    @abstractmethod
    def require(self, how: How) -> None:
        """Checks that the stage can sample so.

        Raises:
            ValueError: It cannot.
        """

    @abstractmethod
    def check(self, reps: Representations, size: tuple[int, int]) -> None:
        """Checks that the stage can read representations, of those that it has conditions for.

        Raises:
            Exception: It cannot; of any class.
        """

    @abstractmethod
    def draw(
        self,
        asked: Composition,
        size: tuple[int, int],
        how: How,
        seeds: tuple[Sequence[int], Sequence[int]],
        image: Float[Tensor, "b 3 h w"] | None,
        weaker: "AnyStage[Any] | None",
        progress: Progress | None,
    ) -> Float[Tensor, "b 3 h2 w2"]:
        """Draws images, in about [-1, 1].

        Args:
            asked: What to draw, resolved.
            size: Height and width of the images.
            how: How to sample.
            seeds: Of the sample's own random numbers, and of the corruption of `image`; one of each per picture.
            image: Images of the stage before, or to enlarge; None for the first stage.
            weaker: What guidance leads away from (autoguidance); None is nothing.
            progress: Wraps the sequence of steps.

        Raises:
            ValueError: The stage cannot draw what is asked.
        """

    def require_weaker(self, weaker: "AnyStage[Any]") -> None:
        """Checks that guidance can lead away from another stage.

        Raises:
            ValueError: It cannot.
        """
        self.need_denoiser("autoguidance")

    def invert(
        self, image: Float[Tensor, "b 3 h w"], reps: Representations, steps: int, progress: Progress | None
    ) -> Tensor:
        """Finds the initial noise from which images are drawn again, see `Cascade.invert`.

        Raises:
            ValueError: The stage has no denoiser.
        """
        self.need_denoiser("inversion")

    @property
    def noise_channels(self) -> int:
        """Channels of the initial noise.

        Raises:
            ValueError: The stage has no denoiser.
        """
        self.need_denoiser("initial noise")

    def need_denoiser(self, *what: str) -> NoReturn:
        """Says what only a stage with a denoiser can do.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            f"stage {self.name} draws one code after the other, without a denoiser: it cannot do {', '.join(what)}; "
            "leave that out, or choose a diffusion model"
        )
