"""Embeddings of many images and captions, computed once and stored in one folder."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from composer.data.datasets import ImageDataset, Row, collate
from composer.decomposition import Decomposition
from composer.storage.files import hash_content, write_atomically

CAPTIONS = "captions.json"


class Embeddings(ImageDataset):
    """Captions and representations without the images, for training priors.

    `composer embed` writes such a folder: ``captions.json``, a list of strings, and ``<name>.npy`` for each
    representation, one row per caption. Rows are read from disk on demand, so they need no memory.

    Args:
        path: The folder.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: Its files are of different lengths.
    """

    def __init__(self, path: str):
        folder = Path(path)
        if not (folder / CAPTIONS).is_file():
            raise FileNotFoundError(
                f"expected embeddings at {path}; `composer embed IMAGES -c CONFIG --out {path}` writes them"
            )
        self.captions: list[str] = json.loads((folder / CAPTIONS).read_text(encoding="utf-8"))
        files = sorted(folder.glob("*.npy"))
        self._arrays = {file.stem: np.load(file, mmap_mode="r", allow_pickle=False) for file in files}
        self.columns = frozenset(self._arrays)
        lengths = {CAPTIONS: len(self.captions)} | {name: len(array) for name, array in self._arrays.items()}
        if len(set(lengths.values())) != 1 or not self.captions:
            raise ValueError(f"expected as many rows in each file of {path}, and at least one; found {lengths}")

    def __len__(self) -> int:
        return len(self.captions)

    def row(self, index: int, seed: int) -> Row:
        columns = {name: torch.from_numpy(array[index].astype(np.float32)) for name, array in self._arrays.items()}
        return {"caption": self.captions[index], **columns}

    def identity(self) -> dict[str, Any]:
        captions = "\n".join(self.captions).encode(errors="surrogatepass")
        return super().identity() | {"hash of the captions": hash_content(captions)}

    def caption(self, index: int) -> str:
        return self.captions[index]


def write_embeddings(
    dataset: ImageDataset,
    decomposition: Decomposition,
    folder: Path,
    device: torch.device | str = "cpu",
    rows: int = 64,
    progress: Callable[[int], object] = lambda done: None,
) -> None:
    """Computes representations of a dataset and writes them, in float16, with the captions.

    Args:
        dataset: The images.
        decomposition: What to compute of them.
        folder: Where to; it appears once it is complete.
        device: Where to compute.
        rows: Images at a time.
        progress: Called with the number of images that were just done.

    Raises:
        FileExistsError: The folder exists.
        ValueError: A representation cannot be extracted from these images, or exceeds float16's range.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists: remove it to compute the embeddings again")
    decomposition.to(device)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    captions: list[str] = []
    arrays: dict[str, np.memmap] = {}
    for start in range(0, len(dataset), rows):
        batch = collate([dataset.row(i, i) for i in range(start, min(start + rows, len(dataset)))])
        captions += batch["caption"]
        values = decomposition({"image": batch["image"].to(device), "caption": batch["caption"]})
        if missing := [name for name, _ in decomposition.named() if name not in values]:
            raise ValueError(f"{', '.join(missing)} cannot be extracted from these images and captions")
        for name, value in values.items():
            if name not in arrays:
                shape = (len(dataset), *value.shape[1:])
                arrays[name] = np.lib.format.open_memmap(partial / f"{name}.npy", "w+", np.float16, shape)
            arrays[name][start : start + len(value)] = _half(name, value)
        progress(len(batch["caption"]))
    for array in arrays.values():
        array.flush()
    write_atomically(partial / CAPTIONS, json.dumps(captions).encode())
    partial.rename(folder)


def _half(name: str, value: Tensor) -> np.ndarray:
    half: np.ndarray = value.detach().half().cpu().numpy()
    if not np.isfinite(half).all():
        raise ValueError(f"{name} contains values beyond the range of float16, or NaN")
    return half
