"""Texts of strangers in Markdown: prompts, names and labels stand in it as they are, never as markup or HTML."""

import re

from composer.storage.files import printable

_MARKUP = re.compile(r"[\\`\[\]|]")


def plain(text: str) -> str:
    """A text as Markdown that shows just this text, also in a cell of a table: one line, without HTML or links."""
    shown = printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKUP.sub(r"\\\g<0>", shown)
