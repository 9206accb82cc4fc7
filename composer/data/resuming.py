"""Whether a training may be resumed on the given data."""

from collections.abc import Iterator, Mapping
from typing import Any

IMAGES_PER_STEP = "images per step"


def compare_data(before: Mapping[str, Any], now: Mapping[str, Any], accept: bool = False) -> list[str]:
    """Compares the data of a checkpoint with the data at hand (see `ImageData.state_dict`).

    The order of images is one of row numbers, drawn from the seed. With other rows or another seed, some images would
    silently repeat and others be skipped, so that is refused. The number of images per step only moves the position in
    the same order, and validation data affects no step.

    Args:
        before: Of the checkpoint.
        now: Of the data to resume on.
        accept: Whether to resume although it would be refused.

    Returns:
        Notes on what differs and was not refused.

    Raises:
        ValueError: The rows to train on, or the seed, are not the same.
    """
    changed = list(_differences(before, now))
    order = [text for key, text in changed if not key.startswith("validation") and key != IMAGES_PER_STEP]
    if order and not accept:
        raise ValueError(
            "this checkpoint was trained on other data: "
            + "; ".join(order)
            + ". Its order of images cannot be continued. Give the same data as before; or continue with "
            "this data and a new order by --data.accept_changes true; or start a new run with these weights: export "
            "the run, then fit with --model.start_from MODEL and --trainer.default_root_dir FOLDER"
        )
    notes = [f"note: the training data changed: {text}" for text in order]
    for key, text in changed:
        if key == IMAGES_PER_STEP:
            what = "are left out" if now[key] > before[key] else "are seen again"
            notes.append(f"note: {text}: the order of images stays, but some {what} where it resumes")
        elif key.startswith("validation"):
            notes.append(f"note: the validation data changed: {text}: its losses cannot be compared with earlier ones")
    return notes


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields the names of entries that differ, and how."""
    old, new = dict(_entries(before)), dict(_entries(now))
    for key in dict.fromkeys([*new, *old]):
        was, found = old.get(key, "none"), new.get(key, "none")
        if was != found:
            yield key, f"{key}: {was} before, {found} now"


def _entries(nested: Mapping[str, Any], parents: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in nested.items():
        if isinstance(value, Mapping):
            yield from _entries(value, f"{parents}{key} ")
        else:
            yield parents + key, value
