"""Declares a family of readers of documents: models that transcribe a page, asked in their own words, and do nothing
else. They write Markdown and HTML, which is taken out, so that a merge lays words beside words."""

from collections.abc import Mapping, Sequence
from typing import Any

from serve.models.base import Card, Model
from serve.models.contracts import Contract
from serve.models.family import Size, family
from serve.models.instructed import worded_skill
from serve.models.markup import plain_text
from serve.models.spotting import spotting_skill

MAX_TOKENS = 4096
"""A page of small print."""
LINES = Contract("lines", key="box", label="text")
"""Lines as JSON: `{"box": [x0, y0, x1, y1], "text": "..."}`."""


def document_reader(
    prompt: str,
    card: Card,
    sizes: Sequence[Size],
    *,
    system: str | None = None,
    spot: str | None = None,
    expect: Mapping[str, Any] | None = None,
) -> list[Model]:
    """Return the models of a family. prompt: what it is asked; "": it is shown the page alone. system: as in
    `worded_skill`. spot: what it is asked where boxes are wanted, which it writes as JSON in thousandths. card, sizes,
    expect: as in `family`."""
    ocr = worded_skill("ocr", lambda request: prompt, clean=plain_text, max_tokens=MAX_TOKENS, system=system)
    if spot is not None:
        ocr = spotting_skill(ocr, LINES, spot, system)
    return family(
        card,
        sizes,
        native=("ocr",),
        prompted=(),
        skills={"ocr": ocr},
        family_args={"enable_prefix_caching": False},  # no two pages begin alike
        expect=expect,
    )


def reader_card(**fields: Any) -> Card:
    """Return the fields that the cards of all readers share, with these."""
    return Card(
        category="Reader of documents",
        modality="image in, text out",
        parameters=None,
        tasks=(),
        features=("Markdown and HTML, taken out of its text here",),
        **fields,
    )
