"""Segmentation: phrases in, masks out."""

from serve.masks import area
from serve.tasks.base import Task
from serve.tasks.box_fusion import HALF
from serve.tasks.detect import DetectRequest
from serve.tasks.mask_vote import mask_vote
from serve.tasks.masks import LabelledMask, SegmentResult

__all__ = ["SEGMENT", "LabelledMask", "SegmentRequest", "SegmentResult"]


class SegmentRequest(DetectRequest):
    pass


def _words(result: SegmentResult) -> str:
    found = (
        f"{found.label} [{', '.join(f'{v:.0f}' for v in found.box)}], {area(found.mask)} pixels"
        for found in result.boxes
    )
    return "; ".join(found) or "nothing found"


SEGMENT = Task(
    name="segment",
    title="Segmentation",
    request=SegmentRequest,
    result=SegmentResult,
    methods={"mask_vote": mask_vote("mask_vote"), "consensus": mask_vote("consensus", least=HALF)},
    words=_words,
    heavy=True,  # masks are drawn and voted on pixel by pixel
)
