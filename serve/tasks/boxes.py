"""Labelled boxes and how several models' boxes become one set: weighted box fusion (arXiv 1910.13302)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel

from serve.geometry import iou
from serve.tasks.base import Merged, Probability, Reply, Result
from serve.tasks.vote import weigh

SAME_BOX = 0.55  # the paper's threshold: boxes that overlap this much show one object


class LabelledBox(BaseModel):
    """x0, y0, x1, y1 in pixels of the image as seen; score 0..1."""

    label: str
    box: tuple[float, float, float, float]
    score: Probability


class DetectResult(Result):
    boxes: list[LabelledBox]


@dataclass(frozen=True)
class Sighting:
    """One model's box. order: its place in catalogue order, then in the model's own."""

    model: str
    order: tuple[int, int]
    found: LabelledBox
    weight: float


def label_key(label: str) -> str:
    """Labels that mean the same phrase: case, spacing and a leading article aside."""
    words = label.lower().split()
    return " ".join(words[1:] if len(words) > 1 and words[0] in ("a", "an", "the") else words)


def weighted_box_fusion(replies: Sequence[Reply], given: Mapping[str, float]) -> Merged:
    """Per label, boxes of different models that overlap become their mean, weighted by score x weight.

    A fused score is the supporters' scores over the weight of *all* models asked, so that what one of two models
    sees scores half and never more than 1. Agreement is the weighted mean over models of how well the fused boxes
    are theirs (mean IoU, 0 for a fused box a model did not see).
    """
    weights = weigh(replies, given)
    total = sum(weights.values())
    clusters = _clusters(replies, weights)
    boxes = [_fuse(cluster, total) for cluster in clusters]
    deviations = {reply.model: _deviation(reply.model, clusters) for reply in replies}
    strayed = sum(weights[model] * value for model, value in deviations.items())
    return Merged(
        result=DetectResult(boxes=boxes),
        method="weighted_box_fusion",
        agreement=min(1.0, max(0.0, 1.0 - strayed / total)),
        models=[reply.model for reply in replies],
        supporters=[[seen.model for seen in cluster] for cluster in clusters],
        deviations=deviations,
    )


def _clusters(replies: Sequence[Reply], weights: Mapping[str, float]) -> list[list[Sighting]]:
    """Groups of at most one box a model, each in catalogue order; groups in the order of their first box."""
    sightings = [
        Sighting(reply.model, (column, row), found, weights[reply.model])
        for column, reply in enumerate(replies)
        if isinstance(reply.result, DetectResult)
        for row, found in enumerate(reply.result.boxes)
    ]
    clusters: list[list[Sighting]] = []
    for seen in sorted(sightings, key=lambda s: (-s.weight * s.found.score, s.order)):  # the surest box leads
        best, home = SAME_BOX, None
        for cluster in clusters:
            strangers = seen.model not in (other.model for other in cluster)
            if strangers and label_key(cluster[0].found.label) == label_key(seen.found.label):
                fused = _mean(cluster)
                overlap = float(iou(np.array([seen.found.box]), np.array([fused]))[0, 0])
                if overlap >= best:
                    best, home = overlap, cluster
        if home is None:
            clusters.append([seen])
        else:
            home.append(seen)
    for cluster in clusters:
        cluster.sort(key=lambda s: s.order)
    return sorted(clusters, key=lambda cluster: cluster[0].order)


def _mean(cluster: Sequence[Sighting]) -> tuple[float, float, float, float]:
    if len(cluster) == 1:
        return cluster[0].found.box
    says = np.array([s.weight * s.found.score for s in cluster])
    says = says / says.max() if says.any() else np.ones(len(cluster))
    x0, y0, x1, y1 = np.average(np.array([s.found.box for s in cluster]), axis=0, weights=says)
    return (float(x0), float(y0), float(x1), float(y1))


def _fuse(cluster: Sequence[Sighting], total: float) -> LabelledBox:
    score = sum(s.weight * s.found.score for s in cluster) / total
    x0, y0, x1, y1 = (round(v, 2) for v in _mean(cluster)) if len(cluster) > 1 else cluster[0].found.box
    return LabelledBox(label=cluster[0].found.label, box=(x0, y0, x1, y1), score=min(1.0, score))


def _deviation(model: str, clusters: Sequence[Sequence[Sighting]]) -> float:
    """1 - the mean IoU of the model's boxes with the fused ones, 0 for a fused box that it did not see."""
    if not clusters:
        return 0.0
    close = [
        float(iou(np.array([seen.found.box]), np.array([_mean(cluster)]))[0, 0])
        for cluster in clusters
        for seen in cluster
        if seen.model == model
    ]
    return round(min(1.0, max(0.0, 1.0 - sum(close) / len(clusters))), 6)
