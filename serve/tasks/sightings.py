"""Which boxes of different models show the same object."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from serve.geometry import Box, iou
from serve.tasks.base import Reply
from serve.tasks.boxes import LabelledBox, label_key

SAME_BOX = 0.55  # weighted box fusion's threshold: boxes that overlap this much show one object

Found = TypeVar("Found", bound=LabelledBox)


@dataclass(frozen=True)
class Sighting(Generic[Found]):
    """One model's box, or mask with its box. order: its place in catalogue order, then in the model's own."""

    model: str
    order: tuple[int, int]
    found: Found
    weight: float

    @property
    def says(self) -> float:
        """Weight x score: how much it has to say about where its object is."""
        return self.weight * self.found.score


Cluster = list[Sighting[Found]]


def clusters(
    replies: Sequence[Reply], weights: Mapping[str, float], boxes: Callable[[Reply], Iterable[Found]]
) -> list[Cluster[Found]]:
    """Groups of at most one box a model, each in catalogue order; groups in the order of their first box.

    As in weighted box fusion (arXiv 1910.13302): the surest box leads, and each next one joins the group of its label
    whose fused box it overlaps most, if by SAME_BOX, or else leads a group of its own. Equally sure boxes come in
    catalogue order, so that nothing depends on who answered first.
    """
    sightings = [
        Sighting(reply.model, (column, row), found, weights[reply.model])
        for column, reply in enumerate(replies)
        for row, found in enumerate(boxes(reply))
    ]
    groups: list[Cluster[Found]] = []
    for seen in sorted(sightings, key=lambda s: (-s.says, s.order)):
        best, home = SAME_BOX, None
        for group in groups:
            stranger = seen.model not in (other.model for other in group)
            if stranger and label_key(group[0].found.label) == label_key(seen.found.label):
                overlap = overlapping(seen.found.box, fused(group))
                if overlap > best or (home is None and overlap == best):  # of equals the first: a surer box leads it
                    best, home = overlap, group
        if home is None:
            groups.append([seen])
        else:
            home.append(seen)
    for group in groups:
        group.sort(key=lambda s: s.order)
    return sorted(groups, key=lambda group: group[0].order)


def fused(group: Cluster[Found]) -> Box:
    """The mean of the group's boxes, weighted by weight x score, to a hundredth of a pixel; one box stays as it is."""
    if len({seen.found.box for seen in group}) == 1:
        return group[0].found.box
    says = np.array([seen.says for seen in group])
    says = says / says.max() if says.any() else np.ones(len(group))
    mean = np.average(np.array([seen.found.box for seen in group]), axis=0, weights=says)
    x0, y0, x1, y1 = (round(float(value), 2) for value in mean)
    return (x0, y0, x1, y1)


def fused_score(group: Cluster[Found], total: float) -> float:
    """The group's scores over all the weight there is: 0..1."""
    return min(1.0, sum(seen.says for seen in group) / total)


def overlapping(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    return float(iou(np.array([a]), np.array([b]))[0, 0])


def share(group: Cluster[Found], total: float) -> float:
    """Which part of the whole weight, 0..1, stands behind a group."""
    return round(sum(seen.weight for seen in group) / total, 9)  # a half is a half, whatever the weights add up to
