"""Writes both answers of a duel alike, so that their form does not tell the models' names.

Families differ in blanks, capitals and full stops, in whether boxes have scores, in their order, and in the grid that
their coordinates lie on: LLaVA writes hundredths of the longer side, PaliGemma 1024ths of each.
"""

import unicodedata
from typing import Any

from serve.media.image import Image
from serve.tasks.base import Reply, Task

GRID = 100
"""Steps of the longer side that all boxes are rounded to, LLaVA's own."""


def present(task: Task, reply: Reply, image: Image) -> dict[str, Any]:
    """Return the result of a reply that is ok as JSON: texts in one form, boxes without scores and in one order.

    Numbers and other values are texts too: judges read them.
    """
    assert reply.result is not None
    result = reply.result.model_dump(mode="json")
    if not task.boxed:
        return {field: _text(str(value), verbatim=task.verbatim) for field, value in result.items()}
    step = max(image.width, image.height) / GRID
    limits = (image.width, image.height) * 2
    boxes = []
    for box in result["boxes"]:
        edges = [min(limit, round(round(edge / step) * step)) for edge, limit in zip(box["box"], limits, strict=True)]
        boxes.append({name: value for name, value in box.items() if name not in ("box", "score")} | {"box": edges})
    return {"boxes": sorted(boxes, key=lambda box: (box["label"], box["box"]))}


def length(result: dict[str, Any]) -> int:
    """Return a presented result's characters, or its number of boxes."""
    return sum(len(value) for value in result.values())


def _text(text: str, *, verbatim: bool) -> str:
    """Return a text without blanks around it; where it is no transcript also with a capital and without a full stop."""
    lines = [" ".join(line.split()) for line in unicodedata.normalize("NFC", text).strip().splitlines()]
    plain = "\n".join(lines) if verbatim else " ".join(filter(None, lines))
    if verbatim:
        return plain
    plain = plain.removesuffix(".").rstrip() or plain
    return plain[:1].upper() + plain[1:]
