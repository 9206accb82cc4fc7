"""A stage that draws the codes of a picture one after the other (Ramesh et al. 2021, DALL-E)."""

from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from composer.autoregressive.image_tokens import ImageTokens
from composer.cascade.any_stage import AnyStage, Settings
from composer.cascade.composition import Composition
from composer.cascade.stage import Stage
from composer.cascade.start import Kept
from composer.decomposition import Representations
from composer.diffusion.samplers import Progress
from composer.networks.dvae import DVAE
from composer.storage.building import Spec, build


@dataclass(frozen=True, kw_only=True)
class TokenSampling(Settings):
    """How a stage draws codes.

    Attributes:
        temperature: Divides the logits, above 0: below 1, likely codes are drawn more often than they are likely.
        top_k: Draws from the k most likely codes alone; None draws from all.
        guidance: Weight of classifier-free guidance; 1 is none, and takes half the time. Not in the paper.
    """

    temperature: float = 1.0
    top_k: int | None = None
    guidance: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature <= 0 or (self.top_k is not None and self.top_k < 1):
            raise ValueError(
                f"expected a temperature above 0 and top_k of at least 1, found {self.temperature} and {self.top_k}"
            )

    @property
    def calls(self) -> int:
        return 1

    @property
    def adds_noise(self) -> bool:
        return True


class TokenStage(AnyStage[TokenSampling]):
    """A text and a dVAE's codes as one sequence: codes are drawn row by row, and decoded.

    Args:
        tokens: Draws the codes.
        autoencoder: Decodes them.
        conditions: The name of its only condition: token ids of a caption, as `decomposers.Tokens` gives them.
        size: Height and width of its images, in pixels.
        sampling: How it samples unless a call overrides it.
        spec: See `AnyStage`.

    Raises:
        ValueError: The codes are those of another dVAE, their grid is not the picture's, or there is not one condition.
    """

    low_res = None

    def __init__(
        self,
        tokens: ImageTokens,
        autoencoder: DVAE,
        conditions: Sequence[str],
        size: int,
        sampling: TokenSampling,
        spec: Spec,
    ):
        self.tokens, self.autoencoder, self.conditions, self.size = tokens, autoencoder, tuple(conditions), size
        self.sampling, self.spec = sampling, spec
        self._precision: torch.dtype | None = None
        require_codes(tokens, autoencoder, size)
        if len(self.conditions) != 1:
            raise ValueError(
                f"stage {self.name}: expected the name of one condition, that of the caption's token ids, found "
                f"{', '.join(self.conditions) or 'none'}"
            )

    @classmethod
    def from_spec(cls, spec: Spec, plugins: Collection[str] = (), folder: Path | None = None) -> "TokenStage":
        """Builds a stage with fresh weights.

        Args:
            spec: ``{"size": 64, "tokens": Spec, "autoencoder": Spec, "conditions": ["caption"], "sampling": {...}}``.
            plugins: Modules beyond the closed list that the user trusts.
            folder: The model's folder.
        """
        tokens = build(spec["tokens"], ImageTokens, plugins, folder).eval().requires_grad_(False)
        autoencoder = build(spec["autoencoder"], DVAE, plugins, folder).eval().requires_grad_(False)
        sampling = TokenSampling(**spec.get("sampling", {}))
        return cls(tokens, autoencoder, spec["conditions"], spec["size"], sampling, spec)

    @property
    def stride(self) -> int:
        return self.size

    @property
    def precision(self) -> torch.dtype | None:
        return self._precision

    def weights(self) -> nn.Module:
        return nn.ModuleDict({"tokens": self.tokens, "autoencoder": self.autoencoder})

    def to(self, device: torch.device | str, precision: torch.dtype | None) -> None:
        self.weights().to(device)
        self._precision = precision

    def require(self, how: TokenSampling) -> None:
        """All settings are possible."""

    def check(self, reps: Representations, size: tuple[int, int]) -> None:
        self._text(reps, 1)

    def draw(
        self,
        asked: Composition,
        size: tuple[int, int],
        how: TokenSampling,
        seeds: tuple[Sequence[int], Sequence[int]],
        image: Tensor | None,
        weaker: AnyStage[Any] | None,
        progress: Progress | None,
    ) -> Float[Tensor, "b 3 h w"]:
        self._refuse(asked)
        if size != (self.size, self.size):
            raise ValueError(f"stage {self.name} draws {self.size} x {self.size} pixels, not {size[1]} x {size[0]}")
        text = self._text(asked.parts, len(seeds[0]))
        first = None if asked.kept is None else self._kept(asked.kept, len(text))
        reduced = nullcontext() if self._precision is None else torch.autocast(self.device.type, self._precision)
        with reduced:
            codes = self.tokens.sample(
                text,
                seeds[0],
                first=first,
                temperature=how.temperature,
                top_k=how.top_k,
                guidance=how.guidance,
                progress=progress,
            )
        return self.autoencoder.decode(codes)

    def _refuse(self, asked: Composition) -> None:
        """Refuses what needs a denoiser."""
        own = set(self.conditions)
        needed = {
            "strengths": own & asked.strengths.keys(),
            "guidance away from conditions": own & (asked.away or {}).keys(),
            "captions to add or to avoid": any(own & parts.keys() for parts, _ in asked.also),
            "a start from noise or from a picture": asked.start is not None,
        }
        if wrong := [what for what, there in needed.items() if there]:
            self.need_denoiser(*wrong)

    def _text(self, reps: Representations, rows: int) -> Int[Tensor, "b t"]:
        """The caption as the transformer reads it; without one, padding alone."""
        own, length = self.tokens, self.tokens.text_length
        (name,) = self.conditions
        if name not in reps:
            return own.pad_text([[]] * rows)
        text = to_text(reps[name].to(self.device), own.padding, length, name)
        return text.expand(rows, -1) if len(text) == 1 else text

    def _kept(self, kept: Kept, rows: int) -> Int[Tensor, "b r w"]:
        """The first rows of codes, which stay.

        Raises:
            ValueError: What has to stay are not the upper rows of the picture.
        """
        image, where = kept.at((self.size, self.size), self.device)
        side = self.autoencoder.stride
        whole = 1 - F.max_pool2d(1 - where, side)  # of each code: whether all its pixels stay
        count = int(whole.amin((0, 1, 3)).cumprod(0).sum())
        top = count * side
        if count == 0 or where[:, :, top + side :].any():
            raise ValueError(
                f"stage {self.name} draws a picture row by row from the top, so what stays has to be its upper part: "
                f"at least {side} and any number of rows of its {self.size}, over the whole width. Expected a region "
                "such as 0,0.5,1,1, which redraws the lower half"
            )
        place = torch.arange(self.size, device=image.device) % (2 * top)
        mirrored = image[:, :, torch.where(place < top, place, 2 * top - 1 - place)]  # nothing of the rest shows
        return self.autoencoder.encode(mirrored)[:, :count].expand(rows, -1, -1)


