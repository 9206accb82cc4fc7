"""Reads results: what a model's readers see in pictures, and how well that matches what was asked."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from composer.cascade.cascade import Cascade
from composer.cascade.parts import Parts
from composer.decomposition import Batch
from composer.evaluation.samples import open_sample
from composer.images.reading import fit
from composer.names import SHIPPED

STRANGERS = 32
"""Images that results are compared with, so that a distance becomes a share of the way."""


@dataclass(frozen=True)
class Measured:
    """How well pictures match what was asked of them in one condition.

    Attributes:
        distance: In its reader's unit; 0 is a perfect match.
        closed: How much of the way from strangers' (0) to what was asked (1) each picture goes.
    """

    distance: Float[Tensor, " b"]
    closed: Float[Tensor, " b"]


class Reading:
    """Pictures taken apart again. Each condition is read once, when it is first asked for.

    Args:
        cascade: Whose readers and decomposers read.
        images: In [-1, 1]; of another size than the first stage's they are read at that size.
        region: Of edits, 1 where the pictures may change.
    """

    def __init__(
        self,
        cascade: Cascade,
        images: Float[Tensor, "b 3 h w"],
        region: Float[Tensor, "b 1 h w"] | None = None,
    ):
        size = cascade.stages[0].size
        self.cascade = cascade
        self._batch: Batch = {"image": fit(images.to(cascade.device), (size, size))}
        if region is not None:
            self._batch["region"] = region.to(cascade.device)
        self._parts = Parts()

    def parts(self, names: Collection[str]) -> Parts:
        """What the readers see of the named conditions, as far as pictures show them."""
        if missing := [name for name in names if name not in self._parts]:
            self._parts |= self.cascade.read(self._batch, missing)
        return self._parts.pick(*(name for name in names if name in self._parts))

    @torch.no_grad()
    def distances(self, wanted: Parts) -> dict[str, Float[Tensor, " b"]]:
        """How far the pictures are from what was asked, by condition, each in its reader's unit.

        Args:
            wanted: What was asked, as the readers read it; of one row or b rows.
        """
        got = self.parts(wanted)
        return {
            name: reader.distance(wanted[name].expand(len(got[name]), *wanted[name].shape[1:]), got[name])
            for name, reader in self.cascade.readers.named()
            if name in got
        }

    @torch.no_grad()
    def measure(self, wanted: Parts) -> dict[str, Measured]:
        """How near the pictures come to what was asked, by condition, on the CPU.

        How much of the way is closed is 1 - d(asked, got) / d(asked, stranger), the latter a mean over the held-out
        images that the model was exported with, else over Scenes of the split ``novel`` that the package renders: the
        same for every result of a model, so that results compare.

        Args:
            wanted: What was asked, as the readers read it; of one row or b rows.

        Raises:
            ValueError: What the model has of held-out images is of another shape than its readers give.
        """
        far, found = self.distances(wanted), {}
        strange = _strangers_read(self.cascade, far) if far else Parts()
        readers = dict(self.cascade.readers.named())
        for name, distance in far.items():
            strangers = strange[name]
            if strangers.shape[1:] != self._parts[name].shape[1:]:
                raise ValueError(
                    f"the model's readings of held-out images have another shape of {name} than its readers give, "
                    f"{tuple(strangers.shape[1:])} and not {tuple(self._parts[name].shape[1:])}: export it again"
                )
            chance = [readers[name].distance(row.expand_as(strangers), strangers).mean() for row in wanted[name]]
            shares = 1 - distance.cpu() / torch.stack(chance).cpu().clamp(min=1e-6)
            found[name] = Measured(distance.cpu(), shares)
        return found

    def closed(self, wanted: Parts) -> dict[str, Float[Tensor, " b"]]:
        """How much of the way to what was asked the pictures go, by condition; see `measure`."""
        return {name: one.closed for name, one in self.measure(wanted).items()}

    @torch.no_grad()
    def preview(self, name: str) -> Float[Tensor, "b 3 h w"] | None:
        """Shows a condition of the pictures as its decomposer does where that reads pictures, else as its reader does.

        Returns:
            On the CPU; None where it is not read from pictures.
        """
        decomposer, reader = (dict(by.named())[name] for by in (self.cascade.decomposition, self.cascade.readers))
        if decomposer is not reader and decomposer.can_read(self._batch):
            return decomposer.preview(self.cascade.decomposition(self._batch, [name])[name]).cpu()
        seen = self.parts([name])
        return reader.preview(seen[name]).cpu() if name in seen else None


_READ: WeakKeyDictionary[Cascade, Parts] = WeakKeyDictionary()


def _strangers_read(cascade: Cascade, names: Collection[str]) -> Parts:
    """What a model's readers make of the strangers; they are frozen, so that each reads them once."""
    known = _READ.setdefault(cascade, Parts())
    known.update({name: value for name, value in cascade.strangers.items() if name not in known})
    if missing := [name for name in names if name not in known]:
        strangers = _strangers(cascade.stages[0].size).to(cascade.device)
        known.update(cascade.read({"image": strangers}, missing))
    return Parts({name: known[name].to(cascade.device) for name in names})


@torch.no_grad()
def read_held_out(cascade: Cascade, data: str) -> Parts:
    """What a model's readers make of held-out images, for `Cascade.strangers`.

    Args:
        cascade: The model.
        data: ``scenes:SPLIT``, or the path of a folder with at least `STRANGERS` images that no training saw.

    Raises:
        ValueError: There are fewer images.
    """
    images = open_sample(data, STRANGERS, cascade.stages[0].size).read(range(STRANGERS))["image"]
    read = cascade.read({"image": images.to(cascade.device)})
    return Parts({name: value.cpu() for name, value in read.items()})


def strangers_note(cascade: Cascade) -> str:
    """Says that results are compared with Scenes, as the model has no held-out images; empty where it needs none.

    The included model learned from Scenes, so for it these are the right ones.
    """
    if cascade.strangers or cascade.spec.get("name") == SHIPPED:
        return ""
    return (
        f"note: chance is measured against {STRANGERS} Scenes, since this model was exported without held-out images; "
        "export it with --held-out to use yours"
    )


@lru_cache(maxsize=2)
def _strangers(size: int) -> Float[Tensor, "n 3 h w"]:
    from composer.data.datasets import SceneImages

    scenes = SceneImages("novel", size, STRANGERS)
    return torch.stack([scenes.row(i, 0)["image"] for i in range(STRANGERS)])
