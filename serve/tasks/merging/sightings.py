"""Grouping of different models' boxes by the object that they show."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic

import numpy as np

from serve.media.geometry import Box, iou
from serve.tasks.boxes import REPEATED, ROWS, BoxT, Likeness, label_key, leaders
from serve.tasks.reply import Reply

SAME_BOX = 0.55  # weighted box fusion's threshold: boxes that overlap this much show one object
MOST = 3200  # boxes that are compared with each other: fifty of each of 64 models, 800 of each of four


@dataclass(frozen=True)
class Sighting(Generic[BoxT]):
    """A model's box, or mask with its box. order: its place in catalogue order, then in the model's own."""

    model: str
    order: tuple[int, int]
    labelled: BoxT
    weight: float

    @property
    def says(self) -> float:
        """Return weight x score, the weight of its place in the fused box."""
        return self.weight * self.labelled.score


Cluster = list[Sighting[BoxT]]


@dataclass(frozen=True)
class Sameness:
    """A rule for when boxes show the same object: by their likeness, at least `same` for two models' boxes of it, and
    `repeated` for a box that is written twice."""

    likeness: Likeness = iou
    same: float = SAME_BOX
    repeated: float = REPEATED


OVERLAP = Sameness()


def clusters(
    replies: Sequence[Reply],
    weights: Mapping[str, float],
    boxes: Callable[[Reply], Iterable[BoxT]],
    sameness: Sameness = OVERLAP,
) -> list[Cluster[BoxT]]:
    """Group boxes by the object that they show: at most one box a model, each group in catalogue order.

    The boxes of a label are taken from the surest to the least sure, equally sure ones in catalogue order, so that
    nothing depends on who answered first. A box that is the same as no box of another model that leads a group
    leads a group itself; then each other box joins the leader that it is most like. Weighted box fusion
    (arXiv 1910.13302) compares with a group's mean, which moves with every box that joins, so that another model with
    the same box could send a third model's box elsewhere. A leader's box stays where it is.

    Groups are in the order of their first box. Of more than MOST boxes each model's surest are used, equally many.
    """
    sightings = [
        Sighting(reply.model, (at, row), box, weights[reply.model])
        for at, reply in enumerate(replies)
        for row, box in _surest(boxes(reply), MOST // len(replies))
    ]
    same: dict[str, list[Sighting[BoxT]]] = {}
    for seen in sorted(sightings, key=lambda s: (-s.says, s.order)):
        same.setdefault(label_key(seen.labelled.label), []).append(seen)
    groups = [group for label in same.values() for group in _groups(label, sameness)]
    for group in groups:
        group.sort(key=lambda s: s.order)
    return sorted(groups, key=lambda group: group[0].order)


def _surest(boxes: Iterable[BoxT], count: int) -> list[tuple[int, BoxT]]:
    """Return the `count` boxes of the highest score with their rows, in the model's own order."""
    rows = sorted(enumerate(boxes), key=lambda row: -row[1].score)[:count]
    return sorted(rows, key=lambda row: row[0])


def _groups(sightings: Sequence[Sighting[BoxT]], sameness: Sameness) -> list[Cluster[BoxT]]:
    """Group the sightings of a label, given from the surest on.

    A sighting whose model is already in every group that it fits into forms groups with others of that kind.
    """
    groups: list[Cluster[BoxT]] = []
    while sightings:
        boxes = np.array([seen.labelled.box for seen in sightings])
        lead = leaders(boxes, sameness.same, [seen.order[0] for seen in sightings], sameness.likeness)
        led = [[sightings[at]] for at in lead]
        models = [{sightings[at].order[0]} for at in lead]
        homeless: list[Sighting[BoxT]] = []
        for start in range(0, len(boxes), ROWS):
            block = np.setdiff1d(np.arange(start, min(start + ROWS, len(boxes))), lead)
            near = sameness.likeness(boxes[block], boxes[lead])
            for seen, row in zip((sightings[at] for at in block), near, strict=True):
                fits = np.argsort(-row, kind="stable")[: np.count_nonzero(row >= sameness.same)].tolist()
                home = next((to for to in fits if seen.order[0] not in models[to]), None)
                if home is None:
                    homeless.append(seen)
                else:
                    led[home].append(seen)
                    models[home].add(seen.order[0])
        groups += led
        sightings = homeless
    return _once(groups, sameness)


