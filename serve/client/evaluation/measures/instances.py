"""Average precision of boxes and masks by COCO's rules (pycocotools), and the overlap of masks."""

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from serve.client.evaluation.measures.base import AT_ONCE, Counts, Floats, Json, Measured, ratio
from serve.tasks.boxes import label_key

EVERY_SIZE = [[0.0, 1e10]]
MOST = 100  # instances of one label in one picture, as COCO has it


def box_precision(truths: Sequence[Json], answers: Sequence[Json | None], counts: Counts) -> list[Measured]:
    return _precision("mAP", "bbox", truths, answers, counts)


def mask_precision(truths: Sequence[Json], answers: Sequence[Json | None], counts: Counts) -> list[Measured]:
    return _precision("mask mAP", "segm", truths, answers, counts)


def _precision(
    name: str, kind: str, truths: Sequence[Json], answers: Sequence[Json | None], counts: Counts
) -> list[Measured]:
    """Over IoU 0.5 to 0.95, and at 0.5. A label is a category; labels that nothing true carries are left out."""
    matched = _matched(kind, truths, answers)
    whole = matched.precision
    resampled = _resampled(matched.labels, counts)
    return [
        Measured(f"{name}@0.5:0.95", 100 * float(whole.mean()), 100 * resampled.mean(axis=0)),
        Measured(f"{name}@0.5", 100 * float(whole[0]), 100 * resampled[0]),
    ]


@dataclass(frozen=True)
class _Label:
    """One category's detections, surest first. hit, skipped: [thresholds, detections]; items: where each was found.

    true, where: how many countable instances there are in which items.
    """

    hit: np.ndarray[Any, np.dtype[np.bool_]]
    skipped: np.ndarray[Any, np.dtype[np.bool_]]
    items: np.ndarray[Any, np.dtype[np.int64]]
    true: Floats
    where: np.ndarray[Any, np.dtype[np.int64]]
    recalls: Floats

    def precision(self, counts: Counts) -> Floats:
        """[thresholds, resamples]: interpolated over COCO's 101 recalls, NaN where nothing true was drawn."""
        drawn = counts[:, self.items].astype(np.float64)
        total = counts[:, self.where].astype(np.float64) @ self.true
        found = np.full((len(self.hit), len(counts)), np.nan)
        some = total > 0
        for at, (hit, skipped) in enumerate(zip(self.hit, self.skipped, strict=True)):
            right = np.cumsum(drawn[some] * (hit & ~skipped), axis=1)
            wrong = np.cumsum(drawn[some] * (~hit & ~skipped), axis=1)
            recall = right / total[some, None]
            sure = right / (right + wrong + np.spacing(1))
            envelope = np.maximum.accumulate(sure[:, ::-1], axis=1)[:, ::-1]
            reached = np.searchsorted(self.recalls, recall.ravel(), side="right").reshape(recall.shape)
            steps = np.diff(reached, axis=1, prepend=0)
            found[at, some] = (steps * envelope).sum(axis=1) / len(self.recalls)
        return found


@dataclass(frozen=True)
class _Matched:
    """labels: those with something true. precision: pycocotools' own, per threshold, over all labels."""

    labels: list[_Label]
    precision: Floats


def _matched(kind: str, truths: Sequence[Json], answers: Sequence[Json | None]) -> _Matched:
    keys = sorted({label_key(one["label"]) for true in truths for one in true["boxes"]})
    ids = {key: at for at, key in enumerate(keys, 1)}
    images = [{"id": at, **_size(true)} for at, true in enumerate(truths, 1)]
    wanted = [_annotation(at, one, ids) for at, true in enumerate(truths, 1) for one in true["boxes"]]
    said = [
        _annotation(at, one, ids) | {"score": one["score"]}
        for at, answer in enumerate(answers, 1)
        for one in (answer or {"boxes": []})["boxes"]
        if label_key(one["label"]) in ids
    ]
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        judged = COCOeval(_coco(images, wanted, ids), _coco(images, said, ids), kind)
        judged.params.areaRng, judged.params.areaRngLbl, judged.params.maxDets = EVERY_SIZE, ["all"], [MOST]
        judged.evaluate()
        judged.accumulate()
    precision = judged.eval["precision"][:, :, :, 0, 0]  # [thresholds, recalls, labels], -1 for a label without truth
    kept = (precision > -1).all(axis=(0, 1))
    thresholds = len(judged.params.iouThrs)
    means = precision[:, :, kept].mean(axis=(1, 2)) if kept.any() else np.zeros(thresholds)
    return _Matched(list(_labels(judged, len(truths))), means)


