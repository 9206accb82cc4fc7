"""Representations computed once and stored beside their images."""

import errno
import io
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from composer.data.folder import ImageFolder, column_path
from composer.decomposition import Batch, Decomposer, Decomposition, Representations
from composer.images.reading import Refused, load_rgb, resize_and_crop
from composer.storage.files import write_atomically


def find_incomplete(folder: ImageFolder, names: Sequence[str]) -> list[int]:
    """Lists the images of a folder that lack one of the columns."""
    paths = enumerate(path for path, _ in folder.items)
    return [i for i, path in paths if not all(column_path(path, name).exists() for name in names)]


def write_columns(
    folder: ImageFolder,
    decomposition: Decomposition,
    device: torch.device | str = "cpu",
    rows: int = 32,
    progress: Callable[[int], object] = lambda done: None,
) -> int:
    """Writes ``<stem>.<name>.npy`` beside each image for each representation, if it is missing.

    They are computed from the largest square at the centre of the image, whatever crops a training draws. Each file is
    written atomically, so an interrupted run can be repeated; delete a column's files to recompute them. They are
    float16 if that keeps integers exact and other values within 1/2048 of the row's maximum (T5 in bf16 is itself
    precise to 1/256), else float32.

    Args:
        folder: The images.
        decomposition: What to compute.
        device: Where to.
        rows: Images at a time.
        progress: Called with the number of images that were just finished or refused.

    Returns:
        How many images were completed; refused ones are skipped.

    Raises:
        OSError: The columns will not fit on the disk.
        ValueError: A representation can't be a column of these images: it is random, it cannot be extracted from them,
            or it is a map and an image has another size.
    """
    decomposition.to(device)
    todo = find_incomplete(folder, [name for name, _ in decomposition.named()])
    written = 0
    for start in range(0, len(todo), rows):
        numbers = todo[start : start + rows]
        if read := list(_readable(folder, numbers)):
            images, captions, paths, fitting = zip(*read, strict=True)
            batch: Batch = {"image": torch.stack(images).to(device), "caption": list(captions)}
            if not written:
                check_suited(decomposition, batch, str(folder.folder))
            values = decomposition(batch)
            _check_maps(values, [path for path, fits in zip(paths, fitting, strict=True) if not fits], folder.size)
            if not written:
                _check_space(values, len(todo), folder.folder)
            for row, path in enumerate(paths):
                _write(path, {name: value[row] for name, value in values.items()})
            written += len(read)
        progress(len(numbers))
    return written


def _readable(folder: ImageFolder, numbers: Sequence[int]) -> Iterator[tuple[Tensor, str, str, bool]]:
    """Yields image, caption, path, and whether the file has exactly the right size."""
    for i in numbers:
        path, _ = folder.items[i]
        try:
            image = load_rgb(path, folder.size, min_side=folder.min_side).image
        except Refused:
            continue
        fits = image.shape[1:] == (folder.size, folder.size)
        yield resize_and_crop(image, folder.size), folder.caption(i), path, fits


def check_suited(decomposition: Decomposition, batch: Batch, place: str) -> None:
    """Checks that what is extracted from a batch is worth keeping.

    Args:
        decomposition: What extracts it.
        batch: Some images and captions.
        place: Where they are from, for errors.

    Raises:
        ValueError: A representation is random, or cannot be extracted from images and captions.
    """
    for name, decomposer in decomposition.named():
        if not decomposer.can_read(batch):
            raise ValueError(f"{name} cannot be extracted from the images and captions of {place}")
        if _draws(decomposer, batch):
            raise ValueError(f"{name} is random and differs each time; a column would fix a single draw")


def _draws(decomposer: Decomposer, batch: Batch) -> bool:
    """Whether a decomposer's result depends on the rows' seeds."""
    seeds = torch.arange(3 * len(batch["image"]), device=batch["image"].device).chunk(3)
    with torch.no_grad():
        first, *others = (decomposer({**batch, "seed": seed}) for seed in seeds)
    return not all(torch.equal(first, other) for other in others)


def _check_maps(values: Representations, others: list[str], size: int) -> None:
    maps = [name for name, value in values.items() if value.ndim == 4]
    if maps and others:
        raise ValueError(
            f"{', '.join(maps)} are maps, which need images of exactly {size} x {size} pixels; {others[0]} has another "
            "size: resize the images first, or leave these names out"
        )


def _check_space(values: Representations, count: int, folder: Path) -> None:
    needed = count * sum(len(encode_array(value[0])) for value in values.values())
    free = shutil.disk_usage(folder).free
    if free < needed:
        sizes = f"{count} rows of {', '.join(values)} take about {needed / 2**20:.0f} MiB"
        raise OSError(errno.ENOSPC, f"{sizes}, {free / 2**20:.0f} MiB are free", str(folder))


def _write(image: str, values: Representations) -> None:
    for name, value in values.items():
        path = column_path(image, name)
        if not path.exists():
            write_atomically(path, encode_array(value))


def encode_array(value: Tensor) -> bytes:
    """Encodes one row as the bytes of an ``.npy`` file."""
    wide = value.detach().float().cpu()
    half = wide.half()
    error = (half.float() - wide).abs()
    lost = (error > 0) & ((wide == wide.round()) | ~(error <= 2**-11 * wide.abs().max()))
    file = io.BytesIO()
    np.save(file, (wide if lost.any() else half).numpy(), allow_pickle=False)
    return file.getvalue()
