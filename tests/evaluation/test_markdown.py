"""Texts of strangers in Markdown, as a reader of another make shows them."""

import pytest
from markdown_it import MarkdownIt

from composer.evaluation.markdown import plain
from composer.studio import table

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
    html = MarkdownIt("gfm-like", {"linkify": False}).enable("table").render(f"before {plain(text)} after")
    shown = text.replace("\n", " ").replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert html == f"<p>before {shown} after</p>\n"


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_one_cell(text):
    html = MarkdownIt("gfm-like", {"linkify": False}).render(table({text: {"palette": 0.5}}))
    assert html.count("<th>") == 2 and html.count("<td>") == 2
    assert "<script" not in html and "<img" not in html and "<a " not in html
