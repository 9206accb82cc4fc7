"""Mistakes in a command line, and what somebody who mistyped a name probably meant."""

from collections.abc import Iterable
from difflib import get_close_matches


class Mistake(ValueError):
    """A mistake in a command line."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Names the known words that are nearest to one that is not known.

    Args:
        word: What was written; dashes before it don't count.
        known: What could have been.

    Returns:
        Such as `` (did you mean --depth?)``; empty where nothing comes near.
    """
    plain = {name.lstrip("-"): name for name in known}
    near = get_close_matches(word.lstrip("-"), plain, n=2, cutoff=0.7)
    return f" (did you mean {' or '.join(plain[name] for name in near)}?)" if near else ""
