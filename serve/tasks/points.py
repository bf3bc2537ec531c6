"""Labelled points, and how near two of them must be to show the same object."""

import math
from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, Field, field_validator

from serve.media.geometry import Box
from serve.media.masks import Mask
from serve.tasks.boxes import LabelledBox, label_key
from serve.tasks.reply import Result
from serve.tasks.request import Probability

REACH = 0.1
"""The distance of two models' points of one object, at most, as a part of the image's side (of its area's root)."""


class LabelledPoint(BaseModel):
    """x, y in pixels of the image as seen; score 0..1."""

    label: str
    point: tuple[float, float]
    score: Probability


class PointResult(Result):
    """The objects, each once: a point that repeats an earlier one of its label is dropped.

    size: height and width of the image, by which the merge tells how far two points lie apart.
    """

    points: list[LabelledPoint]
    size: tuple[int, int] = Field(description="Height and width of the image.")

    @field_validator("points")
    @classmethod
    def _each_once(cls, points: list[LabelledPoint]) -> list[LabelledPoint]:
        first: dict[tuple[str, float, float], LabelledPoint] = {}
        for point in points:
            first.setdefault((label_key(point.label), *point.point), point)
        return list(first.values())

    @property
    def reach(self) -> float:
        """Return the distance in pixels within which points of two models show the same object."""
        height, width = self.size
        return REACH * math.sqrt(float(height) * width)


def middle(box: Box) -> tuple[float, float]:
    """Return a box's centre, rounded to a hundredth of a pixel."""
    x0, y0, x1, y1 = box
    return (round((x0 + x1) / 2, 2), round((y0 + y1) / 2, 2))


def middles(boxes: Sequence[LabelledBox]) -> list[LabelledPoint]:
    """Return the centres of boxes as points, with their labels and scores."""
    return [LabelledPoint(label=box.label, point=middle(box.box), score=box.score) for box in boxes]


def middle_in(box: Box, mask: Mask) -> tuple[float, float]:
    """Return a box's centre where its mask [height, width] holds it, else the middle of the mask's nearest pixel."""
    x, y = middle(box)
    rows, columns = np.nonzero(mask)
    if not len(rows) or ((rows == math.floor(y)) & (columns == math.floor(x))).any():
        return (x, y)
    nearest = np.argmin(np.hypot(columns + 0.5 - x, rows + 0.5 - y))
    return (float(columns[nearest]) + 0.5, float(rows[nearest]) + 0.5)
