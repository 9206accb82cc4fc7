"""Recombination: representations in, image out, through one or more stages."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from . import samplers
from .conditioning import Condition, Conditioning, ConditionSet
from .decomposition import Batch, Decomposer, Decomposition, Representations
from .denoiser import Denoiser
from .guidance import Term, guide, lock, threshold
from .images import load_rgb, resize_and_crop
from .samplers import Denoise, Progress
from .storage import Spec, build, load_strictly, read_model, write_model

SamplerName = Literal["euler", "heun", "dpmpp_2m", "ancestral"]


class Parts(Representations):
    """Representations that combine: ``a.pick("sketch", "depth") | b.pick("palette")``. The right side wins."""

    def pick(self, *names: str) -> "Parts":
        """Keeps the named representations.

        Raises:
            KeyError: One of them is not here.
        """
        missing = sorted(set(names) - self.keys())
        if missing:
            raise KeyError(f"no {', '.join(missing)} among these parts; they hold {', '.join(sorted(self))}")
        return Parts({name: self[name] for name in names})

    def drop(self, *names: str) -> "Parts":
        """Leaves out the named representations."""
        return Parts({name: value for name, value in self.items() if name not in names})

    def rows(self, index: Sequence[int] | slice) -> "Parts":
        """Keeps some rows of each representation."""
        return Parts({name: value[index] for name, value in self.items()})

    def row(self, i: int) -> "Parts":
        """Keeps row i, of representations of a single row that one."""
        return Parts({name: value[i : i + 1] if len(value) > 1 else value for name, value in self.items()})

    def __or__(self, other: Mapping[str, Tensor]) -> "Parts":  # type: ignore[override]
        return Parts({**self, **other})


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a stage samples.

    Attributes:
        sampler: One of `composer.samplers`.
        steps: Number of steps; `heun` calls the network twice a step, the others once.
        guidance: Weight of classifier-free guidance; 1 is none.
        percentile: Dynamic thresholding (Imagen: 0.995); None clips.
    """

    sampler: SamplerName = "dpmpp_2m"
    steps: int = 30
    guidance: float = 2.0
    percentile: float | None = None

    def __post_init__(self) -> None:
        known = get_args(SamplerName)
        if self.sampler not in known:
            raise ValueError(f"expected a sampler of {', '.join(known)}, found {self.sampler!r}")
        if self.steps < 1:
            raise ValueError(f"expected at least 1 step, found {self.steps}")


@dataclass(frozen=True)
class Stage:
    """One resolution's denoiser and conditions.

    Attributes:
        denoiser: Estimates the clean image.
        conditions: What the denoiser reads.
        size: Height and width of its images, in pixels.
        sampling: How it samples unless the call says otherwise.
        spec: How denoiser and conditions were built, for `Cascade.save`.
    """

    denoiser: Denoiser
    conditions: ConditionSet
    size: int
    sampling: Sampling
    spec: Spec

    @classmethod
    def from_spec(cls, spec: Spec, plugins: Collection[str] = (), folder: Path | None = None) -> "Stage":
        """Builds a stage with fresh weights.

        Args:
            spec: ``{"size": 64, "denoiser": Spec, "conditions": {name: Spec}, "sampling": {...}}``.
            plugins: Modules beyond the closed list that the user trusts.
            folder: The model's folder.
        """
        conditions = {k: build(v, Condition, plugins, folder) for k, v in spec["conditions"].items()}
        denoiser = build(spec["denoiser"], Denoiser, plugins, folder).eval().requires_grad_(False)
        sampling = Sampling(**spec.get("sampling", {}))
        return cls(denoiser, ConditionSet(conditions).eval().requires_grad_(False), spec["size"], sampling, spec)

    def encode(self, reps: Representations) -> Conditioning:
        """Encodes what this stage reads of `reps`."""
        known = {name: value for name, value in reps.items() if name in self.conditions}
        cond: Conditioning = self.conditions(known, (self.size, self.size))
        return cond


