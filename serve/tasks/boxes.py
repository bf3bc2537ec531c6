"""Labelled boxes, and when two labels mean the same."""

from pydantic import BaseModel

from serve.tasks.base import Probability, Result


class LabelledBox(BaseModel):
    """x0, y0, x1, y1 in pixels of the image as seen; score 0..1."""

    label: str
    box: tuple[float, float, float, float]
    score: Probability


class DetectResult(Result):
    boxes: list[LabelledBox]


def label_key(label: str) -> str:
    """Labels that mean the same phrase: case, spacing and a leading article aside."""
    words = label.lower().split()
    return " ".join(words[1:] if len(words) > 1 and words[0] in ("a", "an", "the") else words)
