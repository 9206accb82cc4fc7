"""How pictures were drawn, and the recipe that says so in a PNG."""

import base64
import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from composer.cascade.any_stage import Settings
from composer.cascade.composition import Composition
from composer.cascade.start import InitialNoise, NoisyImage, SmallImage
from composer.diffusion.strength import Strength

FORMAT = 2
"""Version of the recipes that are written. The oldest have none; each one includes the earlier ones."""

PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Name of a precision in recipes -> dtype inside the networks."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """How pictures were drawn. It has no network, so that a picture keeps no model in memory.

    Attributes:
        model: Name and SHA-256 of the model.
        autoguidance: The same of the model that guidance led away from; None if there was none.
        composition: What was asked, resolved.
        seeds: One per picture.
        settings: How each stage sampled, by its name.
        size: Height and width that were asked for; None is the model's own.
        precision: Reduced precision inside the networks; None is float32.
        device: The kind of device, such as ``cpu``.
    """

    model: dict[str, str]
    autoguidance: dict[str, str] | None
    composition: Composition
    seeds: tuple[int, ...]
    settings: Mapping[str, Settings]
    size: tuple[int, int] | None
    precision: torch.dtype | None
    device: str

    @property
    def can_be_redrawn(self) -> bool:
        """Whether a recipe is enough: it contains neither an image to upsample nor one that was edited."""
        return self.composition.kept is None and not isinstance(self.composition.start, SmallImage)

    def recipe(self, i: int = 0) -> dict[str, Any]:
        """Writes down how picture i was drawn, in plain JSON values; hashes, names and texts, never paths."""
        composition = self.composition.row(i)
        start, away = composition.start, composition.away
        tensors: dict[str, Tensor] = {}  # each once, however often it is used

        def held(reps: Mapping[str, Tensor]) -> dict[str, str]:
            return {name: hold(value) for name, value in reps.items()}

        def hold(value: Tensor) -> str:
            own = value.detach().cpu().contiguous()
            key = hashlib.sha256(save({"": own})).hexdigest()[:16]
            tensors[key] = own
            return key

        def strength(given: Strength) -> dict[str, Any]:
            region = None if given.region is None else hold(given.region)
            return {"weight": given.weight, "interval": list(given.interval), "region": region}

        return {
            "format": FORMAT,
            "model": self.model,
            "autoguidance": self.autoguidance,
            "seed": self.seeds[i],
            "stages": {name: asdict(setting) for name, setting in self.settings.items()},
            "size": None if self.size is None else list(self.size),
            "sources": dict(composition.sources),
            "representations": held(composition.parts),
            "wanted": held(composition.wanted),
            "strengths": {name: strength(given) for name, given in composition.strengths.items()},
            "away": None if away is None else held(away),
            "also": [[held(parts), weight] for parts, weight in composition.also],
            "latent": hold(start.noise) if isinstance(start, InitialNoise) else None,
            "start": [hold(start.image), start.time] if isinstance(start, NoisyImage) else None,
            "tensors": pack(tensors),
            "precision": name_precision(self.precision),
            "device": self.device,
            "versions": versions(),
        }


def name_precision(precision: torch.dtype | None) -> str:
    """What recipes call a precision."""
    return {dtype: name for name, dtype in PRECISIONS.items()}[precision]


def versions() -> dict[str, str]:
    """The versions of packages on which a picture's last bits depend."""
    return {name: version(name) for name in ("composer-diffusion", "torch")}


def pack(reps: Mapping[str, Tensor]) -> str:
    """Encodes tensors as text, without loss."""
    return base64.b64encode(zlib.compress(save({k: v.cpu() for k, v in reps.items()}), 9)).decode()
