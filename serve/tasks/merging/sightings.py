"""Which boxes of different models show the same object."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic

import numpy as np

from serve.media.geometry import Box, iou
from serve.tasks.base import Reply
from serve.tasks.boxes import REPEATED, ROWS, Found, label_key, leaders

SAME_BOX = 0.55  # weighted box fusion's threshold: boxes that overlap this much show one object
MOST = 3200  # boxes that are compared with each other: fifty of each of 64 models, 800 of each of four


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

    The boxes of a label are taken from the surest to the least sure, equally sure ones in catalogue order, so that
    nothing depends on who answered first. A box that overlaps no box of another model that leads a group by SAME_BOX
    leads a group itself; then each other box joins the leader that it overlaps most. Weighted box fusion
    (arXiv 1910.13302) compares with a group's mean, which moves with every box that joins: then one model more that
    says what another says could send a third model's box elsewhere. A leader's box stays where it is.

    Of more than MOST boxes each model's surest are looked at, as many of every model.
    """
    sightings = [
        Sighting(reply.model, (column, row), found, weights[reply.model])
        for column, reply in enumerate(replies)
        for row, found in _surest(boxes(reply), MOST // len(replies))
    ]
    same: dict[str, list[Sighting[Found]]] = {}
    for seen in sorted(sightings, key=lambda s: (-s.says, s.order)):
        same.setdefault(label_key(seen.found.label), []).append(seen)
    groups = [group for label in same.values() for group in _groups(label)]
    for group in groups:
        group.sort(key=lambda s: s.order)
    return sorted(groups, key=lambda group: group[0].order)


def _surest(boxes: Iterable[Found], count: int) -> list[tuple[int, Found]]:
    """At most `count` boxes with their rows, in the model's own order."""
    rows = sorted(enumerate(boxes), key=lambda row: -row[1].score)[:count]
    return sorted(rows, key=lambda row: row[0])


def _groups(sightings: Sequence[Sighting[Found]]) -> list[Cluster[Found]]:
    """The groups of one label; sightings from the surest on. What finds its model in every group that it fits into
    forms groups with others of that kind."""
    groups: list[Cluster[Found]] = []
    while sightings:
        boxes = np.array([seen.found.box for seen in sightings])
        lead = leaders(boxes, SAME_BOX, [seen.order[0] for seen in sightings])
        led = [[sightings[at]] for at in lead]
        models = [{sightings[at].order[0]} for at in lead]
        homeless: list[Sighting[Found]] = []
        for start in range(0, len(boxes), ROWS):
            block = np.setdiff1d(np.arange(start, min(start + ROWS, len(boxes))), lead)
            near = iou(boxes[block], boxes[lead])
            for seen, row in zip((sightings[at] for at in block), near, strict=True):
                fits = np.argsort(-row, kind="stable")[: np.count_nonzero(row >= SAME_BOX)].tolist()
                home = next((to for to in fits if seen.order[0] not in models[to]), None)
                if home is None:
                    homeless.append(seen)
                else:
                    led[home].append(seen)
                    models[home].add(seen.order[0])
        groups += led
        sightings = homeless
    return _once(groups)


def _once(groups: Sequence[Cluster[Found]]) -> list[Cluster[Found]]:
    """The groups without those whose fused box repeats that of an earlier one: their models stand behind that."""
    boxes = np.array([fused(group) for group in groups])
    kept = leaders(boxes, REPEATED)
    for at in set(range(len(groups))).difference(kept):
        home = groups[kept[int(np.argmax(iou(boxes[at : at + 1], boxes[kept])))]]
        there = {seen.model for seen in home}
        home.extend(seen for seen in groups[at] if seen.model not in there)
    return [groups[at] for at in kept]


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


def settled(groups: Sequence[Cluster[Found]], total: float, least: float) -> tuple[list[Cluster[Found]], list[str]]:
    """The groups that are part of the merge, and the models of the others, once for each box of theirs.

    least: what share of the weight must stand behind a group. Left out as well is a second name of one place.
    """
    twice = _named_twice(groups)
    kept = [at for at, group in enumerate(groups) if at not in twice and share(group, total) >= least]
    lost = [seen.model for at in sorted(set(range(len(groups))).difference(kept)) for seen in groups[at]]
    return [groups[at] for at in kept], lost


def _named_twice(groups: Sequence[Cluster[Found]]) -> set[int]:
    """The groups of a label that one model alone puts on a place, though it is surer of another label there.

    Others see that label there, too, and one of them has seen this one elsewhere. Two labels of one object (`person`,
    `man`) stay: who sees both puts both there.
    """
    labels = [label_key(group[0].found.label) for group in groups]
    if len(set(labels)) == 1:
        return set()
    seeing: dict[str, set[str]] = {}
    seen_by: dict[str, list[tuple[int, Found]]] = {}
    for at, group in enumerate(groups):
        for seen in group:
            seeing.setdefault(labels[at], set()).add(seen.model)
            seen_by.setdefault(seen.model, []).append((at, seen.found))
    twice: set[int] = set()
    for model, own in seen_by.items():
        places = np.array([found.box for _, found in own])
        for row, other in np.argwhere(iou(places, places) >= REPEATED).tolist():
            (at, found), (home, surer) = own[row], own[other]
            others = {seen.model for seen in groups[home]} - {model}
            if labels[at] != labels[home] and len(groups[at]) == 1 and found.score <= surer.score:
                twice.update({at} if others & seeing[labels[at]] else ())
    return twice