def _once(groups: Sequence[Cluster[BoxT]], sameness: Sameness) -> list[Cluster[BoxT]]:
    """Join groups whose fused box repeats that of an earlier group to that group."""
    boxes = np.array([fused(group) for group in groups])
    kept = leaders(boxes, sameness.repeated, likeness=sameness.likeness)
    for at in set(range(len(groups))).difference(kept):
        home = groups[kept[int(np.argmax(sameness.likeness(boxes[at : at + 1], boxes[kept])))]]
        there = {seen.model for seen in home}
        home.extend(seen for seen in groups[at] if seen.model not in there)
    return [groups[at] for at in kept]


def fused(group: Cluster[BoxT]) -> Box:
    """Return the mean of the boxes by weight x score, rounded to 0.01 pixels; equal boxes stay as they are."""
    if len({seen.labelled.box for seen in group}) == 1:
        return group[0].labelled.box
    says = np.array([seen.says for seen in group])
    says = says / says.max() if says.any() else np.ones(len(group))
    mean = np.average(np.array([seen.labelled.box for seen in group]), axis=0, weights=says)
    x0, y0, x1, y1 = (round(float(value), 2) for value in mean)
    return (x0, y0, x1, y1)


def fused_score(group: Cluster[BoxT], total: float) -> float:
    """Return the sum of weight x score over `total`, the weight of all models: 0..1."""
    return min(1.0, sum(seen.says for seen in group) / total)


def overlapping(a: Box, b: Box) -> float:
    """Return the intersection over union of two boxes."""
    return float(iou(np.array([a]), np.array([b]))[0, 0])


def share(group: Cluster[BoxT], total: float) -> float:
    """Return the weight of a group's models over `total`, the weight of all: 0..1."""
    return round(sum(seen.weight for seen in group) / total, 9)  # a half is a half, whatever the weights add up to


def settled(
    groups: Sequence[Cluster[BoxT]], total: float, least: float, sameness: Sameness = OVERLAP
) -> tuple[list[Cluster[BoxT]], list[str]]:
    """Return the groups that are part of the merge, and the models of the others, once for each of their boxes.

    least: the share of the weight that a group needs. A second label of one place is left out as well.
    """
    twice = _named_twice(groups, sameness.likeness)
    kept = [at for at, group in enumerate(groups) if at not in twice and share(group, total) >= least]
    lost = [seen.model for at in sorted(set(range(len(groups))).difference(kept)) for seen in groups[at]]
    return [groups[at] for at in kept], lost


def _named_twice(groups: Sequence[Cluster[BoxT]], likeness: Likeness) -> set[int]:
    """Return the groups of one model whose label it alone puts on a place where it is surer of another label.

    Only where another model sees that other label there, too, and this label elsewhere. Two labels of one object
    (`person`, `man`) stay: a model that sees both puts both there.
    """
    labels = [label_key(group[0].labelled.label) for group in groups]
    if len(set(labels)) == 1:
        return set()
    seeing: dict[str, set[str]] = {}
    seen_by: dict[str, list[tuple[int, BoxT]]] = {}
    for at, group in enumerate(groups):
        for seen in group:
            seeing.setdefault(labels[at], set()).add(seen.model)
            seen_by.setdefault(seen.model, []).append((at, seen.labelled))
    twice: set[int] = set()
    for model, own in seen_by.items():
        places = np.array([box.box for _, box in own])
        for row, other in np.argwhere(likeness(places, places) >= REPEATED).tolist():
            (at, box), (home, surer) = own[row], own[other]
            others = {seen.model for seen in groups[home]} - {model}
            if labels[at] != labels[home] and len(groups[at]) == 1 and box.score <= surer.score:
                twice.update({at} if others & seeing[labels[at]] else ())
    return twice
