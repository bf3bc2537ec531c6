"""Points inside true boxes or masks: F1, precision and recall."""

from collections.abc import Mapping, Sequence
from typing import Any

from serve.client.evaluation.measures.base import Counts, Json, Measured, ratio
from serve.media import masks
from serve.media.masks import Mask
from serve.tasks.boxes import label_key
from serve.tasks.points import PointResult


def points_inside(truths: Sequence[Json], answers: Sequence[Json | None], counts: Counts) -> list[Measured]:
    """Measure how many points lie in an object of their label that no surer point took, and how many objects have one.

    An object is a mask, a box, or a true point with its surroundings (`PointResult.reach`). Of several around a point
    it takes the smallest. A point in a crowd counts neither way, and a crowd needs none.
    """
    hits, pointed, wanted = [], [], []
    for truth, answer in zip(truths, answers, strict=True):
        objects = truth["boxes"] if "boxes" in truth else _surroundings(truth)
        hit, ignored, points = _matched(objects, (answer or {"points": []})["points"])
        hits.append(float(hit))
        pointed.append(float(points - ignored))
        wanted.append(float(sum(not box.get("crowd", False) for box in objects)))
    both = [2 * hit for hit in hits], [points + objects for points, objects in zip(pointed, wanted, strict=True)]
    return [
        ratio("F1", *both, counts),
        ratio("precision", hits, pointed, counts),
        ratio("recall", hits, wanted, counts),
    ]


def _surroundings(truth: Json) -> list[Json]:
    """Return true points as boxes around them."""
    known = PointResult.model_validate(truth)
    return [
        {"label": at.label, "box": [value + side * known.reach for side in (-1, 1) for value in at.point]}
        for at in known.points
    ]


def _matched(boxes: Sequence[Json], points: Sequence[Json]) -> tuple[int, int, int]:
    """Return the number of points in an object of their own, of those in a crowd, and of all."""
    drawn = [masks.decode(masks.Rle.model_validate(box["mask"])) if "mask" in box else None for box in boxes]
    taken: set[int] = set()
    ignored = 0
    for point in sorted(points, key=lambda point: -point["score"]):
        around = [at for at, box in enumerate(boxes) if _holds(box, drawn[at], point)]
        free = [at for at in around if at not in taken and not boxes[at].get("crowd", False)]
        if free:
            taken.add(min(free, key=lambda at: _area(boxes[at])))
        else:
            ignored += any(boxes[at].get("crowd", False) for at in around)
    return len(taken), ignored, len(points)


def _holds(box: Mapping[str, Any], mask: Mask | None, point: Mapping[str, Any]) -> bool:
    x, y = point["point"]
    x0, y0, x1, y1 = box["box"]
    if label_key(box["label"]) != label_key(point["label"]) or not (x0 <= x <= x1 and y0 <= y <= y1):
        return False
    if mask is None:
        return True
    height, width = mask.shape
    return bool(mask[min(int(y), height - 1), min(int(x), width - 1)])


def _area(box: Mapping[str, Any]) -> float:
    x0, y0, x1, y1 = box["box"]
    return float((x1 - x0) * (y1 - y0))
