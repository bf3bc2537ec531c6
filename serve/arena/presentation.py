"""Writes both answers of a duel alike, so that their form does not tell the models' names.

Families differ in blanks, capitals and full stops, in whether boxes have scores, in their order, and in the grid that
their coordinates lie on: LLaVA writes hundredths of the longer side, PaliGemma 1024ths of each.
"""

import unicodedata
from typing import Any

from serve.media.image import Image
from serve.tasks.base import Task
from serve.tasks.reply import Reply

GRID = 100
"""Steps of the longer side that all boxes and points are rounded to, LLaVA's own."""


def present(task: Task, reply: Reply, image: Image) -> dict[str, Any]:
    """Return the result of a reply that is ok as JSON: texts in one form, places without scores and in one order.

    Numbers and other values are texts too, as the task writes them: judges read them.
    """
    assert reply.result is not None
    result = reply.result.model_dump(mode="json")
    field, answer = next(iter(result.items()))
    if task.places is None:
        return {field: _text(task.as_text(reply.result), verbatim=task.verbatim)}
    name = "box" if task.boxed else "point"
    step = max(image.width, image.height) / GRID
    limits = (image.width, image.height) * 2
    items = []
    for item in answer:
        place = [min(most, round(round(edge / step) * step)) for edge, most in zip(item[name], limits, strict=False)]
        items.append({key: value for key, value in item.items() if key not in (name, "score")} | {name: place})
    return {field: sorted(items, key=lambda item: (item["label"], item[name]))}


def length(result: dict[str, Any]) -> int:
    """Return a presented result's characters, or its number of boxes or points."""
    return sum(len(value) for value in result.values())


def _text(text: str, *, verbatim: bool) -> str:
    """Return a text without blanks around it; where it is no transcript also with a capital and without a full stop."""
    lines = [" ".join(line.split()) for line in unicodedata.normalize("NFC", text).strip().splitlines()]
    plain = "\n".join(lines) if verbatim else " ".join(filter(None, lines))
    if verbatim:
        return plain
    plain = plain.removesuffix(".").rstrip() or plain
    return plain[:1].upper() + plain[1:]
