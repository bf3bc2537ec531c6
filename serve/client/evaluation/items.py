"""A labelled item: one question about one picture, and what is true."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]
TASKS = ("vqa", "caption", "ocr", "detect", "segment", "chat")
MOST_LABELS = 32  # what one request may ask for


@dataclass(frozen=True)
class Item:
    """name: the same in every run. picture: whose; questions about one picture share it. load: its bytes.

    truth: `answers` (vqa, chat), `captions` and for drawn scenes `shapes` (caption), `text` (ocr), or `boxes`
    (detect, segment), each {"label", "box": [x0, y0, x1, y1] in pixels} and where it applies "mask" (COCO's run
    lengths) and "crowd".
    """

    name: str
    picture: str
    task: str
    fields: Json
    truth: Json
    load: Callable[[], bytes]


def labels(boxes: Sequence[Json]) -> list[str]:
    """The labels to ask for: those that are there, each once."""
    return list(dict.fromkeys(str(one["label"]) for one in boxes))
