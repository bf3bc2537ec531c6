"""Markdown and HTML are taken out of a reader's text, and nothing else is."""

import pytest

from serve.models.markup import plain_text

MARKED = {
    "# Invoice\n\n**Total:** 12 _EUR_": "Invoice\nTotal: 12 _EUR_",
    "<table><tr><th>Item</th><th>Price</th></tr><tr><td>Tea &amp; cake</td><td>4.50</td></tr></table>": (
        "Item Price\nTea & cake 4.50"
    ),
    "| a | b |\n|---|:-:|\n| 1 | 2 |": "a b\n1 2",
    "- milk\n* eggs\n1. bread": "milk\neggs\n1. bread",
    "![a cat](cat.png) see [the shop](https://example.org)": "a cat see the shop",
    "```\ncode `x`\n```": "code x",
    "line<br>break<|end_of_box|>": "line\nbreak",
    r"5 \* 3 \_ 2": "5 * 3 _ 2",
}
UNMARKED = ["2 * 3 * 4 = 24", "a < b and c > d", "snake_case_name", "-12 degrees", "#1 of 3", "Total: $12.50", "x|y"]


@pytest.mark.parametrize("text", MARKED)
def test_marks_are_taken_out(text: str) -> None:
    assert plain_text(text) == MARKED[text]


@pytest.mark.parametrize("text", UNMARKED)
def test_text_that_only_looks_like_markup_stays(text: str) -> None:
    assert plain_text(text) == text


@pytest.mark.parametrize("part", ["<", " ", "**a", "[", "![", "|", "`", "*a ", "<td ", "\\", "- ", "&#1"])
def test_long_unclosed_marks_cost_little(part: str) -> None:
    long = part * (2**15 // len(part))
    plain_text(long)
    plain_text(f"<td a={long}")  # an attribute without its end
