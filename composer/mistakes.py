"""Mistakes in a command line, and suggestions for mistyped names."""

from collections.abc import Iterable
from difflib import get_close_matches


class Mistake(ValueError):
    """A mistake in a command line."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Suggests the known words most similar to an unknown one.

    Args:
        word: The unknown word; leading dashes are ignored.
        known: The words to choose from.

    Returns:
        Such as `` (did you mean --depth?)``; empty if none is similar.
    """
    plain = {name.lstrip("-"): name for name in known}
    near = get_close_matches(word.lstrip("-"), plain, n=2, cutoff=0.7)
    return f" (did you mean {' or '.join(plain[name] for name in near)}?)" if near else ""
