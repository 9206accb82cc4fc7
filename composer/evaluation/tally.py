"""Sums over pictures that a long evaluation keeps on the disk, so that it resumes and its parts are put together."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from torch import Tensor

from composer.storage.files import write_atomically

PAUSE = 60.0
"""Seconds between two writes."""


@dataclass
class Tally:
    """What a part of an evaluation has summed up.

    Attributes:
        batches: How many batches are in it.
        sums: Name -> a tensor; those of several parts add up.
        given: What the model read.
    """

    batches: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    given: list[str] = field(default_factory=list)


class Part:
    """One of several parts of an evaluation, each of which takes every so many batches, and its file.

    Args:
        number: Of this part, from 1.
        parts: How many there are.
        folder: Where each has its file, ``part-1-of-4.safetensors``; None keeps nothing.
        about: What is measured, as plain JSON values: all parts and later runs must agree on it.

    Raises:
        ValueError: Several parts have no folder.
    """

    def __init__(
        self, number: int = 1, parts: int = 1, folder: Path | None = None, about: Mapping[str, Any] | None = None
    ):
        if parts > 1 and folder is None:
            raise ValueError("parts of an evaluation need a folder that all of them see, to put their sums together")
        self.number, self.parts, self.folder = number, parts, folder
        self.about = json.loads(json.dumps(dict(about or {})))
        self._written = monotonic()

    def path(self, number: int) -> Path:
        """The file of a part."""
        assert self.folder is not None
        return self.folder / f"part-{number}-of-{self.parts}.safetensors"

    def resume(self) -> Tally:
        """What was summed up before, if anything was."""
        if self.folder is None or not self.path(self.number).exists():
            return Tally()
        return self._read(self.number)

    def keep(self, tally: Tally, finished: bool = False) -> None:
        """Writes the sums, if the last time is a while ago or the part is finished."""
        if self.folder is None or (not finished and monotonic() - self._written < PAUSE):
            return
        from safetensors.torch import save

        kept = {"about": self.about, "batches": tally.batches, "given": tally.given, "finished": finished}
        data = save({name: x.contiguous().cpu() for name, x in tally.sums.items()}, {"tally": json.dumps(kept)})
        write_atomically(self.path(self.number), data)
        self._written = monotonic()

    def missing(self) -> list[int]:
        """The parts that are not finished."""
        if self.folder is None:
            return []
        numbers = range(1, self.parts + 1)
        return [n for n in numbers if not (self.path(n).exists() and self._head(n)["finished"])]

    def join(self, tally: Tally) -> Tally:
        """The sums of all parts, which must be finished."""
        if self.parts == 1:
            return tally
        every = [self._read(number) for number in range(1, self.parts + 1)]
        joined = Tally(sum(one.batches for one in every), {}, next((one.given for one in every if one.given), []))
        for one in every:
            for name, x in one.sums.items():
                joined.sums[name] = joined.sums[name] + x if name in joined.sums else x
        return joined

    def _read(self, number: int) -> Tally:
        from safetensors.torch import load_file

        head = self._head(number)
        sums = {name: x.clone() for name, x in load_file(self.path(number)).items()}  # the file is about to change
        return Tally(head["batches"], sums, head["given"])

    def _head(self, number: int) -> dict[str, Any]:
        """What a part's file says of itself."""
        from safetensors import SafetensorError, safe_open

        path = self.path(number)
        try:
            with safe_open(path, "pt") as file:
                head: dict[str, Any] = json.loads(file.metadata()["tally"])
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} holds no sums of an evaluation, or is damaged: remove it ({error})") from error
        before = head["about"]
        if changed := sorted(name for name in self.about if before.get(name) != self.about[name]):
            told = "; ".join(f"{name} {before.get(name)} before, {self.about[name]} now" for name in changed)
            raise ValueError(f"{path} is of another evaluation: {told}. Take another folder")
        return head