def to_text(value: Shaped[Tensor, "b n c"], padding: int, length: int, name: str = "caption") -> Int[Tensor, "b t"]:
    """Converts token ids with their mask, as `decomposers.Tokens` gives them, to the text that `ImageTokens` reads.

    Args:
        value: Token ids; the last channel is 1 where they are real.
        padding: What stands for padding in the result; ids are below it.
        length: Number of positions of the result.
        name: The condition's name, for the error message.

    Raises:
        ValueError: A caption is longer than that, an id is too large, or these are no token ids.
    """
    if value.ndim != 3 or value.shape[2] != 2:
        raise ValueError(f"expected token ids of {name} (b n 2), as Tokens gives them, found {tuple(value.shape)}")
    real = value[..., 1] > 0.5
    if real[:, length:].any():
        raise ValueError(
            f"expected a {name} of at most {length} tokens, found {int(real.sum(1).max())}: shorten it, or give the "
            f"decomposer Tokens length={length}, which cuts it and says so"
        )
    given = value[..., 0].long()
    if (real & ((given < 0) | (given >= padding))).any():
        raise ValueError(f"expected token ids of {name} from 0 to {padding - 1}, found {given[real].tolist()}")
    ids = torch.where(real, given, padding)
    return F.pad(ids[:, :length], (0, max(0, length - ids.shape[1])), value=padding)


def require_codes(tokens: ImageTokens, autoencoder: DVAE, size: int) -> None:
    """Checks that a transformer's codes can be those of a dVAE, for square images.

    Args:
        tokens: The transformer.
        autoencoder: The dVAE.
        size: Height and width of the images, in pixels.

    Raises:
        ValueError: Their numbers of codes differ, or the grid of codes is not that of such an image.
    """
    if tokens.codes != autoencoder.codes:
        raise ValueError(
            f"the transformer draws codes of another dVAE: expected {tokens.codes} codes, found a dVAE of "
            f"{autoencoder.codes}"
        )
    rows, columns = tokens.rows, tokens.columns
    if (rows * autoencoder.stride, columns * autoencoder.stride) != (size, size):
        raise ValueError(
            f"images of {size} x {size} pixels and a dVAE that divides sides by {autoencoder.stride} expect a grid of "
            f"{size / autoencoder.stride:g} x {size / autoencoder.stride:g} codes, found {rows} x {columns}: another "
            "dVAE, another size, or other rows and columns"
        )


def build_stage(spec: Spec, plugins: Collection[str] = (), folder: Path | None = None) -> AnyStage[Any]:
    """Builds the stage of a specification, with fresh weights: by tokens where it has ``tokens``, else by diffusion."""
    made = TokenStage if "tokens" in spec else Stage
    return made.from_spec(spec, plugins, folder)
