"""Detection: phrases in, boxes out."""

from typing import Annotated

from pydantic import Field, field_validator

from serve.tasks.base import Request, Task
from serve.tasks.box_fusion import HALF, box_fusion
from serve.tasks.boxes import DetectResult

Phrase = Annotated[str, Field(min_length=1, max_length=200)]


class DetectRequest(Request):
    labels: Annotated[list[Phrase], Field(min_length=1, max_length=32)]

    @field_validator("labels")
    @classmethod
    def _plain(cls, labels: list[str]) -> list[str]:
        """Phrases without the marks that separate them, each once."""
        phrases = [" ".join(label.replace(";", " ").split()) for label in labels]
        if not all(phrases):
            raise ValueError("a phrase must not be empty")
        return list(dict.fromkeys(phrases))


def _words(result: DetectResult) -> str:
    found = (f"{found.label} [{', '.join(f'{v:.0f}' for v in found.box)}]" for found in result.boxes)
    return "; ".join(found) or "nothing found"


DETECT = Task(
    name="detect",
    title="Detection",
    request=DetectRequest,
    result=DetectResult,
    methods={
        "weighted_box_fusion": box_fusion("weighted_box_fusion"),
        "consensus": box_fusion("consensus", least=HALF),
    },
    words=_words,
)
