"""Tables as Markdown, HTML or for a terminal: texts are escaped, so that none acts as markup."""

import html
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from composer.storage.files import printable

if TYPE_CHECKING:
    import rich.table

_MARKUP = re.compile(r"[\\`\[\]|]")


def escape_markdown(text: str) -> str:
    """Escapes a text for Markdown, also within a table: one line, without HTML or links."""
    shown = printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKUP.sub(r"\\\g<0>", shown)


def escape_html(text: object) -> str:
    """Escapes a text for HTML."""
    return html.escape(printable(str(text)))


@dataclass(frozen=True)
class Table:
    """A heading and rows of cells, all as texts.

    Attributes:
        head: One heading per column.
        rows: One cell per column each.
        bold: Indices of the rows that a terminal shows in bold.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    bold: Collection[int] = ()

    def markdown(self) -> str:
        """The table as Markdown, one line per row."""
        lines = ["| " + " | ".join(map(escape_markdown, row)) + " |" for row in (self.head, *self.rows)]
        return "\n".join([lines[0], "|---" * len(self.head) + "|", *lines[1:]]) + "\n"

    def html(self) -> str:
        """The table as an HTML element."""

        def line(cells: Sequence[str], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{escape_html(cell)}</{tag}>" for cell in cells) + "</tr>"

        return "\n".join(["<table>", line(self.head, "th"), *(line(row, "td") for row in self.rows), "</table>"])

    def rich(self) -> "rich.table.Table":
        """The table for a terminal, see `composer.terminal.show`."""
        from rich.table import Table as RichTable

        table = RichTable(*self.head)
        for number, row in enumerate(self.rows):
            table.add_row(*row, style="bold" if number in self.bold else None)
        return table
