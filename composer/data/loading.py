"""The data module: stateless sampling, loading, and decomposition on the device."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, Sampler

from composer.data.datasets import ImageDataset, Mixture, Photographs, SceneImages, collate, permutation
from composer.data.folder import ImageFolder
from composer.data.refusals import summarise_listed
from composer.data.resuming import IMAGES_PER_STEP, compare_data
from composer.data.unread import count_unread
from composer.decomposition import Batch, Decomposer, Decomposition, draw
from composer.terminal import note

__all__ = ["ImageData", "ImageDataset", "ImageFolder", "Mixture", "Photographs", "ResumableSampler", "SceneImages"]

Keys = list[tuple[int, int]]
"""The (index, seed) of each row of a batch."""

TRAINING, VALIDATION = 0, 1  # streams of sample seeds


class ResumableSampler(Sampler[Keys]):
    """An endless sequence of batches, each a function of its number alone.

    Samples are numbered without end; every `length` of them are in an order keyed by (seed, epoch), and a sample's own
    seed is a function of (seed, number). So `start` is all that is needed to resume, whatever was prefetched, and
    ranks take slices of the same sequence: 1 rank of 8 rows and 2 ranks of 4 see the same rows.

    Args:
        length: Number of items.
        batch_size: Rows a batch and rank.
        seed: Of the order and the sample seeds.
        rank: Of this process.
        world: Number of processes.
        order: Key -> the order of an epoch (see `ImageDataset.order`); None permutes all items.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        order: Callable[[int], Sequence[int]] | None = None,
    ):
        if length < 1 or batch_size < 1:
            raise ValueError(f"expected at least 1 item and 1 row per batch, found {length} and {batch_size}")
        self.length, self.batch_size, self.seed, self.rank, self.world = length, batch_size, seed, rank, world
        self.order = order or partial(permutation, length)
        self.start = 0
        """Number of the first batch that the next iteration yields."""

    def __iter__(self) -> Iterator[Keys]:
        first, step = (self.start * self.world + self.rank) * self.batch_size, self.world * self.batch_size
        epoch = -1
        order: Sequence[int] = ()
        while True:
            keys: Keys = []
            seeds = sample_seeds(torch.arange(first, first + self.batch_size), self.seed, TRAINING)
            for number, seed in enumerate(seeds, first):
                if number // self.length != epoch:
                    epoch = number // self.length
                    order = self.order(int(draw(torch.tensor([epoch]), stream=self.seed, high=1 << 62)))
                keys.append((order[number % self.length], seed))
            yield keys
            first += step


def sample_seeds(numbers: torch.Tensor, seed: int, stream: int) -> list[int]:
    """Computes one seed per numbered sample."""
    return draw(numbers, stream=2 * seed + stream, high=1 << 62).tolist()


