"""Mistakes: in a command line, in words, and suggestions for mistyped names."""

from collections.abc import Iterable
from difflib import get_close_matches


class Mistake(ValueError):
    """A mistake in a command line."""


def explain(error: Exception) -> str | None:
    """Says in words what went wrong; None where it is no mistake of a user's, but ours.

    Of a `KeyError` that came with the key alone it says what that means.
    """
    if lacks_memory(error):
        says = str(error).partition("\n")[0] or "nothing more is known"
        return f"there is not enough memory for this ({says})\nask for less at a time, or for smaller pictures"
    if isinstance(error, KeyError) and error.args:
        key = error.args[0]
        return key if isinstance(key, str) and " " in key else f"what was read holds no {key!r}, which is needed here"
    if isinstance(error, FloatingPointError | KeyError | OSError | ValueError):
        return str(error) or type(error).__name__
    return None


def lacks_memory(error: Exception) -> bool:
    """Whether memory ran out, a device's or the processor's: torch has no class of its own for the latter."""
    says = str(error)
    ran_out = "out of memory" in says or "allocate memory" in says
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and ran_out)


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
