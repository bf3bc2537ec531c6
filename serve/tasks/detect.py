"""Detection: phrases in, boxes out."""

from typing import Annotated

from pydantic import Field, field_validator

from serve.limits import MAX_LABELS
from serve.tasks.base import LABELS, Task
from serve.tasks.boxes import DetectResult, label_key, phrase
from serve.tasks.merging.box_fusion import HALF, box_fusion
from serve.tasks.request import Request

Phrase = Annotated[str, Field(min_length=1, max_length=200)]


class DetectRequest(Request):
    labels: Annotated[list[Phrase], Field(min_length=1, max_length=MAX_LABELS)]

    @field_validator("labels")
    @classmethod
    def _each_once(cls, labels: list[str]) -> list[str]:
        """Keep the labels as they are written; of several that mean the same, the first."""
        if not all(phrase(label) for label in labels):
            raise ValueError("a phrase must not be empty")
        first: dict[str, str] = {}
        for label in labels:
            first.setdefault(label_key(label), label)
        return list(first.values())

    @property
    def phrases(self) -> list[str]:
        """Return the labels in the form that models are asked for: one line each, without marks around them."""
        return [phrase(label) for label in self.labels]


def _as_text(result: DetectResult) -> str:
    lines = (f"{box.label} [{', '.join(f'{v:.0f}' for v in box.box)}]" for box in result.boxes)
    return "; ".join(lines) or "nothing found"


DETECT = Task(
    name="detect",
    title="Detection",
    known_as=("object-detection",),
    request=DetectRequest,
    result=DetectResult,
    methods={
        "weighted_box_fusion": box_fusion("weighted_box_fusion"),
        "consensus": box_fusion("consensus", least=HALF),
    },
    text_field=LABELS,
    example={"labels": ["red circle", "blue square"]},
    as_text=_as_text,
)
