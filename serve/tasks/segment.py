"""Segmentation: phrases in, masks out."""

from serve.media.masks import area
from serve.tasks.base import LABELS, Task
from serve.tasks.detect import DetectRequest
from serve.tasks.masks import LabelledMask, SegmentResult
from serve.tasks.merging.box_fusion import HALF
from serve.tasks.merging.mask_vote import mask_vote

__all__ = ["SEGMENT", "LabelledMask", "SegmentRequest", "SegmentResult"]


class SegmentRequest(DetectRequest):
    pass


def _as_text(result: SegmentResult) -> str:
    lines = (f"{box.label} [{', '.join(f'{v:.0f}' for v in box.box)}], {area(box.mask)} pixels" for box in result.boxes)
    return "; ".join(lines) or "nothing found"


SEGMENT = Task(
    name="segment",
    title="Segmentation",
    known_as=("segmentation", "image-segmentation"),
    request=SegmentRequest,
    result=SegmentResult,
    methods={"mask_vote": mask_vote("mask_vote"), "consensus": mask_vote("consensus", least=HALF)},
    text_field=LABELS,
    example={"labels": ["red circle"]},
    as_text=_as_text,
    heavy=True,  # masks are drawn and voted on pixel by pixel
)
