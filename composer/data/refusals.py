"""Datasets of files, of which some cannot be read: those are listed, counted and replaced."""

import json
import logging
from abc import abstractmethod
from collections import Counter, deque
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import torch

from composer.data.datasets import ImageDataset, Row
from composer.decomposition import draw
from composer.images.reading import Reason, Refused

log = logging.getLogger(__name__)

HINT = "; min_side 0 accepts small images and enlarges them"


class Ledger:
    """Counts and lists refused files, and ends the run if there are too many.

    Images that are only too small never end the run. Every worker process has its own ledger, so that nothing is
    shared.

    Args:
        window: How many of the last files count.
        share: The run ends if more than this share of `window` was refused.
    """

    def __init__(self, window: int = 10_000, share: float = 0.05):
        self.recent: deque[bool] = deque(maxlen=window)
        self.allowed = share * window
        self.refused = self.bad = 0
        self.listed: dict[Path, Reason] = {}
        self.path: Path | None = None

    def good(self) -> None:
        """Counts a file that was read."""
        self._count(False)

    def refuse(self, error: Refused) -> None:
        """Counts a refused file, logs the first and every 1,000th, and lists each file once.

        Raises:
            ValueError: Too many of the last files were refused.
        """
        self._count(error.reason is not Reason.TOO_SMALL)
        self.refused += 1
        if self.refused == 1 or self.refused % 1000 == 0:
            log.warning("%s; %d refused so far, each replaced by another", error, self.refused)
        if error.path not in self.listed:
            self.listed[error.path] = error.reason
            if self.path is not None:
                entry = {"file": str(error.path), "reason": error.reason.name.lower(), "detail": error.detail}
                with self.path.open("a", encoding="utf-8") as file:  # one write per line: workers share it
                    file.write(json.dumps(entry) + "\n")
        if self.bad > self.allowed:
            raise ValueError(
                f"expected at most {self.allowed:.0f} refused files among the last {self.recent.maxlen:,}, "
                f"found {self.bad}; the last one: {error}. "
                + (f"All are listed in {self.path}." if self.path else "Remove or convert them.")
            )

    def _count(self, bad: bool) -> None:
        self.bad += bad - (self.recent[0] if len(self.recent) == self.recent.maxlen else 0)
        self.recent.append(bad)


def summarise(reasons: Iterable[Reason], then: str = "each replaced by another") -> str:
    """Says how many files were refused, what was done with them `then`, and why they were."""
    counts = Counter(reasons).most_common()
    why = "; ".join(f"{count} because {reason}" for reason, count in counts)
    hint = HINT if Reason.TOO_SMALL in dict(counts) else ""
    return f"{sum(count for _, count in counts)} files were refused, {then}: {why}{hint}"


def summarise_listed(path: Path) -> str:
    """The same for a file that ledgers wrote, which may list an image several times."""
    reasons = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        with suppress(ValueError):  # an incomplete line of a killed run
            entry = json.loads(line)
            reasons[entry["file"]] = Reason[entry["reason"].upper()]
    return summarise(reasons.values())


class ReadImages(ImageDataset):
    """Images that are read from files. One that is refused is replaced by another, the same in every run.

    Attributes:
        ledger: Of the refused ones.
        place: Where the files are, for errors.
    """

    ATTEMPTS = 64

    def __init__(self, place: str | Path):
        self.ledger, self.place = Ledger(), place

    @abstractmethod
    def read(self, index: int, seed: int) -> Row:
        """Reads one row; arguments as of `row`.

        Raises:
            Refused: Its file is not used.
        """

    def list_skipped_in(self, path: Path) -> None:
        self.ledger.path = path

    def row(self, index: int, seed: int) -> Row:
        for attempt in range(self.ATTEMPTS):
            try:
                row = self.read(index, seed)
            except Refused as error:
                self.ledger.refuse(error)
                refused = error
                index = int(draw(torch.tensor([index]), attempt, len(self)))
            else:
                self.ledger.good()
                return row
        hint = HINT if refused.reason is Reason.TOO_SMALL else ""
        raise ValueError(
            f"expected images in {self.place}, found {self.ATTEMPTS} refused ones in a row; {refused}{hint}"
        )
