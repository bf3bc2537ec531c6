"""Measures by task; the first number of a task decides which model is best. A task without is not evaluated."""

from serve.client.evaluation.measures.answers import exact, vqa_accuracy
from serve.client.evaluation.measures.base import Measure, Measured
from serve.client.evaluation.measures.characters import character_errors
from serve.client.evaluation.measures.cider import cider_d
from serve.client.evaluation.measures.counts import count_errors
from serve.client.evaluation.measures.instances import box_precision, mask_overlap, mask_precision
from serve.client.evaluation.measures.labels import label_accuracy
from serve.client.evaluation.measures.objects import field_accuracy
from serve.client.evaluation.measures.points import points_inside
from serve.client.evaluation.measures.shapes import every_shape

__all__ = ["MEASURES", "Measure", "Measured"]

MEASURES: dict[str, tuple[Measure, ...]] = {
    "vqa": (vqa_accuracy,),
    "caption": (cider_d(lambda truth: truth["captions"], lambda result: str(result["caption"])), every_shape),
    "ocr": (character_errors,),
    "detect": (box_precision,),
    "segment": (mask_overlap, mask_precision),
    "point": (points_inside,),
    "count": (count_errors,),
    "classify": (label_accuracy,),
    "extract": (field_accuracy,),
    "chat": (cider_d(lambda truth: truth["answers"], lambda result: str(result["text"])), exact),
}