class FixedBatches(Sampler[Keys]):
    """Every item once, in order, always with the same seed: for validation.

    All ranks take the same number of batches; the last ones are filled up with the first items.

    Args:
        length: Number of items.
        batch_size: Rows a batch and rank.
        seed: Of the sample seeds.
        rank: Of this process.
        world: Number of processes.
    """

    def __init__(self, length: int, batch_size: int, seed: int = 0, rank: int = 0, world: int = 1):
        padded = -(-length // world) * world
        numbers = [number % length for number in range(rank, padded, world)]
        keys = list(zip(numbers, sample_seeds(torch.tensor(numbers), seed, VALIDATION), strict=True))
        self.batches = [keys[i : i + batch_size] for i in range(0, len(keys), batch_size)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Keys]:
        return iter(self.batches)


class _Batches:
    """The loader for Lightning. Not a DataLoader, whose sampler Lightning would replace on several devices."""

    def __init__(self, data: "ImageData", loader: DataLoader[Batch]):
        self.data, self.loader = data, loader
        self.source: Iterator[Batch] = iter(())

    def __iter__(self) -> Iterator[Batch]:
        self.source = iter(self.loader)
        while True:
            begun = perf_counter()
            batch = next(self.source, None)
            if batch is None:
                return
            self.data.seconds_waiting = perf_counter() - begun
            yield batch

    def close(self) -> None:
        """Ends the workers at once; left to the garbage collector they time out."""
        del self.source, self.loader


class _TrainingBatches(_Batches):
    """Endless; every iteration starts at the trainer's current step, also in a resumed run."""

    def __iter__(self) -> Iterator[Batch]:
        sampler = self.loader.batch_sampler
        assert isinstance(sampler, ResumableSampler)
        sampler.start = self.data.batches_seen()
        return super().__iter__()

    def state_dict(self) -> dict[str, int]:
        """Nothing to save; the method tells Lightning that the loader can be resumed."""
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Nothing to restore."""


class _ValidationBatches(_Batches):
    def __len__(self) -> int:
        return len(self.loader)


class ImageData(L.LightningDataModule):
    """Datasets and decomposers: loads batches with their ``representations``.

    Training starts at the batch of the trainer's global step and has no other state, so a resumed run sees the same
    batches as an uninterrupted one. The decomposers are here so that they are in no optimizer, checkpoint or
    state_dict; they run on the device, outside autocast.

    In addition to `Batch`, a batch contains ``representations`` and, in ``known``, the rows (b,) bool that have a
    representation, for names that some rows lack: those rows must drop it.

    Args:
        train: Training data.
        validation: Validation data, every item once and always with the same seed; None skips validation.
        decomposers: Name of a representation -> its decomposer, unless the dataset has it.
        batch_size: Rows per batch and device.
        global_batch_size: Rows of a step over all devices: as many batches are accumulated as that takes. None leaves
            that to the trainer's ``accumulate_grad_batches``.
        validation_batch_size: The same in validation; None takes `batch_size`.
        workers: Loading processes; 0 loads in the training process.
        seed: Of the order and of every sample.
        readers: Decomposers that measure adherence, for names whose own decomposer does not; not used in training, but
            part of an exported model.
        source: Shorter side, in pixels, at which decomposers read images that are larger than `size` on disk, see
            `Decomposition`; the exported model keeps it. None lets them read the images that are trained on.
        reduced: Whether decomposers whose output stays within tolerance run in bfloat16 on an NVIDIA GPU. On a CPU all
            run in float32.
        accept_changes: Whether to resume although the training images differ from the checkpoint's (see
            `compare_data`).

    Attributes:
        seconds_waiting: Time that the training waited for the last batch.
        seconds_decomposing: Time of the last batch's decomposition (on a GPU, of its launch).
    """

    def __init__(
        self,
        train: ImageDataset,
        validation: ImageDataset | None,
        decomposers: dict[str, Decomposer],
        batch_size: int,
        validation_batch_size: int | None = None,
        workers: int = 0,
        seed: int = 0,
        readers: dict[str, Decomposer] | None = None,
        accept_changes: bool = False,
        global_batch_size: int | None = None,
        source: int | None = None,
        reduced: bool = False,
    ):
        super().__init__()
        self.source, self.reduced = source, reduced
        for dataset in filter(None, (train, validation) if source else ()):
            dataset.show_source(source or 0)
        self.global_batch_size = global_batch_size
        self.readers = readers or {}
        self.train, self.validation, self.decomposers = train, validation, decomposers
        self.batch_size, self.validation_batch_size = batch_size, validation_batch_size or batch_size
        self.workers, self.seed, self.accept_changes = workers, seed, accept_changes
        self._open: list[_Batches] = []
        self.seconds_waiting = self.seconds_decomposing = 0.0
        self._identity: dict[str, Any] = {}  # of the data, known after setup
        self._wants(frozenset(decomposers) | train.columns)

    def setup(self, stage: str) -> None:
        """Checks that the data provides all of the model's conditions.

        Raises:
            ValueError: A condition of the model has neither a decomposer nor a column, or the devices' batches do not
                make up the global one.
        """
        assert self.trainer is not None
        if stage == "fit" and self.global_batch_size is not None:
            self.trainer.accumulate_grad_batches = self._accumulated(self.global_batch_size, self.trainer.world_size)
        conditions = getattr(self.trainer.lightning_module, "conditions", None)
        if conditions is not None:
            self._check_served(frozenset(conditions))
            self._wants(frozenset(conditions))
        if self.validation is None:
            self.trainer.limit_val_batches = 0  # Lightning warns of an empty list of loaders
        if (path := self._skipped()) is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            for dataset in filter(None, (self.train, self.validation)):
                dataset.list_skipped_in(path)
        if stage == "fit":
            self._identity = self._identify()
            self._say(*count_unread(self.train, self.decomposition))

    def _accumulated(self, rows: int, devices: int) -> int:
        """How many batches of each device make up so many rows."""
        if rows % (self.batch_size * devices):
            raise ValueError(
                f"expected a global_batch_size in multiples of {self.batch_size * devices} ({devices} devices with "
                f"a batch_size of {self.batch_size}), found {rows}"
            )
        return rows // (self.batch_size * devices)

    def _skipped(self) -> Path | None:
        """The run's list of refused images."""
        folder = None if self.trainer is None else self.trainer.log_dir
        return None if folder is None else Path(folder) / "skipped.jsonl"

    def _say(self, *lines: str) -> None:
        if lines and self.trainer is not None and self.trainer.is_global_zero:
            note(*lines)

    def _identify(self) -> dict[str, Any]:
        assert self.trainer is not None
        rows = self.batch_size * self.trainer.accumulate_grad_batches * self.trainer.world_size
        known = {name: data.identity() for name in ("train", "validation") if (data := getattr(self, name)) is not None}
        return known | {"seed": self.seed, IMAGES_PER_STEP: rows}

    def state_dict(self) -> dict[str, Any]:
        """Describes the training data as plain values, for the checkpoint."""
        return self._identity

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compares a checkpoint's training data with this data when training resumes.

        Raises:
            ValueError: See `compare_data`.
        """
        if self.trainer is not None and self.trainer.state.fn == "fit":
            self._say(*compare_data(state_dict, self._identity, self.accept_changes))

    def _wants(self, names: frozenset[str]) -> None:
        self.names = names
        wanted = {name: d for name, d in self.decomposers.items() if name in names}
        self.decomposition = Decomposition(wanted, self.source)

    def _check_served(self, conditions: frozenset[str]) -> None:
        sources = {"training": self.train} | ({"validation": self.validation} if self.validation else {})
        for stage, dataset in sources.items():
            served = self.decomposers.keys() | dataset.columns
            if missing := sorted(conditions - served):
                raise ValueError(
                    f"expected a decomposer or a column for each of the model's conditions ({_list(conditions)}); the "
                    f"{stage} data has {_list(served)}, without {_list(missing)}"
                )

    def batches_seen(self) -> int:
        """Number of batches trained on; 0 without a trainer."""
        return 0 if self.trainer is None else self.trainer.global_step * self.trainer.accumulate_grad_batches

    def train_dataloader(self) -> _TrainingBatches:
        sampler = ResumableSampler(len(self.train), self.batch_size, self.seed, *self._place(), self.train.order)
        batches = _TrainingBatches(self, self._loader(self.train, sampler))
        self._open.append(batches)
        return batches

    def val_dataloader(self) -> _ValidationBatches | list[Any]:
        if self.validation is None:
            return []
        sampler = FixedBatches(len(self.validation), self.validation_batch_size, self.seed, *self._place())
        batches = _ValidationBatches(self, self._loader(self.validation, sampler))
        self._open.append(batches)
        return batches

    def teardown(self, stage: str) -> None:
        while self._open:
            self._open.pop().close()
        if (path := self._skipped()) is not None and path.exists():
            self._say(f"note: {summarise_listed(path)}; all are listed in {path}")

    def _place(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _loader(self, dataset: ImageDataset, sampler: Sampler[Keys]) -> DataLoader[Batch]:
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return DataLoader(
            dataset,
            batch_sampler=sampler,
            num_workers=self.workers,
            collate_fn=collate,
            pin_memory=on_gpu,
            persistent_workers=self.workers > 0,
        )

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Decomposes a batch on the device."""
        begun = perf_counter()
        batch = self.decompose(batch)
        self.seconds_decomposing = perf_counter() - begun
        return batch

    def decompose(self, batch: Batch) -> Batch:
        """Adds ``representations``: what the decomposers extract, and columns without a decomposer."""
        device = next(value.device for value in batch.values() if isinstance(value, torch.Tensor))
        decomposition = self.decomposition.to(device)
        decomposition.reduce(torch.bfloat16 if self.reduced and device.type == "cuda" else None)
        columns = {name: batch[name] for name in sorted(self.names) if name in batch}
        return {**batch, "representations": columns | decomposition(batch), "known": decomposition.known(batch)}


def _list(names: Any) -> str:
    return ", ".join(sorted(names)) or "none"
