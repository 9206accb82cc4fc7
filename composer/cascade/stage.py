"""A stage of a cascade: one resolution's denoiser and conditions, and how it samples.

A stage works on the latents of its codec. Outside of this file there are only images.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from composer.cascade.any_stage import AnyStage, Settings
from composer.cascade.composition import Composition
from composer.cascade.low_res import LowRes
from composer.cascade.start import InitialNoise, Kept, NoisyImage, Start, keep_at
from composer.conditioning import Condition, Conditioning, ConditionSet
from composer.decomposition import Representations
from composer.diffusion import samplers
from composer.diffusion.denoiser import Denoiser, Estimator, level
from composer.diffusion.guidance import Term, guide, lock, threshold
from composer.diffusion.samplers import Denoise, Progress, watched
from composer.diffusion.strength import weigh
from composer.diffusion.tiling import Tiled
from composer.images.reading import fit
from composer.names import SamplerName as SamplerName
from composer.networks.codec import Codec, Pixels
from composer.networks.interface import Network
from composer.networks.norm import GroupNorm
from composer.storage.building import Spec, build


@dataclass(frozen=True, kw_only=True)
class Sampling(Settings):
    """How a stage samples.

    Attributes:
        sampler: One of `composer.diffusion.samplers`.
        steps: Number of steps; `heun` calls the network twice per step, the others once.
        guidance: Weight of classifier-free guidance; 1 is none.
        guidance_interval: Lowest and highest noise level at which it guides, as the cosine schedule's time in [0, 1];
            None guides at all of them. Elsewhere the weight is 1, which takes half the time.
        eta: Share of fresh noise of the sampler `ancestral`: 1 is DDPM's, 0 none, as DDIM (Song et al. 2021).
        percentile: Dynamic thresholding (Imagen: 0.995); None clips. Only where latents are bounded, as pixels are.
        augmentation: Level in [0, 1] at which a stage that enlarges corrupts the image it was given (Imagen: 0.1 to 0.3
            for the best pictures, 0 for the most faithful ones).
        tile: Side in pixels of the tiles that the network sees one at a time, to save memory; None uses no tiles.
    """

    sampler: SamplerName = "dpmpp_2m"
    steps: int = 30
    guidance: float = 2.0
    guidance_interval: Sequence[float] | None = None
    eta: float = 1.0
    percentile: float | None = None
    augmentation: float = 0.0
    tile: int | None = None

    def __post_init__(self) -> None:
        known = get_args(SamplerName)
        if self.sampler not in known:
            raise ValueError(f"expected a sampler of {', '.join(known)}, found {self.sampler!r}")
        if self.steps < 1 or not 0 <= self.eta <= 1:
            raise ValueError(f"expected at least 1 step and eta in [0, 1], found {self.steps} and {self.eta}")
        if self.guidance_interval is not None:
            low, high = self.guidance_interval  # a list, where it comes from JSON
            if not 0 <= low < high <= 1:
                raise ValueError(f"expected a guidance_interval within 0-1, found {low}-{high}")
            object.__setattr__(self, "guidance_interval", (low, high))

    def guides(self, sigma: float) -> bool:
        """Whether guidance is on at a noise level (Kynkaanniemi et al. 2024)."""
        if self.guidance_interval is None:
            return True
        low, high = self.guidance_interval
        return low <= float(level(torch.tensor(sigma))) <= high

    @property
    def calls(self) -> int:
        return self.steps * (2 if self.sampler == "heun" else 1)

    @property
    def adds_noise(self) -> bool:
        return self.sampler == "ancestral" and self.eta > 0


@dataclass(frozen=True)
class Stage(AnyStage[Sampling]):
    """One resolution's denoiser and conditions.

    Attributes:
        denoiser: Estimates the clean image.
        conditions: Its conditions.
        size: Height and width of its images, in pixels.
        sampling: How it samples unless a call overrides it.
        spec: How denoiser and conditions were built, for `Cascade.save`.
        low_res: Makes the condition ``low_res`` from the previous stage's image; None for a stage without it.
        codec: Encodes the images as latents, of which the denoiser estimates the clean ones, and decodes them.
    """

    denoiser: Denoiser
    conditions: ConditionSet
    size: int
    sampling: Sampling
    spec: Spec
    low_res: LowRes | None = None
    codec: Codec = field(default_factory=Pixels)

    def __post_init__(self) -> None:
        network: Any = self.denoiser.network
        if not isinstance(network, Network):  # arguments of a model's configuration are of any class of the closed list
            raise ValueError(f"stage {self.name}: expected a network, found {type(network).__name__}")
        require_codec(self.codec, self.denoiser, self.size, self.name)
        if (self.low_res is None) == ("low_res" in self.conditions):
            raise ValueError(
                f"stage {self.name}: a condition low_res and an entry low_res, which says how it is made, go together: "
                "add the missing one, or remove both"
            )

    @classmethod
    def from_spec(cls, spec: Spec, plugins: Collection[str] = (), folder: Path | None = None) -> "Stage":
        """Builds a stage with fresh weights.

        Args:
            spec: ``{"size": 64, "denoiser": Spec, "conditions": {name: Spec}, "sampling": {...}}``, and ``"low_res":
                Spec`` where the stage enlarges, ``"codec": Spec`` where it works on latents.
            plugins: Modules beyond the closed list that the user trusts.
            folder: The model's folder.
        """
        conditions = {k: build(v, Condition, plugins, folder) for k, v in spec["conditions"].items()}
        denoiser = build(spec["denoiser"], Denoiser, plugins, folder).eval().requires_grad_(False)
        sampling = Sampling(**spec.get("sampling", {}))
        low_res = build(spec["low_res"], LowRes, plugins, folder) if "low_res" in spec else None
        adapters = ConditionSet(conditions).eval().requires_grad_(False)
        codec = build(spec["codec"], Codec, plugins, folder) if "codec" in spec else Pixels()
        codec.eval().requires_grad_(False)
        return cls(denoiser, adapters, spec["size"], sampling, spec, low_res, codec)

    def weights(self) -> nn.Module:
        return nn.ModuleDict({"denoiser": self.denoiser, "conditions": self.conditions, "codec": self.codec})

    @property
    def stride(self) -> int:
        return self.denoiser.network.stride * self.codec.factor

    @property
    def precision(self) -> torch.dtype | None:
        return self.denoiser.precision

    @property
    def noise_channels(self) -> int:
        return self.codec.channels

    def to(self, device: torch.device | str, precision: torch.dtype | None) -> None:
        self.weights().to(device)
        self.denoiser.precision = precision

    def latent_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the latents of images of that height and width."""
        return size[0] // self.codec.factor, size[1] // self.codec.factor

    def estimator(self, tile: int | None) -> Estimator:
        """The denoiser, or a wrapper that runs it on tiles of that side, in pixels.

        Raises:
            ValueError: The network cannot run on such tiles.
        """
        if tile is None:
            return self.denoiser
        if tile % self.codec.factor:
            raise ValueError(f"expected tiles whose side is a multiple of {self.stride} pixels, found {tile}")
        network = self.denoiser.network
        norms = [module for module in network.modules() if isinstance(module, GroupNorm)]
        return Tiled(self.denoiser, tile // self.codec.factor, network.stride, norms)

    def require(self, how: Sampling) -> None:
        """Checks that the stage can sample so.

        Raises:
            ValueError: The network cannot run on such tiles, or latents have no bounds to threshold by.
        """
        self.estimator(how.tile)
        if how.percentile is not None and not self.codec.bounded:
            raise ValueError(f"stage {self.name} works on latents, which have no bounds: leave out the percentile")

    def require_weaker(self, weaker: AnyStage[Any]) -> None:
        if not isinstance(weaker, Stage):
            weaker.need_denoiser("autoguidance")
        if self.size != weaker.size or self.conditions.keys() != weaker.conditions.keys():
            raise ValueError(
                f"autoguidance needs a model whose stage {self.name} draws {self.size} px from "
                f"{', '.join(self.conditions) or 'nothing'}; found {weaker.size} px, "
                f"{', '.join(weaker.conditions) or 'nothing'}"
            )
        latents, others = ((s.codec.channels, s.codec.factor, s.codec.scale) for s in (self, weaker))
        if latents != others:
            raise ValueError(
                "autoguidance needs a model that works on the same latents: expected channels, factor and scale "
                f"{latents}, found {others}"
            )

    def check(self, reps: Representations, size: tuple[int, int]) -> None:
        self.encode(reps, size)

    def draw(
        self,
        asked: Composition,
        size: tuple[int, int],
        how: Sampling,
        seeds: tuple[Sequence[int], Sequence[int]],
        image: Tensor | None,
        weaker: AnyStage[Any] | None,
        progress: Progress | None,
    ) -> Tensor:
        own: Representations = {}
        if self.low_res is not None:
            if image is None:
                raise ValueError(f"stage {self.name} enlarges: give it an image, Composition(start=SmallImage(...))")
            own = {"low_res": self.low_res.corrupt(image, how.augmentation, seeds[1])}
        assert weaker is None or isinstance(weaker, Stage)  # by `require_weaker`
        denoise = watched(self.denoise(asked, own, size, how, weaker), progress, self.codec.decode)
        start = asked.start if self.low_res is None else None
        x, sigmas = self.start(start, seeds[0], size, how.steps, self.encode(own, size))
        latents = run_sampler(how, denoise, x, sigmas, seeds[0], progress)
        return self.codec.decode(latents) if how.tile is None else self.codec.decode_in_tiles(latents, how.tile)

    def invert(self, image: Tensor, reps: Representations, steps: int, progress: Progress | None) -> Tensor:
        sigmas = self.denoiser.sigmas(steps)[:-1].flip(0)
        denoise = guide(self.denoiser, [Term(self.encode(reps, (image.shape[2], image.shape[3])), 1.0)])
        extra: dict[str, Any] = {} if progress is None else {"progress": progress}
        return samplers.heun(denoise, self.codec.encode(image), sigmas, **extra) / sigmas[-1]

    def denoise(
        self,
        asked: Composition,
        own: Representations,
        size: tuple[int, int],
        how: Sampling,
        weaker: "Stage | None" = None,
    ) -> Denoise:
        """The guided estimate of the clean latents, clipped where they are bounded, in which the kept part stays.

        Args:
            asked: See `terms`, also for the next two.
            own: Representations that all terms share.
            size: Height and width of the images.
            how: How it samples.
            weaker: See `terms`.

        Raises:
            ValueError: See `terms`.
        """
        denoise = guide(self.estimator(how.tile), self.terms(asked, own, size, how, weaker))
        if self.codec.bounded:
            denoise = threshold(denoise, how.percentile)
        return denoise if asked.kept is None else lock(denoise, *self._kept(asked.kept, size))

    def _kept(self, kept: Kept, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Latents of the kept image and where they stay; one that covers a free pixel, or borders on it, is free."""
        image, where = kept.at(size, next(self.denoiser.parameters()).device)
        return self.codec.encode(image), keep_at(where, self.latent_size(size))

    def encode(self, reps: Representations, size: tuple[int, int]) -> Conditioning:
        """Encodes the representations that this stage has conditions for, for images of a height and width."""
        known = {name: value for name, value in reps.items() if name in self.conditions}
        cond: Conditioning = self.conditions(known, self.latent_size(size))
        return cond

    def start(
        self, start: Start | None, seeds: Sequence[int], size: tuple[int, int], steps: int, own: Conditioning
    ) -> tuple[Tensor, Tensor]:
        """Returns the noisy latents from which sampling starts, and its noise levels.

        Args:
            start: See `Composition`; None is noise drawn from the seeds.
            seeds: One per picture.
            size: Height and width of the images.
            steps: From the highest noise level to none.
            own: The conditioning that all estimates share.

        Raises:
            ValueError: The initial noise has another size.
        """
        sigmas = self.denoiser.sigmas(steps)
        shape = (self.codec.channels, *self.latent_size(size))
        noise = samplers.latents(seeds, shape, next(self.denoiser.parameters()).device)
        if isinstance(start, NoisyImage):
            sigma = math.tan(math.pi / 2 * min(start.time, level(sigmas[:1]).item()))
            sigmas = torch.cat([sigmas.new_tensor([sigma]), sigmas[sigmas < sigma]])
            return self.codec.encode(fit(start.image, size).to(noise)) + sigma * noise, sigmas
        if isinstance(start, InitialNoise):
            if start.noise.shape[1:] != noise.shape[1:]:
                found = tuple(start.noise.shape[1:])
                raise ValueError(f"expected initial noise of shape {tuple(noise.shape[1:])}, found {found}")
            noise = start.noise.expand(len(seeds), -1, -1, -1).to(noise)
        return self.denoiser.start(noise, sigmas[0], own), sigmas

    def terms(
        self,
        asked: Composition,
        own: Representations,
        size: tuple[int, int],
        how: Sampling,
        weaker: "Stage | None" = None,
    ) -> list[Term]:
        """The terms of guidance: one per set of conditions that counts somewhere, and what guidance leads away from.

        Args:
            asked: The conditions to follow, with their strengths. Guidance leads away from the same for all of them,
                also for those of its `also`.
            own: Representations that all terms share: the previous stage's image.
            size: Height and width of the images.
            how: Its guidance w is the weight of the conditions to follow; what guidance leads away from has 1 - w.
            weaker: A weaker stage to lead away from, with the same conditions (autoguidance, Karras et al. 2024).

        Raises:
            ValueError: Guidance would lead away both from `weaker` and from something else.
        """
        reps = asked.parts
        names = [name for name in reps if name in self.conditions]
        strengths = {n: s for n, s in asked.strengths.items() if n in names}
        weights = weigh(names, strengths, self.latent_size(size))
        also = [(other, weight) for other, weight in asked.also if other.keys() & self.conditions.keys()]
        rest = 1 - how.guidance - sum(weight for _, weight in also)

        def guidance(sigma: float) -> float:
            return how.guidance if how.guides(sigma) else 1.0

        def left(sigma: float) -> float:
            return rest if how.guides(sigma) else 0.0

        def further(weight: float) -> Callable[[float], float]:
            return lambda sigma: weight if how.guides(sigma) else 0.0

        def pick(subset: frozenset[str]) -> Representations:
            return {**{n: reps[n] for n in reps if n in subset}, **own}

        others = [Term(self.encode({**other, **own}, size), further(weight)) for other, weight in also]
        behind = {name: value for name, value in (asked.away or {}).items() if name in self.conditions}
        within = all(name in reps and torch.equal(reps[name], value) for name, value in behind.items())
        if weaker is not None:
            if not within:
                raise ValueError(
                    "autoguidance leads away from a weaker model, and cannot also lead away from conditions: leave "
                    "out one of them"
                )
            by = weaker.estimator(how.tile)
            pairs = [(subset, share) for subset, share in weights.items()]
            terms = [Term(self.encode(pick(s), size), _product(guidance, share)) for s, share in pairs]
            terms += [Term(weaker.encode(pick(s), size), _product(left, share), by) for s, share in pairs]
            return [*terms, *others]
        start = frozenset(behind) if within else None  # often one of the sets that count anyway: it is estimated once

        def total(subset: frozenset[str]) -> Callable[[float], float | Tensor]:
            share = weights.get(subset)
            if share is None:
                return left
            return lambda sigma: guidance(sigma) * share(sigma) + (left(sigma) if subset == start else 0.0)

        subsets = dict.fromkeys([*weights, *([] if start is None else [start])])
        terms = [Term(self.encode(pick(s), size), total(s)) for s in subsets]
        return [*terms, *others] + ([] if within else [Term(self.encode({**behind, **own}, size), left)])


def require_codec(codec: Codec, denoiser: Denoiser, size: int, stage: str) -> None:
    """Checks that a stage's denoiser can work on the latents of a codec.

    Args:
        codec: It.
        denoiser: The stage's.
        size: Side of the images, in pixels.
        stage: The stage's name, for the error message.

    Raises:
        ValueError: Channels, size or a residual do not fit.
    """
    network = denoiser.network
    if codec.channels != network.channels:
        raise ValueError(
            f"stage {stage}: the codec's latents have {codec.channels} channels, the network's images "
            f"{network.channels}: they have to be the same"
        )
    stride = network.stride * codec.factor
    if size % stride:
        raise ValueError(
            f"stage {stage}: the codec divides sides by {codec.factor}, the network by {network.stride}: expected a "
            f"size in multiples of {stride}, found {size} px"
        )
    if denoiser.residual is not None and not isinstance(codec, Pixels):
        raise ValueError(f"stage {stage}: a residual is of pixels: leave it out, or the codec")


def _product(a: Callable[[float], float], b: Callable[[float], float | Tensor]) -> Callable[[float], float | Tensor]:
    return lambda sigma: a(sigma) * b(sigma)


def sizes_of(
    chain: Sequence[AnyStage[Any]], size: tuple[int, int] | None, image: Tensor | None
) -> list[tuple[int, int]]:
    """Height and width of each stage's images, so that the last one's are `size`.

    Raises:
        ValueError: A stage cannot draw images of that size.
    """
    last = chain[-1]
    if image is not None:
        first = chain[0]
        grown = last.size * (first.low_res.scale if first.low_res else 1) // first.size
        given = (image.shape[-2] * grown, image.shape[-1] * grown)
        if size not in (None, given):
            raise ValueError(f"these images become {given[1]} x {given[0]} pixels, not {size[1]} x {size[0]}")
        size = given
    h, w = size or (last.size, last.size)
    for stage in chain:
        factor, stride = last.size // stage.size, stage.stride
        if h <= 0 or w <= 0 or h % (factor * stride) or w % (factor * stride):
            raise ValueError(
                f"stage {stage.name} draws sides in multiples of {stride} pixels, which become {factor * stride} in "
                f"the end: expected such a width and height, found {w} x {h}"
            )
    return [(h * s.size // last.size, w * s.size // last.size) for s in chain]


def run_sampler(
    how: Sampling, denoise: Denoise, x: Tensor, sigmas: Tensor, seeds: Sequence[int], progress: Progress | None
) -> Tensor:
    """Runs a stage's sampler; `seeds` are for the one that adds fresh noise."""
    extra: dict[str, Any] = {} if progress is None else {"progress": progress}
    if how.sampler == "ancestral":
        return samplers.ancestral(denoise, x, sigmas, seeds, how.eta, **extra)
    sampler: samplers.Sampler = getattr(samplers, how.sampler)
    return sampler(denoise, x, sigmas, **extra)
