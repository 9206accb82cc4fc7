"""Tables in each of their forms; texts of strangers in Markdown, as a reader of another make shows them."""

import pytest
from markdown_it import MarkdownIt

from composer.images.table import Table, escape_markdown
from composer.studio import make_table

TEXTS = [
    "a red cube",
    "<script>alert(1)</script>",
    "<img src=x onerror=y>",
    "[a](javascript:x)",
    "![a](http://b/c.png)",
]
TEXTS += ["`code`", "a | b", "a\\", "&lt;b&gt;", "<http://a.b>", "a &amp; b", "é 日本", "[x]: http://a", "\\`x", "a\nb"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_shown_as_it_is(text):
    html = MarkdownIt("gfm-like", {"linkify": False}).enable("table").render(f"before {escape_markdown(text)} after")
    shown = text.replace("\n", " ").replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert html == f"<p>before {shown} after</p>\n"


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_one_cell(text):
    html = MarkdownIt("gfm-like", {"linkify": False}).render(make_table({text: {"palette": 0.5}}))
    assert html.count("<th>") == 2 and html.count("<td>") == 2
    assert "<script" not in html and "<img" not in html and "<a " not in html


def test_a_table_in_each_form():
    found = Table(["name", "a | b"], [["<b>", "1"], ["in total", ""]], bold=[1])
    assert found.markdown() == "| name | a \\| b |\n|---|---|\n| &lt;b&gt; | 1 |\n| in total |  |\n"
    assert found.html().splitlines() == [
        "<table>",
        "<tr><th>name</th><th>a | b</th></tr>",
        "<tr><td>&lt;b&gt;</td><td>1</td></tr>",
        "<tr><td>in total</td><td></td></tr>",
        "</table>",
    ]
    shown = found.rich()
    assert [(column.header, *column.cells) for column in shown.columns] == [
        ("name", "<b>", "in total"),
        ("a | b", "1", ""),
    ]
    assert [row.style for row in shown.rows] == [None, "bold"]
