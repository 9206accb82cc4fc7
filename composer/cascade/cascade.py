"""Recombination: representations in, image out, through one or more stages."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from composer.cascade.any_stage import AnyStage, Settings
from composer.cascade.asking import require_names, require_options, to_composition, to_seeds
from composer.cascade.assembling import Addon
from composer.cascade.composition import Composition
from composer.cascade.images import Images
from composer.cascade.options import SampleOptions
from composer.cascade.parts import Parts
from composer.cascade.recipe import Origin
from composer.cascade.stage import sizes_of
from composer.cascade.start import InitialNoise, SmallImage
from composer.cascade.taking import Picture, open_pictures, to_batch, to_representations
from composer.cascade.token_stage import build_stage
from composer.decomposition import Batch, Decomposer, Decomposition, Representations, draw
from composer.diffusion.samplers import Progress
from composer.images.reading import File, fit
from composer.storage.building import build
from composer.storage.finding import find_model
from composer.storage.folder import STRANGERS_FILE, read_model, read_strangers, write_model
from composer.storage.formats import check_model
from composer.storage.hub import push_model
from composer.storage.loading import load_strictly, require_fit
from composer.storage.pretrained import fetching

STREAM = 800  # of `draw`, and the numbers above it


class Cascade:
    """A model: its stages, and the decomposers that take images apart.

    Attributes:
        weaker: The weaker model that guidance leads away from (see `lead_away_from`), or None.
        folder: Where it was loaded from; None for a model that was not.
        strangers: The readers' representations of held-out images, which have nothing to do with a request: their
            distance from it is what chance gives. Empty if the model's folder has none.

    Args:
        stages: From the smallest to the largest; each later one reads the image before it as ``low_res``.
        decomposition: Decomposers by the name of their condition.
        readers: Decomposers that measure adherence; for a name that is missing here, that of `decomposition`.
        sha256: Identifies the exact state that was loaded; empty for a model that was never saved.
    """

    def __init__(
        self,
        stages: Sequence[AnyStage[Any]],
        decomposition: Decomposition,
        readers: Decomposition,
        sha256: str = "",
    ):
        if not stages:
            raise ValueError("a cascade needs at least one stage")
        for before, stage in pairwise(stages):
            if stage.low_res is None or stage.size != before.size * stage.low_res.scale:
                found = "reads no smaller image" if stage.low_res is None else f"enlarges {stage.low_res.scale} times"
                raise ValueError(
                    f"stage {stage.name} ({stage.size} px) cannot follow {before.name} ({before.size} px): it {found}"
                )
        self.stages, self.decomposition, self.sha256 = tuple(stages), decomposition, sha256
        self.strangers = Parts()
        self.readers = Decomposition({**dict(decomposition.named()), **dict(readers.named())}, decomposition.source)
        self.spec: dict[str, Any] = {}
        self.weaker: Cascade | None = None
        self.folder: Path | None = None

    def __repr__(self) -> str:
        stages = "; ".join(f"{s.name} {s.size} px: {', '.join(s.conditions)}" for s in self.stages)
        return f"Cascade({self.spec.get('name', 'without a name')}: {stages})"

    def lead_away_from(self, weaker: "Cascade | None") -> None:
        """Guides away from a weaker model instead of the unconditional estimate (autoguidance, Karras et al. 2024).

        Both have the same conditions, so that they differ only by the weaker one's larger errors.

        Args:
            weaker: The same architecture, trained less; stages that it lacks are guided as usual. None turns it off.

        Raises:
            ValueError: Its stages differ in size, conditions or latents, or have no denoiser.
        """
        pairs = [(own, s) for own in self.stages for s in (weaker.stages if weaker else ()) if own.name == s.name]
        if weaker is not None and not pairs:
            raise ValueError(f"autoguidance needs a model with a stage {' or '.join(s.name for s in self.stages)}")
        for own, other in pairs:
            own.require_weaker(other)
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
        stages = [build_stage(stage, plugins, folder) for stage in spec["stages"]]

        def all_of(key: str) -> Decomposition:
            made = {k: build(v, Decomposer, plugins, folder) for k, v in spec.get(key, {}).items()}
            return Decomposition(made, spec.get("source"))

        cascade = cls(stages, all_of("decomposers"), all_of("readers"), sha256)
        cascade.spec, cascade.folder = dict(spec), folder
        return cascade

    @classmethod
    def load(cls, folder: str | Path, plugins: Collection[str] = (), network: bool = False) -> "Cascade":
        """Loads a model from its folder, or by its name: an included one, or one on the Hugging Face hub.

        Args:
            folder: The model's folder; ``scenes256``, which is included; or ``owner/name@revision`` on the hub, where
                only a commit as revision always names the same model. Without a revision the newest commit is taken,
                and logged. A local folder of that name takes precedence over the hub.
            plugins: Modules that the user trusts.
            network: Whether a model on the hub, and weights that a model names, may be downloaded if they are not on
                this machine yet.

        Raises:
            FileNotFoundError: There is no model at that place, or a file of it is missing or cannot be fetched.
            ValueError: Files are damaged, weights and configuration do not belong together, or the configuration
                names something that is not on the closed list.
        """
        path = find_model(folder, network)
        config, weights, sha256 = read_model(path, network=network)
        cascade = cls.from_weights(config, weights, plugins, path, sha256, network)
        cascade.strangers = Parts(read_strangers(path))
        return cascade

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
        """Builds a cascade with its weights, after checking that they fit and before it allocates memory.

        Args:
            spec: A model's configuration.
            weights: File name of a stage -> its weights.
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
        """Loads weights into the stages.

        Args:
            weights: File name of a stage -> its weights.

        Raises:
            ValueError: They do not fit this configuration.
        """
        for stage in self.stages:
            load_strictly(stage.weights(), weights[stage.spec["file"]], f"stage {stage.spec['file']}")

    def save(
        self,
        folder: str | Path,
        card: str = "",
        dtype: torch.dtype = torch.float32,
        addon: Addon | None = None,
    ) -> None:
        """Saves the model as a folder: weights, configuration, manifest and model card.

        Args:
            folder: Where to.
            card: The model card, Markdown.
            dtype: Precision of the weights on disk; torch.float16 halves the size.
            addon: Saves only what this model adds to another, and which one that is; None saves all of it.
        """
        weights = {stage.spec["file"]: stage.weights().state_dict() for stage in self.stages}
        spec = self.spec
        if addon is not None:
            weights, spec = addon.added, {**spec, "base": addon.base}
        halves = {file: {k: v.to(dtype) for k, v in tensors.items()} for file, tensors in weights.items()}
        more = {STRANGERS_FILE: dict(self.strangers)} if self.strangers else {}
        write_model(Path(folder), spec, halves | more, card)

    def push(
        self,
        repo: str,
        *,
        message: str = "Upload the model",
        private: bool | None = None,
        card: str = "",
        dtype: torch.dtype = torch.float32,
    ) -> str:
        """Uploads the model to the Hugging Face hub, its folder and card in one commit; log in first (`hf auth login`).

        Args:
            repo: ``owner/name``; it is made if it is missing.
            message: Of the commit.
            private: Whether a new repository is private; None leaves it to the owner's settings there.
            card: See `save`; an empty one keeps the card that the model was loaded with.
            dtype: See `save`.

        Returns:
            The address of the commit.

        Raises:
            ValueError: The model has files of a kind that is not fetched from the hub, or is too large.
            OSError: The hub cannot be reached, or refuses.
        """
        return push_model(repo, lambda at: self.save(at, card, dtype), self.spec, self.folder, message, private)

    def to(self, device: torch.device | str, precision: torch.dtype | None = None) -> "Cascade":
        """Moves the model to a device, and sets its precision.

        Args:
            device: Where it samples.
            precision: Reduced precision inside the networks, such as torch.bfloat16; None is float32.
        """
        for stage in self.stages:
            stage.to(device, None if precision == torch.float32 else precision)
        self.readers.to(device)
        if self.weaker is not None:
            self.weaker.to(device, precision)
        return self

    @property
    def precision(self) -> torch.dtype | None:
        """The reduced precision inside the networks; None is float32."""
        return self.stages[0].precision

    @property
    def device(self) -> torch.device:
        """Where the first stage's weights lie."""
        return self.stages[0].device

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the conditions that a user can set, in order."""
        every = dict.fromkeys(name for stage in self.stages for name in stage.conditions)
        return tuple(name for name in every if name != "low_res")

    @property
    def sight(self) -> int:
        """Side in pixels of the square pictures that the model is best given: what it draws, or what its decomposers
        read."""
        return max(self.stages[0].size, self.decomposition.source or 0)

    def open(self, *paths: File) -> Float[Tensor, "b 3 h w"]:
        """Reads image files as this model takes them: upright, in sRGB, cropped to a square, in [-1, 1].

        Raises:
            Refused: A file cannot be read as a picture.
        """
        return open_pictures(paths, self.stages[0].size).to(self.device)

    def decompose(self, what: Batch | Picture | Sequence[Picture], caption: str | Sequence[str] | None = None) -> Parts:
        """Computes all representations of images that this model has conditions for.

        Args:
            what: A picture or several: image files, pictures of Pillow, arrays (h w 3) of uint8, tensors (3 h w) in
                [-1, 1]; they are cropped to squares of the first stage's size. Or a batch: ``image`` (b 3 h w) in
                [-1, 1], best of that size; ``caption`` and ``region`` if known.
            caption: What the pictures show, if known: one text for all, or one per picture.

        Raises:
            Refused: A file cannot be read as a picture.
            ValueError: A value is no picture.
        """
        batch = to_batch(what, caption, self.sight)
        if not isinstance(what, Mapping):
            batch["image"] = batch["image"].to(self.device)
            batch = self._with_source(batch)
        return Parts.of(self.decomposition(batch), self.decomposition)

    def read(self, batch: Batch, names: Collection[str] | None = None) -> Parts:
        """Computes the readers' representations of images or captions, by which adherence is measured.

        Images of another size are resized to the first stage's, which is where most conditions act.

        Args:
            batch: As in `decompose`.
            names: Which ones, if the batch allows; None is all.
        """
        return Parts(self.readers(self._with_source(batch), names))

    def _with_source(self, batch: Batch) -> Batch:
        """Resizes a batch's images to the first stage's size, and keeps what the readers read as ``source``."""
        if "image" not in batch:
            return batch
        size, source = self.stages[0].size, batch.get("source", batch["image"])
        return {**batch, "image": fit(batch["image"], (size, size)), "source": source}

    @property
    def _named(self) -> dict[str, str]:
        return {"name": self.spec.get("name", ""), "sha256": self.sha256}

    @property
    def autoguidance(self) -> dict[str, str] | None:
        """Name and SHA-256 of the model that guidance leads away from, if there is one."""
        return None if self.weaker is None else self.weaker._named

    @property
    def identity(self) -> str:
        """Identifies this model's exact state: its SHA-256, or a name for this object if it was never saved."""
        return self.sha256 or f"unsaved-{id(self)}"

    @torch.no_grad()
    def sample(
        self,
        what: Composition | Mapping[str, Tensor | str] | None = None,
        seeds: Sequence[int] | int = 0,
        options: SampleOptions | None = None,
        *,
        progress: Progress | None = None,
        **conditions: Tensor | str,
    ) -> Float[Images, "b 3 h w"]:
        """Draws images, one stage after the other.

        Conditions are given as text, ``model.sample(caption="a red cube", palette="#aa3311", seeds=[0, 1])``; as the
        parts of images, ``model.sample(shapes | looks)``; or as a `Composition`, which has all further options.

        Args:
            what: Representations to follow, each with one row or one row per seed, or texts in their place; or a
                composition of them.
            seeds: One per picture; a picture depends on its own seed alone, not on the others.
            options: How to sample; overrides the settings of the model and of the composition.
            progress: Wraps the sequence of steps of each stage, to show progress.
            **conditions: Further representations, or texts, by the name of their condition.

        Returns:
            Images in [-1, 1], one row per seed: a tensor with a method to save it, ``images.save("out.png")``.

        Raises:
            KeyError: No stage has such a condition; a strength is of a condition that is not given; no stage has such
                a name.
            ValueError: The number of rows is wrong, a stage cannot draw that size, the initial noise is of another
                model or size, or guidance would lead away from two things at once.
        """
        seeds = to_seeds(seeds)
        require_options(options)
        asked = self._resolved(self.ask(what, **conditions), seeds)
        how = asked.options | options
        image = self._small(asked, len(seeds))
        chain, settings = self._chain(how.until, image), self._settings(how, image)
        for stage, size in zip(chain, sizes_of(chain, how.size, image), strict=True):
            image = self._draw(stage, size, settings[stage.name], asked, seeds, image, progress).clamp(-1, 1)
        assert image is not None
        return Images.of(image, self._origin(asked, seeds, settings, how), tuple(range(len(seeds))))

    def origin(self, what: Composition, seeds: Sequence[int], options: SampleOptions | None = None) -> Origin:
        """Records how `sample` draws the pictures of a composition.

        Args:
            what: What is asked, resolved, of one row or of one per seed.
            seeds: One per picture.
            options: As in `sample`.
        """
        return self._origin(what, seeds, self.settings(what, options), what.options | options)

    def _origin(
        self, asked: Composition, seeds: Sequence[int], settings: Mapping[str, Settings], how: SampleOptions
    ) -> Origin:
        return Origin(
            model=self._named,
            autoguidance=self.autoguidance,
            composition=asked,
            seeds=tuple(seeds),
            settings=settings,
            size=how.size,
            precision=self.precision,
            device=self.device.type,
        )

    def _draw(
        self,
        stage: AnyStage[Any],
        size: tuple[int, int],
        how: Settings,
        asked: Composition,
        seeds: Sequence[int],
        image: Tensor | None,
        progress: Progress | None,
    ) -> Tensor:
        """Draws the images of one stage; `image` is that of the stage before."""
        noise_seeds, corruption_seeds = (_salt(seeds, 2 * self.stages.index(stage) + k) for k in (0, 1))
        weaker = next((s for s in self.weaker.stages if s.name == stage.name), None) if self.weaker else None
        return stage.draw(asked, size, how, (noise_seeds, corruption_seeds), image, weaker, progress)

    def _small(self, asked: Composition, rows: int) -> Tensor | None:
        """The image to enlarge, if sampling starts with one; one row per seed."""
        if not isinstance(asked.start, SmallImage):
            return None
        return asked.start.image.expand(rows, -1, -1, -1).to(self.device)

    def settings(self, what: Composition | None = None, options: SampleOptions | None = None) -> dict[str, Settings]:
        """The sampling settings of each stage that `sample` would run.

        Args:
            what: As in `sample`.
            options: As in `sample`.

        Raises:
            KeyError: No stage has such a name.
            ValueError: The stage's settings have no such field, or a stage cannot use such tiles.
        """
        asked = what or Composition()
        return self._settings(asked.options | options, self._small(asked, 1))

    def _settings(self, options: SampleOptions, image: Tensor | None) -> dict[str, Settings]:
        chain, given = self._chain(options.until, image), dict(options.stages)
        if unknown := sorted(given.keys() - {stage.name for stage in self.stages}):
            raise KeyError(f"no stage {', '.join(unknown)}; this model has {', '.join(s.name for s in self.stages)}")
        given[chain[0].name] = {**options.first, **given.get(chain[0].name, {})}
        settings = {s.name: s.sampling.override(given.get(s.name, {}), f"stage {s.name}") for s in chain}
        for stage in chain:
            stage.require(settings[stage.name])  # fails before an earlier stage has spent time
        return settings

    def ignores_seeds(self, what: Composition, options: SampleOptions | None = None) -> bool:
        """Whether the first stage draws the same for all seeds: it has one initial noise, and adds no fresh noise."""
        if not isinstance(what.start, InitialNoise) or len(what.start.noise) > 1:
            return False
        return not self.settings(what, options)[self.stages[0].name].adds_noise

    def _chain(self, until: str | None, image: Tensor | None) -> tuple[AnyStage[Any], ...]:
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
    ) -> InitialNoise:
        """Finds the noise from which the first stage draws `image` again, given `reps` (Composer, section 3.4).

        By Heun's method, without guidance or thresholds; at 50 steps, Euler's error (DDIM) is 200 times as large.

        Args:
            image: Of the first stage's size.
            reps: Representations of the image (c1 in the paper), with one row or one row per image.
            steps: Of Heun's method.
            progress: Wraps the steps.

        Returns:
            Noise of about unit variance, for ``Composition(start=...)``. Sampling by Heun's method with as many steps
            and guidance 1 reproduces the image.

        Raises:
            ValueError: The first stage has no denoiser.
        """
        reps = self._checked(reps, len(image))
        return InitialNoise(self.stages[0].invert(image.to(self.device), reps, steps, progress), self.identity)

    def ask(
        self, what: Composition | Mapping[str, Tensor | str] | None = None, **conditions: Tensor | str
    ) -> Composition:
        """Converts the arguments of `sample` to a composition: texts become representations.

        Args:
            what: As in `sample`.
            **conditions: As in `sample`.

        Raises:
            KeyError: No stage has such a condition.
            ValueError: A value is neither a representation nor text that can be converted to one.
        """
        asked, given = to_composition(what)
        given |= conditions
        require_names(given, self.names)
        parts = Parts.of(to_representations(given, self.decomposition), self.decomposition)
        mine = asked.drop(*conditions)
        to_measure = conditions if asked.wanted else given
        words = {name: value for name, value in given.items() if isinstance(value, str)}
        draw_parts = asked.draw_parts
        return replace(
            asked,
            parts=parts,
            wanted=mine.wanted | self._as_read(to_measure, parts),
            sources={**mine.sources, **words},
            draw_parts=draw_parts and (lambda seeds: draw_parts(seeds).drop(*conditions)),
        )

    @torch.no_grad()
    def _as_read(self, given: Mapping[str, Tensor | str], parts: Parts) -> Parts:
        """The given representations in the readers' space, as far as that is known without the image."""
        own, readers = dict(self.decomposition.named()), dict(self.readers.named())
        read: dict[str, Tensor] = {}
        for name, value in given.items():
            if name in own and readers[name] is own[name]:
                read[name] = parts[name]
            elif name in readers and isinstance(value, str):
                read[name] = readers[name].from_text(value)
        return Parts(read)

    def _resolved(self, asked: Composition, seeds: Sequence[int]) -> Composition:
        """Resolves what is asked, and checks all its representations.

        Raises:
            KeyError: See `sample`.
            ValueError: See `sample`.
        """
        parts = self._checked(asked.resolve(seeds).parts, len(seeds))
        if unknown := sorted(asked.strengths.keys() - parts.keys()):
            given = ", ".join(parts) or "none"
            raise KeyError(
                f"there is a strength for {', '.join(unknown)}, which is not among the given conditions ({given}): "
                "give it, or leave out its strength"
            )
        if isinstance(asked.start, InitialNoise):
            asked.start.require(self.identity, len(seeds))
        return replace(
            asked,
            parts=parts,
            draw_parts=None,
            away=None if asked.away is None else self._checked(asked.away, len(seeds)),
            also=tuple((self._checked(other, len(seeds)), weight) for other, weight in asked.also),
        )

    def _checked(self, given: Mapping[str, Tensor | str], rows: int) -> Parts:
        """The same representations, all of one row or all of as many as there are pictures."""
        require_names(given, self.names)
        reps = to_representations(given, self.decomposition)
        wrong = {name: len(value) for name, value in reps.items() if len(value) not in (1, rows)}
        if wrong:
            raise ValueError(f"expected representations of 1 or {rows} rows (one per seed), found {wrong}")
        most = max(map(len, reps.values()), default=1)
        return Parts.of({n: value.expand(most, *value.shape[1:]) for n, value in reps.items()}, self.decomposition)


def _network_of(spec: Mapping[str, Any], plugins: Collection[str], folder: Path | None) -> nn.Module:
    """A stage's networks, as its weights name them."""
    return build_stage(spec, plugins, folder).weights()


def _salt(seeds: Sequence[int], stream: int) -> list[int]:
    """Derived seeds for all random numbers but the first stage's noise, which comes from the seeds themselves."""
    return list(seeds) if stream == 0 else draw(torch.tensor(seeds), STREAM + stream, 1 << 62).tolist()