class Cascade:
    """Stages, and how their images are taken apart.

    Args:
        stages: From the smallest to the largest; each later one reads the image before it as ``low_res``.
        decomposition: Decomposers by the name of their condition.
        readers: What reads a result again for adherence; where a name is missing here its decomposer does.
        sha256: Names the exact state that was loaded; empty for a model that was never saved.
    """

    def __init__(self, stages: Sequence[Stage], decomposition: Decomposition, readers: Decomposition, sha256: str = ""):
        if not stages:
            raise ValueError("a cascade needs at least one stage")
        self.stages, self.decomposition, self.sha256 = tuple(stages), decomposition, sha256
        self.readers = Decomposition({**dict(decomposition.named()), **dict(readers.named())})
        self.spec: dict[str, Any] = {}

    @classmethod
    def from_spec(
        cls, spec: Mapping[str, Any], plugins: Collection[str] = (), folder: Path | None = None, sha256: str = ""
    ) -> "Cascade":
        """Builds a cascade with fresh weights from a model's configuration."""
        stages = [Stage.from_spec(stage, plugins, folder) for stage in spec["stages"]]

        def all_of(key: str) -> Decomposition:
            return Decomposition({k: build(v, Decomposer, plugins, folder) for k, v in spec.get(key, {}).items()})

        cascade = cls(stages, all_of("decomposers"), all_of("readers"), sha256)
        cascade.spec = dict(spec)
        return cascade

    @classmethod
    def load(cls, folder: str | Path, plugins: Collection[str] = ()) -> "Cascade":
        """Loads a model's folder, or a model that the package ships by its name (``scenes64``).

        Raises:
            FileNotFoundError: There is no model at that place, or a file of it is missing.
            ValueError: Files are damaged, weights and configuration do not belong together, or the configuration
                names something that is not on the closed list.
        """
        path = Path(folder)
        shipped = Path(__file__).parent / "assets" / path
        path = shipped if not path.exists() and shipped.is_dir() else path
        config, weights, sha256 = read_model(path)
        cascade = cls.from_spec(config, plugins, path, sha256)
        cascade.load_weights(weights)
        return cascade

    def load_weights(self, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Loads each stage's weights, by the name of its file.

        Raises:
            ValueError: They are not those of this configuration.
        """
        for stage in self.stages:
            load_strictly(_module(stage), weights[stage.spec["file"]], f"stage {stage.spec['file']}")

    def save(self, folder: str | Path, card: str = "", dtype: torch.dtype = torch.float32) -> None:
        """Saves the model as a folder: weights, configuration, manifest and model card.

        Args:
            folder: Where to.
            card: The model card, Markdown.
            dtype: Precision of the weights on disk; torch.float16 halves the size.
        """
        weights = {
            stage.spec["file"]: {k: v.to(dtype) for k, v in _module(stage).state_dict().items()}
            for stage in self.stages
        }
        write_model(Path(folder), self.spec, weights, card)

    def to(self, device: torch.device | str, precision: torch.dtype | None = None) -> "Cascade":
        """Moves the model.

        Args:
            device: Where it samples.
            precision: Reduced precision inside the networks, such as torch.bfloat16; None is float32.
        """
        for stage in self.stages:
            stage.denoiser.to(device)
            stage.conditions.to(device)
            stage.denoiser.precision = precision
        self.readers.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """Where the first stage's weights lie."""
        return next(self.stages[0].denoiser.parameters()).device

    @property
    def names(self) -> tuple[str, ...]:
        """The conditions of the first stage, in order."""
        return tuple(self.stages[0].conditions.keys())

    def open(self, *paths: str | Path) -> Float[Tensor, "b 3 h w"]:
        """Reads image files as this model takes them: upright, in sRGB, cropped to a square, in [-1, 1].

        Raises:
            Refused: A file is no picture that can be read.
        """
        size = self.stages[0].size
        images = [resize_and_crop(load_rgb(path, size).image, size) for path in paths]
        return torch.stack(images).to(self.device)

    def decompose(self, batch: Batch) -> Parts:
        """Takes images apart: every representation of this model that `batch` allows.

        Args:
            batch: ``image`` (b 3 h w) in [-1, 1], best of the first stage's size; ``caption`` and ``region`` if known.
        """
        return Parts(self.decomposition(batch))

    def read(self, batch: Batch) -> Parts:
        """Reads images, or what was asked of them, in the space that adherence is measured in."""
        return Parts(self.readers(batch))

    @torch.no_grad()
    def sample(
        self,
        reps: Representations,
        *,
        seeds: Sequence[int] = (0,),
        away: Representations | None = None,
        latent: Tensor | None = None,
        locked: tuple[Tensor, Tensor] | None = None,
        progress: Progress | None = None,
        **changes: Any,
    ) -> Float[Tensor, "b 3 h w"]:
        """Draws images that agree with `reps`.

        Args:
            reps: Representations of one row, or of one row a seed.
            seeds: One a picture; a picture depends on its seed alone, not on the others.
            away: What guidance leads away from (c1 of two-sided guidance, Composer eq. 2); None is nothing at all.
            latent: (b 3 h w) noise of unit variance in place of the seeds' for the first stage, from `invert`.
            locked: Image (3 h w) and keep map (1 h w) of the first stage's size, of one row or one a seed: where the
                map is 1 the image stays.
            progress: Wraps the steps of each stage.
            **changes: Fields of `Sampling` that differ from the first stage's own.

        Returns:
            Images in [-1, 1], a row a seed.

        Raises:
            KeyError: `reps` names a condition that no stage has.
            ValueError: The rows of `reps` are neither one nor one a seed.
        """
        self._check(reps, len(seeds))
        self._check(away or {}, len(seeds))
        image: Tensor | None = None
        for i, stage in enumerate(self.stages):
            setting = replace(stage.sampling, **changes) if i == 0 else stage.sampling
            own: Representations = {} if image is None else {"low_res": image}
            denoise = self._denoise(stage, setting, {**reps, **own}, {**(away or {}), **own})
            if locked is not None and i == 0:
                denoise = lock(denoise, locked[0].to(self.device), locked[1].to(self.device))
            sigmas = samplers.karras_sigmas(setting.steps)
            noise = samplers.latents(seeds, (3, stage.size, stage.size), self.device)
            x = (latent.to(self.device) if latent is not None and i == 0 else noise) * sigmas[0]
            image = _run(setting.sampler, denoise, x, sigmas, seeds, progress).clamp(-1, 1)
        assert image is not None
        return image

    @torch.no_grad()
    def invert(
        self,
        image: Float[Tensor, "b 3 h w"],
        reps: Representations,
        steps: int = 50,
        progress: Progress | None = None,
    ) -> Float[Tensor, "b 3 h w"]:
        """Finds the latent from which `reps` gives `image` back (Composer, section 3.4), for the first stage.

        Heun's method, without guidance or thresholds: at 50 steps Euler (DDIM) errs two hundred times as much.

        Returns:
            Noise of about unit variance, for `sample(..., latent=...)`.
        """
        self._check(reps, len(image))
        stage = self.stages[0]
        sigmas = samplers.karras_sigmas(steps)[:-1].flip(0)
        denoise = guide(stage.denoiser, [Term(stage.encode(reps), 1.0)])
        extra: dict[str, Any] = {} if progress is None else {"progress": progress}
        return samplers.heun(denoise, image.to(self.device), sigmas, **extra) / sigmas[-1]

    def _denoise(self, stage: Stage, setting: Sampling, toward: Representations, away: Representations) -> Denoise:
        w = setting.guidance
        terms = [Term(stage.encode(toward), w), Term(stage.encode(away), 1.0 - w)]
        return threshold(guide(stage.denoiser, terms), setting.percentile)

    def _check(self, reps: Representations, rows: int) -> None:
        known = {name for stage in self.stages for name in stage.conditions}
        unknown = sorted(reps.keys() - known)
        if unknown:
            raise KeyError(f"this model has no condition {', '.join(unknown)}; it has {', '.join(sorted(known))}")
        wrong = {name: len(value) for name, value in reps.items() if len(value) not in (1, rows)}
        if wrong:
            raise ValueError(f"expected representations of 1 or {rows} rows (one a seed), found {wrong}")


def _module(stage: Stage) -> torch.nn.Module:
    """The stage's weights under the names that its file has."""
    return torch.nn.ModuleDict({"denoiser": stage.denoiser, "conditions": stage.conditions})


def _run(
    name: SamplerName, denoise: Denoise, x: Tensor, sigmas: Tensor, seeds: Sequence[int], progress: Progress | None
) -> Tensor:
    extra: dict[str, Any] = {} if progress is None else {"progress": progress}
    if name == "ancestral":
        return samplers.ancestral(denoise, x, sigmas, seeds, **extra)
    sampler: samplers.Sampler = getattr(samplers, name)
    return sampler(denoise, x, sigmas, **extra)
