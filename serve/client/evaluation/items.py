"""A labelled item: one question about one picture, and its true answer."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

Json = dict[str, Any]


@dataclass(frozen=True)
class Item:
    """A question about a picture and its true answer.

    name: the same in every run. picture: its name; questions about one picture share it. fields: of the request but for
    the image. load: returns the picture's bytes.

    truth: `answers` (vqa: of people; chat) or `accepted` (vqa: every way to write the right one), `captions` and for
    drawn scenes `shapes` (caption), `text` (ocr), or `boxes` (detect, segment, point), each {"label", "box": [x0, y0,
    x1, y1] in pixels} and where it applies "mask" (COCO's run lengths) and "crowd"; `labels` (classify), those that are
    right; `data` (extract); of other tasks the fields of their result.
    """

    name: str
    picture: str
    task: str
    fields: Json
    truth: Json
    load: Callable[[], bytes]


def labels(boxes: Sequence[Json]) -> list[str]:
    """Return the labels of these boxes, each once."""
    return list(dict.fromkeys(str(box["label"]) for box in boxes))


def png_bytes(picture: Image.Image) -> bytes:
    """Return a picture as a PNG file, compressed quickly."""
    out = io.BytesIO()
    picture.save(out, "PNG", compress_level=1)
    return out.getvalue()
