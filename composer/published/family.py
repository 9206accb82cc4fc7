"""What is known of each family of published networks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from composer.decomposition import Decomposer
from composer.names import SEMANTICS, TEXT
from composer.published.engine import Row
from composer.storage.building import build
from composer.storage.folder import PRIOR_FILE

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Needs:
    """What a model needs besides the published weights, as its decomposers name it (see `storage.pretrained.locate`).

    Attributes:
        merges: GPT-2's merges, which GLIDE's captions are split by.
        clip: The CLIP whose embeddings Karlo's and Alibaba's networks read, and that measures whether GLIDE's pictures
            show their captions; None is each family's own, and none for GLIDE.
    """

    merges: str = "hub:openai-community/gpt2@607a30d783dfa663caf39e06633721c8d4cfcd7e:merges.txt"
    clip: str | None = None


@dataclass(frozen=True)
class Family:
    """A family of published networks.

    Attributes:
        about: What it is, in a line.
        licence: Of the released weights, and what it allows.
        released: Number of tensors and of values of each released network, by the name of its file.
        marks: Names of tensors by which a file is recognised; by which the first file is, of several.
        size: Side of the images that it draws, in pixels.
        configure: Makes a model's configuration of the shapes of the weights, the size, and what else is needed.
        rows: The rows of a network of ours, whose modules are named as in a model's file.
        prefix: Of the names in the first file; removed.
        left: Names of theirs that are not needed -> why.
        renamed: Parts of names in older files of theirs -> what newer files have instead.
        channels: Channels that the first convolution reads; None for any.
        check: Raises a ValueError where what a model needs besides does not belong to the weights.
        parts: The files that such a network is made of, in order: what is put before the names in each, to keep them
            apart -> what it is, for messages.
    """

    about: str
    licence: str
    released: Mapping[str, tuple[int, int]]
    marks: tuple[str, ...]
    configure: Callable[[Tensors, int, Needs], dict[str, Any]]
    rows: Callable[[nn.Module, Needs], list[Row]]
    size: int = 64
    prefix: str = ""
    left: Mapping[str, str] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    channels: int | None = None
    check: Callable[[Tensors, Needs], None] = lambda tensors, needs: None
    parts: Mapping[str, str] = field(default_factory=lambda: {"": "the network"})

    def rename(self, name: str) -> str:
        """The name that newer files of theirs have."""
        for old, new in self.renamed.items():
            name = name.replace(old, new)
        return name

    def recognises(self, tensors: Tensors) -> bool:
        """Whether these could be weights of this family, by their names and the channels of the first layer."""
        first = tensors.get("input_blocks.0.0.weight", tensors.get("conv_in.weight"))
        fits = self.channels is None or (first is not None and first.shape[1] == self.channels)
        return fits and all(name in tensors for name in self.marks)


def unet(plan: Mapping[str, Any]) -> dict[str, Any]:
    """The specification of a U-Net."""
    return {"class_path": "composer.UNet", "init_args": dict(plan)}


def denoiser(network: Mapping[str, Any], noise: str) -> dict[str, Any]:
    """The specification of a published denoiser: it estimates the noise, and is told the step of its schedule.

    Args:
        network: The plan of a U-Net, or the specification of another network.
        noise: The schedule.
    """
    arguments = {
        "network": network if "class_path" in network else unet(network),
        "noise": {"class_path": f"composer.diffusion.denoiser.{noise}"},
        "target": "eps",
        "sigma_data": 1.0,
        "time": "step",
    }
    return {"class_path": "composer.Denoiser", "init_args": arguments}


def configuration(
    size: int,
    denoiser: Mapping[str, Any],
    conditions: Mapping[str, Any],
    decomposers: Mapping[str, Any],
    guidance: float = 1.0,
    scale: int = 0,
    readers: Mapping[str, Any] | None = None,
    steps: int = 30,
) -> dict[str, Any]:
    """The configuration of a model of one stage.

    Args:
        size: Side of its images, in pixels.
        denoiser: Its specification.
        conditions: Name -> specification.
        decomposers: The same, of what reads images and captions.
        guidance: Weight of guidance unless a person says another.
        scale: How many times a stage enlarges; 0 for one that draws from noise alone.
        readers: As `decomposers`, of what measures results, where that is something else.
        steps: Sampling steps unless a person says another number.
    """
    low_res = {"low_res": {"class_path": "composer.cascade.low_res.LowRes", "init_args": {"scale": scale}}}
    stage = {
        "file": f"up{size}.safetensors" if scale else "base.safetensors",
        "size": size,
        "denoiser": denoiser,
        "conditions": conditions,
        "sampling": {"guidance": guidance, "steps": steps},
    }
    return {"stages": [stage | (low_res if scale else {})], "decomposers": decomposers, "readers": readers or {}}


def prior_configuration(
    arguments: Mapping[str, Any], text: Mapping[str, Any], semantics: Mapping[str, Any]
) -> dict[str, Any]:
    """The configuration of a published prior by diffusion, which is told the step of its schedule.

    Args:
        arguments: Of `DiffusionPrior`.
        text: Specification of what encodes captions.
        semantics: The same, of what read the image embeddings.
    """
    noise = {"class_path": "composer.diffusion.denoiser.SquaredCosine", "init_args": {}}
    own = {**arguments, "noise": noise, "time": "step", "candidates": 1}
    prior = {"file": PRIOR_FILE, "class_path": "composer.prior.DiffusionPrior", "init_args": own}
    return {"priors": [prior], "decomposers": {TEXT: dict(text), SEMANTICS: dict(semantics)}}


def condition(name: str, **arguments: Any) -> dict[str, Any]:
    """The specification of a condition."""
    return {"class_path": f"conditions.{name}", "init_args": arguments}


def decomposer(name: str, **arguments: Any) -> dict[str, Any]:
    """The specification of a decomposer."""
    return {"class_path": f"decomposers.{name}", "init_args": arguments}


def empty_caption(reader: Mapping[str, Any]) -> Tensor:
    """A CLIP's encoding of the empty caption: start, end and sentence, (3 d+1).

    Args:
        reader: The specification of a `decomposers.Caption`.

    Raises:
        FileNotFoundError: CLIP's weights are not on this machine, and cannot be fetched.
    """
    arguments = {**reader["init_args"], "empty": True}
    value = build({**reader, "init_args": arguments}, Decomposer).from_text("")[0]
    return value[value[:, -1] > 0.5]
