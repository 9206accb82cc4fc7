"""Counts the words of captions that a model cannot read."""

from collections import Counter
from string import punctuation

from composer.data.datasets import ImageDataset
from composer.decomposition import Decomposer, Decomposition

CAPTIONS = 2_000
"""Maximum number of captions checked: about a second of work."""


def count_unread(dataset: ImageDataset, decomposition: Decomposition, most: int = CAPTIONS) -> list[str]:
    """Counts the captions with words that a decomposer does not know or cuts off, and the missing ones.

    Args:
        dataset: Its captions are checked, an evenly spaced sample if there are many.
        decomposition: Its decomposers that read captions are checked.
        most: Maximum number of captions to check.

    Returns:
        Lines to print; none if everything is read, or the dataset has no captions to check.
    """
    readers = {name: by for name, by in decomposition.named() if by.can_read({"caption": [""]})}
    if not readers:
        return []
    spread = range(0, len(dataset), -(-len(dataset) // most))
    captions = [caption for i in spread if (caption := dataset.caption(i)) is not None]
    if not captions:
        return []
    looked = f"{len(captions):,}" + (f" checked (of {len(dataset):,})" if len(spread) < len(dataset) else "")
    lines = [_unread(name, by, captions, looked) for name, by in readers.items()]
    if empty := captions.count(""):
        lines.append(f"captions: {empty:,} of {looked} are empty")
    return [line for line in lines if line]


def _unread(name: str, reader: Decomposer, captions: list[str], looked: str) -> str:
    unknown: Counter[str] = Counter()
    strange = cut = 0
    for caption in captions:
        lost = {word: bool(reader.unread(word)) for word in reader.unread(caption)}  # alone, no word is too long
        words = {word.strip(punctuation).lower() for word, alone in lost.items() if alone}
        unknown.update(words)
        strange += bool(words)
        cut += not all(lost.values())
    found = []
    if strange:
        examples = ", ".join(f"{word!r} {count:,}" for word, count in unknown.most_common(5))
        found.append(f"{strange:,} of {looked} have words that it does not know (most often: {examples})")
    if cut:
        found.append(f"{cut:,} of {looked} are too long for it and are cut")
    return f"captions, as {name} reads them: {'; '.join(found)}" if found else ""
