"""Several models' points as one set: points that lie near each other are one object."""

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from serve.media.geometry import Array
from serve.tasks.base import MergeRule
from serve.tasks.boxes import LabelledBox
from serve.tasks.merging.agreement import agreed, weigh
from serve.tasks.merging.box_fusion import box_deviations
from serve.tasks.merging.sightings import Cluster, Sameness, clusters, fused, fused_score, settled
from serve.tasks.points import LabelledPoint, PointResult, middle
from serve.tasks.reply import Merged, Reply

SAME = 0.5
"""The likeness of two points at the distance of an image's reach: it falls from 1 to 0 over twice that distance."""


def point_fusion(method: str, least: float = 0.0) -> MergeRule:
    """Make a rule that fuses points of one label and one object into their mean, weighted by score x weight.

    Points are grouped as boxes are (`clusters`), by their distance: within `PointResult.reach` they show one object,
    and each joins the nearest. Scores and `least` are those of box fusion. A model deviates by 1 - the mean likeness of
    its points to the fused ones, 0 for one that it did not see, and 0 for one of its own that was left out.
    """

    def fuse(replies: Sequence[Reply], given: Mapping[str, float]) -> Merged:
        weights = weigh(replies, given)
        results = [_result(reply) for reply in replies]
        likeness = functools.partial(nearness, reach=max(result.reach for result in results))
        sameness = Sameness(likeness, SAME, repeated=1.0)
        total = sum(weights.values())
        kept, lost = settled(clusters(replies, weights, _boxes, sameness), total, least, sameness)
        points = [_fuse(group, total) for group in kept]
        close = [
            {seen.model: float(likeness(_array(fused(group)), _array(seen.labelled.box))[0, 0]) for seen in group}
            for group in kept
        ]
        supporters = [[seen.model for seen in group] for group in kept]
        merged = PointResult.model_construct(points=points, size=results[0].size)  # each once: no new look
        return agreed(merged, method, weights, box_deviations(weights, close, lost), supporters)

    return fuse


def nearness(a: Array, b: Array, reach: float) -> Array:
    """Return the likeness of the centres of boxes [n, 4] and [m, 4], in pixels: [n, m], 1 at no distance, 0 at twice
    the reach or more."""
    across = (a[:, None, 0] + a[:, None, 2] - b[None, :, 0] - b[None, :, 2]) / 2
    down = (a[:, None, 1] + a[:, None, 3] - b[None, :, 1] - b[None, :, 3]) / 2
    likeness: Array = np.clip(1.0 - np.hypot(across, down) / (2.0 * reach), 0.0, 1.0)
    return likeness


def _result(reply: Reply) -> PointResult:
    assert isinstance(reply.result, PointResult)
    return reply.result


def _boxes(reply: Reply) -> list[LabelledBox]:
    """Return a reply's points as boxes without area."""
    return [
        LabelledBox.model_construct(label=point.label, box=(*point.point, *point.point), score=point.score)
        for point in _result(reply).points
    ]


def _fuse(group: Cluster[LabelledBox], total: float) -> LabelledPoint:
    return LabelledPoint(label=group[0].labelled.label, point=middle(fused(group)), score=fused_score(group, total))


def _array(box: tuple[float, float, float, float]) -> Array:
    return np.array([box])
