"""Labelled boxes, when two labels mean the same, and when two boxes show the same object."""

import unicodedata
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from pydantic import BaseModel, field_validator

from serve.media.geometry import Array, iou
from serve.tasks.reply import Result
from serve.tasks.request import Probability

REPEATED = 0.9  # boxes of one label in one reply that overlap this much are one object, said again
MARKS = " \t\n.,:;!?'\"`´‘’‚“”„«»()[]{}"  # may stand around a phrase and do not change what it means
ROWS = 256  # boxes compared with all others in one step


class LabelledBox(BaseModel):
    """x0, y0, x1, y1 in pixels of the image as seen; score 0..1."""

    label: str
    box: tuple[float, float, float, float]
    score: Probability


BoxT = TypeVar("BoxT", bound=LabelledBox)
Likeness = Callable[[Array, Array], Array]  # of boxes [n, 4] and [m, 4]: [n, m] in 0..1


class DetectResult(Result):
    """The objects, each once: a box that repeats an earlier one of its label is dropped."""

    boxes: list[LabelledBox]

    @field_validator("boxes")
    @classmethod
    def _each_once(cls, boxes: list[LabelledBox]) -> list[LabelledBox]:
        return distinct(boxes)


def phrase(label: str) -> str:
    """Return a label on one line, without the marks around it and the separator in it."""
    text = " ".join(label.replace(";", " ").split())
    return text.strip(MARKS) or text


def bare_phrase(label: str) -> str:
    """Return a label without its article, for models that were trained on names alone."""
    text = phrase(label)
    article, _, rest = text.partition(" ")
    return rest.strip(MARKS) or rest if rest and article.casefold() in ("a", "an", "the") else text


def label_key(label: str) -> str:
    """Return the same text for labels that mean the same: case, spacing, marks around them and an article aside."""
    return bare_phrase(unicodedata.normalize("NFKC", label)).casefold()


class AskedLabels:
    """A request's labels, to be looked up by a model's text for them."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = {label_key(label): label for label in reversed(labels)}

    def find(self, text: str, *, last: bool = False, cut: bool = False) -> str | None:
        """Return the label that a model's text names, as it was asked for; None where it names none.

        last: the text ends the reply, so it may be the beginning of a label. cut: the reply was broken off there, so
        even a whole label may be the beginning of a longer one. A beginning that several labels have names none, nor
        does an empty text where there are several.
        """
        key = label_key(text)
        if key in self._labels and not cut:
            return self._labels[key]
        if not key or last:
            begun = [label for label in self._labels.values() if _begins(label, text)]
            return begun[0] if len(begun) == 1 else None
        return self._labels.get(key)


def _begins(label: str, text: str) -> bool:
    """Return whether a label begins with a text, with or without its article."""
    return phrase(label).casefold().startswith(phrase(text).casefold()) or label_key(label).startswith(label_key(text))


def distinct(boxes: Sequence[BoxT]) -> list[BoxT]:
    """Return the boxes without those that repeat an earlier one of the same label."""
    if len(boxes) < 2:
        return list(boxes)
    rows: dict[str, list[int]] = {}
    for at, box in enumerate(boxes):
        rows.setdefault(label_key(box.label), []).append(at)
    kept: list[int] = []
    for same in rows.values():
        lead = leaders(np.array([boxes[at].box for at in same]), REPEATED) if len(same) > 1 else [0]
        kept += [same[at] for at in lead]
    return [boxes[at] for at in sorted(kept)]


def leaders(boxes: Array, least: float, owners: Sequence[int] | None = None, likeness: Likeness = iou) -> list[int]:
    """Return the rows of boxes [n, 4] that are alike no earlier such row by `least`.

    owners: [n]; boxes of the same owner are not compared.
    """
    of = np.arange(len(boxes)) if owners is None else np.array(owners)
    leading: list[int] = []
    for start in range(0, len(boxes), ROWS):
        block = np.arange(start, min(start + ROWS, len(boxes)))
        earlier = np.array(leading, int)
        apart = of[block, None] != of[None, earlier]
        covered = ((likeness(boxes[block], boxes[earlier]) >= least) & apart).any(axis=1)
        inside = (likeness(boxes[block], boxes[block]) >= least) & (of[block, None] != of[None, block])
        for at in range(len(block)):
            if not covered[at]:
                leading.append(start + at)
                covered |= inside[at]
                covered[at] = True
    return leading
