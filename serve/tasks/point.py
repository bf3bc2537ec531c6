"""Pointing: phrases in, a point on each object out."""

from serve.tasks.base import LABELS, Task
from serve.tasks.detect import DetectRequest
from serve.tasks.merging.box_fusion import HALF
from serve.tasks.merging.point_fusion import point_fusion
from serve.tasks.points import PointResult


class PointRequest(DetectRequest):
    pass


def _as_text(result: PointResult) -> str:
    lines = (f"{point.label} [{', '.join(f'{value:.0f}' for value in point.point)}]" for point in result.points)
    return "; ".join(lines) or "nothing found"


POINT = Task(
    name="point",
    title="Pointing",
    known_as=("pointing",),
    request=PointRequest,
    result=PointResult,
    methods={"consensus": point_fusion("consensus", least=HALF), "point_fusion": point_fusion("point_fusion")},
    text_field=LABELS,
    example={"labels": ["red circle", "blue square"]},
    as_text=_as_text,
)
