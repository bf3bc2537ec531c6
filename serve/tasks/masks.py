"""Labelled masks: an object's name, its box and which pixels are its own."""

from pydantic import field_validator

from serve.media.masks import Rle
from serve.tasks.boxes import LabelledBox, distinct
from serve.tasks.reply import Result


class LabelledMask(LabelledBox):
    """A box as in detect, x0, y0, x1, y1 in pixels, and the mask inside it, as run lengths over the whole image."""

    mask: Rle


class SegmentResult(Result):
    """The objects, each once, as in detect."""

    boxes: list[LabelledMask]

    @field_validator("boxes")
    @classmethod
    def _each_once(cls, boxes: list[LabelledMask]) -> list[LabelledMask]:
        return distinct(boxes)
