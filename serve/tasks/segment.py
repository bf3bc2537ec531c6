"""Segmentation: phrases in, masks out."""

from pydantic import BaseModel

from serve.masks import Rle
from serve.tasks.base import Probability, Result
from serve.tasks.detect import DetectRequest


class SegmentRequest(DetectRequest):
    pass


class LabelledMask(BaseModel):
    """A box as in detect, x0, y0, x1, y1 in pixels, and the mask inside it, as run lengths over the whole image."""

    label: str
    box: tuple[float, float, float, float]
    score: Probability
    mask: Rle


class SegmentResult(Result):
    boxes: list[LabelledMask]
