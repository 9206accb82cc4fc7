"""Recombination: representations in, image out, through one or more stages."""

import math
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from composer.cascade.parts import Latent, Parts
from composer.cascade.stage import Sampling, Stage, run_sampler, sizes_of
from composer.cascade.taking import Picture, open_pictures, to_batch, to_representations
from composer.decomposition import Batch, Decomposer, Decomposition, Representations, draw
from composer.diffusion import samplers
from composer.diffusion.denoiser import level
from composer.diffusion.guidance import Term, guide, lock, threshold
from composer.diffusion.samplers import Progress
from composer.diffusion.strength import Strength
from composer.images.reading import File, fit
from composer.storage.building import build
from composer.storage.finding import find_model
from composer.storage.folder import read_model, write_model
from composer.storage.formats import check_model
from composer.storage.loading import load_strictly, require_fit
from composer.storage.pretrained import fetching

STREAM = 800  # of `draw`, and the numbers above it


class Cascade:
    """Stages, and how their images are taken apart.

    Attributes:
        weaker: What guidance leads away from, see `lead_away_from`; None is nothing at all.

    Args:
        stages: From the smallest to the largest; each later one reads the image before it as ``low_res``.
        decomposition: Decomposers by the name of their condition.
        readers: What reads a result again for adherence; where a name is missing here its decomposer does.
        sha256: Names the exact state that was loaded; empty for a model that was never saved.
    """

    def __init__(self, stages: Sequence[Stage], decomposition: Decomposition, readers: Decomposition, sha256: str = ""):
        if not stages:
            raise ValueError("a cascade needs at least one stage")
        for before, stage in pairwise(stages):
            if stage.low_res is None or stage.size != before.size * stage.low_res.scale:
                found = "begins with noise alone" if stage.low_res is None else f"enlarges {stage.low_res.scale} times"
                raise ValueError(
                    f"stage {stage.name} ({stage.size} px) cannot follow {before.name} ({before.size} px): it {found}"
                )
        self.stages, self.decomposition, self.sha256 = tuple(stages), decomposition, sha256
        self.readers = Decomposition({**dict(decomposition.named()), **dict(readers.named())})
        self.spec: dict[str, Any] = {}
        self.weaker: Cascade | None = None

    def __repr__(self) -> str:
        stages = "; ".join(f"{s.name} {s.size} px: {', '.join(s.conditions)}" for s in self.stages)
        return f"Cascade({self.spec.get('name', 'without a name')}: {stages})"

    def lead_away_from(self, weaker: "Cascade | None") -> None:
        """Lets guidance lead away from a weaker model, in place of nothing (autoguidance, Karras et al. 2024).

        Both read the same conditions: what they differ in are the errors that the weaker one makes more often.

        Args:
            weaker: Of the same plan, trained less; stages of other names are guided as without it. None ends it.

        Raises:
            ValueError: Its stages are of another kind.
        """
        pairs = [(own, s) for own in self.stages for s in (weaker.stages if weaker else ()) if own.name == s.name]
        if weaker is not None and not pairs:
            raise ValueError(f"autoguidance needs a model with a stage {' or '.join(s.name for s in self.stages)}")
        for own, other in pairs:
            if own.size != other.size or own.conditions.keys() != other.conditions.keys():
                raise ValueError(
                    f"autoguidance needs a model whose stage {own.name} draws {own.size} px from "
                    f"{', '.join(own.conditions) or 'nothing'}; found {other.size} px, "
                    f"{', '.join(other.conditions) or 'nothing'}"
                )
        self.weaker = weaker

    @classmethod
    def from_spec(
        cls, spec: Mapping[str, Any], plugins: Collection[str] = (), folder: Path | None = None, sha256: str = ""
    ) -> "Cascade":
        """Builds a cascade with fresh weights from a model's configuration.

        Raises:
            ValueError: It is no such configuration, or names something that is not on the closed list.
        """
        check_model(spec)
        stages = [Stage.from_spec(stage, plugins, folder) for stage in spec["stages"]]

        def all_of(key: str) -> Decomposition:
            return Decomposition({k: build(v, Decomposer, plugins, folder) for k, v in spec.get(key, {}).items()})

        cascade = cls(stages, all_of("decomposers"), all_of("readers"), sha256)
        cascade.spec = dict(spec)
        return cascade

    @classmethod
    def load(cls, folder: str | Path, plugins: Collection[str] = (), network: bool = False) -> "Cascade":
        """Loads a model's folder, or a model that the package ships by its name (``scenes256``).

        Args:
            folder: The model's folder or name.
            plugins: Modules that the user trusts.
            network: The model may fetch weights of others that it names and that are not on this machine yet.

        Raises:
            FileNotFoundError: There is no model at that place, or a file of it is missing.
            ValueError: Files are damaged, weights and configuration do not belong together, or the configuration
                names something that is not on the closed list.
        """
        path = find_model(folder)
        config, weights, sha256 = read_model(path)
        return cls.from_weights(config, weights, plugins, path, sha256, network)

    @classmethod
    def from_weights(
        cls,
        spec: Mapping[str, Any],
        weights: Mapping[str, Mapping[str, Tensor]],
        plugins: Collection[str] = (),
        folder: Path | None = None,
        sha256: str = "",
        network: bool = False,
    ) -> "Cascade":
        """Builds a cascade with its weights, of which it makes sure before it takes any memory.

        Args:
            spec: A model's configuration.
            weights: Those of each stage, by the name of its file.
            plugins: Modules that the user trusts.
            folder: The model's folder, if it has one.
            sha256: See `Cascade`.
            network: See `load`.

        Raises:
            ValueError: See `load`.
        """
        check_model(spec)
        with fetching(network):
            for stage in spec["stages"]:
                make = partial(_network_of, stage, plugins, folder)
                require_fit(make, weights[stage["file"]], f"stage {stage['file']}")
            cascade = cls.from_spec(spec, plugins, folder, sha256)
        cascade.load_weights(weights)
        return cascade

    def load_weights(self, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Loads each stage's weights, by the name of its file.

        Raises:
            ValueError: They are not those of this configuration.
        """
        for stage in self.stages:
            load_strictly(stage.weights(), weights[stage.spec["file"]], f"stage {stage.spec['file']}")

    def save(self, folder: str | Path, card: str = "", dtype: torch.dtype = torch.float32) -> None:
        """Saves the model as a folder: weights, configuration, manifest and model card.

        Args:
            folder: Where to.
            card: The model card, Markdown.
            dtype: Precision of the weights on disk; torch.float16 halves the size.
        """
        weights = {
            stage.spec["file"]: {k: v.to(dtype) for k, v in stage.weights().state_dict().items()}
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
            stage.denoiser.precision = None if precision == torch.float32 else precision
        self.readers.to(device)
        if self.weaker is not None:
            self.weaker.to(device, precision)
        return self

    @property
    def precision(self) -> torch.dtype | None:
        """The reduced precision inside the networks; None is float32."""
        return self.stages[0].denoiser.precision

    @property
    def device(self) -> torch.device:
        """Where the first stage's weights lie."""
        return next(self.stages[0].denoiser.parameters()).device

    @property
    def names(self) -> tuple[str, ...]:
        """The conditions that a person can ask for, in order."""
        every = dict.fromkeys(name for stage in self.stages for name in stage.conditions)
        return tuple(name for name in every if name != "low_res")

    def open(self, *paths: File) -> Float[Tensor, "b 3 h w"]:
        """Reads image files as this model takes them: upright, in sRGB, cropped to a square, in [-1, 1].

        Raises:
            Refused: A file is no picture that can be read.
        """
        return open_pictures(paths, self.stages[0].size).to(self.device)

    def decompose(self, what: Batch | Picture | Sequence[Picture], caption: str | None = None) -> Parts:
        """Takes images apart: every representation of this model that they allow.

        Args:
            what: A picture or several: image files, pictures of Pillow, arrays (h w 3) of uint8, tensors (3 h w) in
                [-1, 1]; they are cropped to squares of the first stage's size. Or a batch: ``image`` (b 3 h w) in
                [-1, 1], best of that size; ``caption`` and ``region`` if known.
            caption: What the pictures show, if known.

        Raises:
            Refused: A file is no picture that can be read.
            ValueError: Something is no picture.
        """
        batch = to_batch(what, caption, self.stages[0].size)
        if not isinstance(what, Mapping):
            batch["image"] = batch["image"].to(self.device)
        return Parts(self.decomposition(batch))

    def read(self, batch: Batch, names: Collection[str] | None = None) -> Parts:
        """Reads images, or what was asked of them, in the space that adherence is measured in.

        Images of another size are read at the first stage's, which is where most conditions act.

        Args:
            batch: As in `decompose`.
            names: What to read, as far as the batch allows; None reads all.
        """
        size = self.stages[0].size
        if "image" in batch:
            batch = {**batch, "image": fit(batch["image"], (size, size))}
        return Parts(self.readers(batch, names))

    @property
    def identity(self) -> str:
        """Names this model's exact state: its SHA-256, or for one that was never saved this very object."""
        return self.sha256 or f"unsaved-{id(self)}"

    @torch.no_grad()
    def sample(
        self,
        reps: Mapping[str, Tensor | str],
        *,
        seeds: Sequence[int] | int = (0,),
        away: Representations | None = None,
        also: Sequence[tuple[Representations, float]] = (),
        strengths: Mapping[str, Strength] | None = None,
        latent: Latent | Tensor | None = None,
        start: tuple[Float[Tensor, "#b 3 h w"], float] | None = None,
        locked: tuple[Tensor, Tensor] | None = None,
        image: Float[Tensor, "#b 3 h w"] | None = None,
        size: tuple[int, int] | None = None,
        until: str | None = None,
        progress: Progress | None = None,
        **changes: Any,
    ) -> Float[Tensor, "b 3 h2 w2"]:
        """Draws images that agree with `reps`, one stage after the other.

        Args:
            reps: Representations of one row, or of one row a seed; or the words that give them, such as
                ``{"caption": "a red cube", "palette": "#aa3311"}``.
            seeds: One a picture; a picture depends on its seed alone, not on the others.
            away: What guidance leads away from (c1 of two-sided guidance, Composer eq. 2); None is nothing at all.
            also: Further representations and what they weigh, each against what guidance leads away from: a positive
                weight asks for them as well (AND), a negative one for something else (NOT; Liu et al. 2022, eq. 11).
            strengths: How much, when and where single conditions of `reps` count; a condition without one counts fully.
            latent: Noise in place of the seeds' for the first stage, of one row or one a seed: what `invert` found, or
                (b 3 h w) of unit variance. At most one of `latent`, `start` and `image` is given.
            start: An image that the first stage starts from, and the noise level that it gets, as the cosine schedule's
                time in (0, 1]: the lower, the more of it stays, below about 0.8 its layout (SDEdit, Meng et al. 2022).
            locked: Image (b 3 h w) and keep map (b 1 h w) of any size, of one row or one a seed: where the map is 1 the
                image stays. Each stage holds it at its own size.
            image: Small images to enlarge, of one row or one a seed: the stages up to their size are left out.
            size: Height and width of the result; None is the last stage's square. Stages are trained on squares.
            until: Name of the stage to stop after; None runs all of them.
            progress: Wraps the steps of each stage.
            **changes: How the stages sample, see `settings`.

        Returns:
            Images in [-1, 1], a row a seed.

        Raises:
            KeyError: `reps` names a condition that no stage has, `strengths` one that `reps` has not, or a name is no
                stage's.
            ValueError: The rows of `reps` are neither one nor one a seed, a stage cannot draw that size, the latent is
                another model's or of another size, or guidance is to lead away from two things.
        """
        seeds = [seeds] if isinstance(seeds, int) else seeds
        reps, away = self._checked(reps, len(seeds)), self._checked(away or {}, len(seeds))
        further = [(self._checked(other, len(seeds)), weight) for other, weight in also]
        latent = self._own(latent, len(seeds))
        if sum(given is not None for given in (latent, start, image)) > 1:
            raise ValueError("expected one of latent, start and image at most: each says where the drawing begins")
        if start is not None and not 0 < start[1] <= 1:
            raise ValueError(f"expected to start at a time in (0, 1], found {start[1]}")
        if unknown := sorted((strengths or {}).keys() - reps.keys()):
            raise KeyError(f"a strength for {', '.join(unknown)}, but what is given is {', '.join(reps) or 'nothing'}")
        chain, settings = self._chain(until, image), self.settings(until=until, image=image, **changes)
        sizes = sizes_of(chain, size, image)
        image = None if image is None else image.expand(len(seeds), -1, -1, -1).to(self.device)
        for stage, place in zip(chain, sizes, strict=True):
            fresh, corrupting = (_salted(seeds, 2 * self.stages.index(stage) + k) for k in (0, 1))
            setting = settings[stage.name]
            own: Representations = {}
            if stage.low_res is not None:
                if image is None:
                    raise ValueError(f"stage {stage.name} enlarges: give it an image (image=...)")
                own = {"low_res": stage.low_res.corrupt(image, setting.augmentation, corrupting)}
            weaker = next((s for s in self.weaker.stages if s.name == stage.name), None) if self.weaker else None
            terms = stage.terms(reps, own, place, setting, away, strengths, further, weaker)
            denoise = threshold(guide(stage.estimator(setting.tile), terms), setting.percentile)
            if locked is not None:
                denoise = lock(denoise, *(x.to(self.device) for x in _fitted(locked, place)))
            sigmas = stage.denoiser.sigmas(setting.steps)
            first = stage.low_res is None
            noise = latent if first and latent is not None else samplers.latents(fresh, (3, *place))
            if noise.shape[1:] != (3, *place):
                raise ValueError(f"expected a latent of shape {(3, *place)}, found {tuple(noise.shape[1:])}")
            x = stage.denoiser.start(noise.to(self.device), sigmas[0], stage.encode(own, place))
            if first and start is not None:
                sigma = math.tan(math.pi / 2 * min(start[1], level(sigmas[:1]).item()))
                sigmas = torch.cat([sigmas.new_tensor([sigma]), sigmas[sigmas < sigma]])
                x = fit(start[0], place).to(self.device) + sigma * noise.to(self.device)
            image = run_sampler(setting, denoise, x, sigmas, fresh, progress).clamp(-1, 1)
        assert image is not None
        return image

    def settings(
        self,
        *,
        until: str | None = None,
        image: Tensor | None = None,
        stages: Mapping[str, Mapping[str, Any]] | None = None,
        **changes: Any,
    ) -> dict[str, Sampling]:
        """How each stage that `sample` runs is going to sample.

        Args:
            until: As in `sample`.
            image: As in `sample`.
            stages: Name of a stage -> fields of `Sampling` that differ from its own.
            **changes: The same for the first stage that runs.

        Raises:
            KeyError: A name is that of no stage.
            ValueError: There is no such field, or a stage cannot have such tiles.
        """
        chain, given = self._chain(until, image), dict(stages or {})
        if unknown := sorted(given.keys() - {stage.name for stage in self.stages}):
            raise KeyError(f"no stage {', '.join(unknown)}; this model has {', '.join(s.name for s in self.stages)}")
        given[chain[0].name] = {**changes, **given.get(chain[0].name, {})}
        settings = {s.name: s.sampling.changed(given.get(s.name, {}), f"stage {s.name}") for s in chain}
        for stage in chain:
            stage.estimator(settings[stage.name].tile)  # before an earlier stage has taken its time
        return settings

    def _chain(self, until: str | None, image: Tensor | None) -> tuple[Stage, ...]:
        """The stages that run."""
        names = [stage.name for stage in self.stages]
        if until is not None and until not in names:
            raise KeyError(f"no stage {until}; this model has {', '.join(names)}")
        last = len(names) if until is None else names.index(until) + 1
        first = 0
        if image is not None:
            side = min(image.shape[-2:])
            first = next(
                (i for i, s in enumerate(self.stages) if s.low_res and s.size // s.low_res.scale >= side), last
            )
        if first >= last:
            raise ValueError(f"no stage of {', '.join(names[:last])} enlarges such an image")
        return self.stages[first:last]

    @torch.no_grad()
    def invert(
        self,
        image: Float[Tensor, "b 3 h w"],
        reps: Representations,
        steps: int = 50,
        progress: Progress | None = None,
    ) -> Latent:
        """Finds the latent from which `reps` gives `image` back (Composer, section 3.4), for the first stage.

        Heun's method, without guidance or thresholds: at 50 steps Euler (DDIM) errs two hundred times as much.

        Args:
            image: Of the first stage's size.
            reps: What the image is under (c1), of one row or one an image.
            steps: Of Heun's method.
            progress: Wraps the steps.

        Returns:
            Noise of about unit variance, for ``sample(..., latent=...)``. What it is drawn with again matters: Heun's
            method, as many steps and guidance 1 give the image back.
        """
        reps = self._checked(reps, len(image))
        stage = self.stages[0]
        sigmas = stage.denoiser.sigmas(steps)[:-1].flip(0)
        denoise = guide(stage.denoiser, [Term(stage.encode(reps, (image.shape[2], image.shape[3])), 1.0)])
        extra: dict[str, Any] = {} if progress is None else {"progress": progress}
        return Latent(samplers.heun(denoise, image.to(self.device), sigmas, **extra) / sigmas[-1], self.identity)

    def _own(self, latent: Latent | Tensor | None, rows: int) -> Tensor | None:
        """The noise of a latent, a row a seed.

        Raises:
            ValueError: It is another model's, or has other rows.
        """
        if isinstance(latent, Latent):
            if latent.model != self.identity:
                raise ValueError(
                    "this latent was found by another model, for which it stands for another picture: invert the image "
                    f"with the model that draws (found by {latent.model[:12]}, this is {self.identity[:12]})"
                )
            latent = latent.noise
        if latent is not None and len(latent) not in (1, rows):
            raise ValueError(f"expected a latent of 1 or {rows} rows (one a seed), found {len(latent)}")
        return None if latent is None else latent.expand(rows, -1, -1, -1)

    def _checked(self, given: Mapping[str, Tensor | str], rows: int) -> Representations:
        """The same representations, all of one row or all of as many as there are pictures."""
        reps = to_representations(given, self.decomposition)
        if unknown := sorted(reps.keys() - set(self.names)):
            has = ", ".join(sorted(self.names)) or "none"
            raise KeyError(f"this model has no condition {', '.join(unknown)}; it has {has}")
        wrong = {name: len(value) for name, value in reps.items() if len(value) not in (1, rows)}
        if wrong:
            raise ValueError(f"expected representations of 1 or {rows} rows (one a seed), found {wrong}")
        most = max(map(len, reps.values()), default=1)
        return {name: value.expand(most, *value.shape[1:]) for name, value in reps.items()}


def _network_of(spec: Mapping[str, Any], plugins: Collection[str], folder: Path | None) -> nn.Module:
    """A stage's networks, as its weights name them."""
    return Stage.from_spec(spec, plugins, folder).weights()


def _salted(seeds: Sequence[int], stream: int) -> list[int]:
    """Seeds for what is drawn besides the first stage's noise, which is drawn from the seeds themselves."""
    return list(seeds) if stream == 0 else draw(torch.tensor(seeds), STREAM + stream, 1 << 62).tolist()


def _fitted(locked: tuple[Tensor, Tensor], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """A region lock at a stage's size; where a pixel is free in part, it is free."""
    image, keep = fit(locked[0], size), locked[1]
    if keep.shape[-2:] != size:
        keep = (F.interpolate(1 - keep, size, mode="bilinear", antialias=True) <= 0).to(keep)
    return image, keep