def _labels(judged: Any, items: int) -> Iterator[_Label]:
    recalls = np.asarray(judged.params.recThrs)
    for at in range(len(judged.params.catIds)):
        found = [(item, one) for item, one in enumerate(judged.evalImgs[at * items : (at + 1) * items]) if one]
        true = np.array([np.count_nonzero(np.asarray(one["gtIgnore"]) == 0) for _, one in found], dtype=np.float64)
        if not true.sum():
            continue
        order = np.argsort(-np.concatenate([one["dtScores"] for _, one in found]), kind="stable")
        places = np.repeat([item for item, _ in found], [len(one["dtScores"]) for _, one in found])
        yield _Label(
            hit=np.concatenate([one["dtMatches"] for _, one in found], axis=1)[:, order] > 0,
            skipped=np.concatenate([one["dtIgnore"] for _, one in found], axis=1)[:, order].astype(bool),
            items=places.astype(np.int64)[order],
            true=true,
            where=np.array([item for item, _ in found], dtype=np.int64),
            recalls=recalls,
        )


def _resampled(labels: Sequence[_Label], counts: Counts) -> Floats:
    """[thresholds, resamples]: the mean over the labels that have something true in a resample."""
    slabs = []
    for at in range(0, len(counts), AT_ONCE):
        some = counts[at : at + AT_ONCE]
        total, known = np.zeros((10, len(some))), np.zeros((10, len(some)))
        for label in labels:
            found = label.precision(some)
            known += ~np.isnan(found)
            total += np.nan_to_num(found)
        slabs.append(np.divide(total, known, out=np.zeros_like(total), where=known > 0))
    return np.concatenate(slabs, axis=1) if slabs else np.zeros((10, 0))


def _annotation(image: int, one: Json, ids: dict[str, int]) -> Json:
    x0, y0, x1, y1 = one["box"]
    made = {"image_id": image, "category_id": ids[label_key(one["label"])], "bbox": [x0, y0, x1 - x0, y1 - y0]}
    made |= {"area": (x1 - x0) * (y1 - y0), "iscrowd": int(one.get("crowd", False))}
    if "mask" in one:
        made["segmentation"] = {"size": list(one["mask"]["size"]), "counts": one["mask"]["counts"]}
    return made


def _coco(images: list[Json], annotations: list[Json], ids: dict[str, int]) -> Any:
    made = COCO()
    categories = [{"id": at, "name": key} for key, at in ids.items()]
    made.dataset = {"images": images, "categories": categories}
    made.dataset["annotations"] = [{"id": at, **one} for at, one in enumerate(annotations, 1)]
    made.createIndex()
    return made


def _size(true: Json) -> Json:
    """annToRLE looks the picture's size up, also for masks that say their own."""
    height, width = true["boxes"][0]["mask"]["size"] if true["boxes"] and "mask" in true["boxes"][0] else (1, 1)
    return {"height": height, "width": width}


def mask_overlap(truths: Sequence[Json], answers: Sequence[Json | None], counts: Counts) -> list[Measured]:
    """The mean over true instances of the overlap (IoU) with the mask that was found for them, 0 where none was.

    A found mask counts for one instance of its label, the pairs that overlap most first. Crowds are left out.
    """
    sums, instances = [], []
    for true, answer in zip(truths, answers, strict=True):
        wanted = [one for one in true["boxes"] if not one.get("crowd", False)]
        sums.append(sum(_overlaps(wanted, (answer or {"boxes": []})["boxes"])))
        instances.append(float(len(wanted)))
    return [ratio("mask IoU", sums, instances, counts)]


def _overlaps(wanted: Sequence[Json], found: Sequence[Json]) -> list[float]:
    if not wanted or not found:
        return []
    overlap = coco_mask.iou([_rle(one) for one in found], [_rle(one) for one in wanted], [0] * len(wanted))
    pairs = sorted(
        (
            (float(overlap[j, i]), i, j)
            for i, one in enumerate(wanted)
            for j, other in enumerate(found)
            if _same(one, other)
        ),
        key=lambda pair: (-pair[0], pair[1:]),
    )
    taken: set[int] = set()
    used: set[int] = set()
    kept = []
    for value, i, j in pairs:
        if value > 0 and i not in taken and j not in used:
            taken.add(i)
            used.add(j)
            kept.append(value)
    return kept


def _same(one: Json, other: Json) -> bool:
    return label_key(one["label"]) == label_key(other["label"])


def _rle(one: Json) -> Json:
    return {"size": list(one["mask"]["size"]), "counts": one["mask"]["counts"].encode()}
