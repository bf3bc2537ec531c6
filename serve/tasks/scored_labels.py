"""Labels that are right of an image, each with its score."""

from pydantic import BaseModel, field_validator

from serve.tasks.boxes import label_key
from serve.tasks.reply import Result
from serve.tasks.request import Probability


class ScoredLabel(BaseModel):
    """A label as it was asked, and how sure the model is of it, 0..1."""

    label: str
    score: Probability


class ClassifyResult(Result):
    """The right labels, each once. multiple: whether any number may be right; else it is the one that fits best."""

    labels: list[ScoredLabel]
    multiple: bool = False

    @field_validator("labels")
    @classmethod
    def _each_once(cls, labels: list[ScoredLabel]) -> list[ScoredLabel]:
        first: dict[str, ScoredLabel] = {}
        for label in labels:
            first.setdefault(label_key(label.label), label)
        return list(first.values())

    @property
    def keys(self) -> frozenset[str]:
        """Return what the labels mean, to compare them."""
        return frozenset(label_key(label.label) for label in self.labels)


def label_likeness(a: frozenset[str], b: frozenset[str]) -> float:
    """Return the Jaccard index of two sets of labels: 0..1, 1 for two empty ones."""
    return len(a & b) / len(a | b) if a | b else 1.0
