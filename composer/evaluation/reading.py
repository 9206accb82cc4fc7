"""Measures results: decomposes pictures with a model's readers, and compares them with what was asked."""

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
"""Number of strangers: images unrelated to any request, whose distance from it is what chance gives."""


@dataclass(frozen=True)
class Measured:
    """How well pictures match what was asked of them in one condition.

    Attributes:
        distance: In its reader's unit; 0 is a perfect match.
        closed: Adherence of each picture: 0 is no better than chance, 1 a perfect match.
    """

    distance: Float[Tensor, " b"]
    closed: Float[Tensor, " b"]


class Reading:
    """Pictures, decomposed again. Each representation is computed once, when it is first needed.

    Args:
        cascade: The model whose readers and decomposers are used.
        images: In [-1, 1]; they are resized to the first stage's size.
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
        """The readers' representations of the named conditions, of those that can be computed from pictures."""
        if missing := [name for name in names if name not in self._parts]:
            self._parts |= self.cascade.read(self._batch, missing)
        return self._parts.pick(*(name for name in names if name in self._parts))

    @torch.no_grad()
    def distances(self, wanted: Parts) -> dict[str, Float[Tensor, " b"]]:
        """The distance of each picture from what was asked, by condition, in its reader's unit.

        Args:
            wanted: What was asked, in the readers' space; of one row or b rows.
        """
        got = self.parts(wanted)
        return {
            name: reader.distance(wanted[name].expand(len(got[name]), *wanted[name].shape[1:]), got[name])
            for name, reader in self.cascade.readers.named()
            if name in got
        }

    @torch.no_grad()
    def measure(self, wanted: Parts) -> dict[str, Measured]:
        """Measures the adherence of each picture, by condition, on the CPU.

        What a picture closes is 1 - d(asked, picture) / chance, and chance is the mean of d(asked, stranger) over
        images that have nothing to do with the request: the held-out images that the model was exported with, else
        Scenes of the split ``novel`` that the package renders. They are the same for all results of a model, so that
        results can be compared.

        Args:
            wanted: What was asked, in the readers' space; of one row or b rows.

        Raises:
            ValueError: The model's representations of held-out images have another shape than its readers'.
        """
        far, found = self.distances(wanted), {}
        strange = _strangers_read(self.cascade, far) if far else Parts()
        readers = dict(self.cascade.readers.named())
        for name, distance in far.items():
            strangers = strange[name]
            if strangers.shape[1:] != self._parts[name].shape[1:]:
                raise ValueError(
                    f"the model's representations of held-out images have another shape of {name} than its readers', "
                    f"{tuple(strangers.shape[1:])} and not {tuple(self._parts[name].shape[1:])}: export it again"
                )
            chance = [readers[name].distance(row.expand_as(strangers), strangers).mean() for row in wanted[name]]
            shares = 1 - distance.cpu() / torch.stack(chance).cpu().clamp(min=1e-6)
            found[name] = Measured(distance.cpu(), shares)
        return found

    def closed(self, wanted: Parts) -> dict[str, Float[Tensor, " b"]]:
        """What each picture closes, by condition; see `measure`."""
        return {name: one.closed for name, one in self.measure(wanted).items()}

    @torch.no_grad()
    def preview(self, name: str) -> Float[Tensor, "b 3 h w"] | None:
        """Previews of a representation of the pictures, by its decomposer if that reads pictures, else by its reader.

        Returns:
            On the CPU; None if it cannot be computed from pictures.
        """
        decomposer, reader = (dict(by.named())[name] for by in (self.cascade.decomposition, self.cascade.readers))
        if decomposer is not reader and decomposer.can_read(self._batch):
            return decomposer.preview(self.cascade.decomposition(self._batch, [name])[name]).cpu()
        seen = self.parts([name])
        return reader.preview(seen[name]).cpu() if name in seen else None


_READ: WeakKeyDictionary[Cascade, Parts] = WeakKeyDictionary()


def _strangers_read(cascade: Cascade, names: Collection[str]) -> Parts:
    """The readers' representations of the strangers; computed once per model, since readers are frozen."""
    known = _READ.setdefault(cascade, Parts())
    known.update({name: value for name, value in cascade.strangers.items() if name not in known})
    if missing := [name for name in names if name not in known]:
        strangers = _strangers(cascade.stages[0].size).to(cascade.device)
        known.update(cascade.read({"image": strangers}, missing))
    return Parts({name: known[name].to(cascade.device) for name in names})


@torch.no_grad()
def read_held_out(cascade: Cascade, data: str) -> Parts:
    """Computes the readers' representations of held-out images, for `Cascade.strangers`.

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
    """A note that chance is measured with Scenes, for a model without held-out images; else empty.

    Also empty for the included model, for which Scenes are right, as it was trained on them.
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
