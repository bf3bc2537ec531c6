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
    """Measure precision over IoU 0.5 to 0.95, and at 0.5. A label is a category; those without truth are left out."""
    matched = _matched(kind, truths, answers)
    whole = matched.precision
    resampled = _resampled(matched.labels, counts)
    return [
        Measured(f"{name}@0.5:0.95", 100 * float(whole.mean()), 100 * resampled.mean(axis=0)),
        Measured(f"{name}@0.5", 100 * float(whole[0]), 100 * resampled[0]),
    ]


@dataclass(frozen=True)
class _Label:
    """A category's detections, surest first. hit, skipped: [thresholds, detections]; items: each detection's item.

    true: the number of true instances, crowds aside, in each of the items `where`.
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
        precision = np.full((len(self.hit), len(counts)), np.nan)
        some = total > 0
        for at, (hit, skipped) in enumerate(zip(self.hit, self.skipped, strict=True)):
            right = np.cumsum(drawn[some] * (hit & ~skipped), axis=1)
            wrong = np.cumsum(drawn[some] * (~hit & ~skipped), axis=1)
            recall = right / total[some, None]
            sure = right / (right + wrong + np.spacing(1))
            envelope = np.maximum.accumulate(sure[:, ::-1], axis=1)[:, ::-1]
            reached = np.searchsorted(self.recalls, recall.ravel(), side="right").reshape(recall.shape)
            steps = np.diff(reached, axis=1, prepend=0)
            precision[at, some] = (steps * envelope).sum(axis=1) / len(self.recalls)
        return precision


@dataclass(frozen=True)
class _Matched:
    """labels: those with something true. precision: pycocotools' own, per threshold, over all labels."""

    labels: list[_Label]
    precision: Floats


def _matched(kind: str, truths: Sequence[Json], answers: Sequence[Json | None]) -> _Matched:
    keys = sorted({label_key(box["label"]) for truth in truths for box in truth["boxes"]})
    ids = {key: at for at, key in enumerate(keys, 1)}
    images = [{"id": at, **_size(truth)} for at, truth in enumerate(truths, 1)]
    wanted = [_annotation(at, box, ids) for at, truth in enumerate(truths, 1) for box in truth["boxes"]]
    detected = [
        _annotation(at, box, ids) | {"score": box["score"]}
        for at, answer in enumerate(answers, 1)
        for box in (answer or {"boxes": []})["boxes"]
        if label_key(box["label"]) in ids
    ]
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        judged = COCOeval(_coco(images, wanted, ids), _coco(images, detected, ids), kind)
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
        rows = [(item, row) for item, row in enumerate(judged.evalImgs[at * items : (at + 1) * items]) if row]
        true = np.array([np.count_nonzero(np.asarray(row["gtIgnore"]) == 0) for _, row in rows], dtype=np.float64)
        if not true.sum():
            continue
        order = np.argsort(-np.concatenate([row["dtScores"] for _, row in rows]), kind="stable")
        places = np.repeat([item for item, _ in rows], [len(row["dtScores"]) for _, row in rows])
        yield _Label(
            hit=np.concatenate([row["dtMatches"] for _, row in rows], axis=1)[:, order] > 0,
            skipped=np.concatenate([row["dtIgnore"] for _, row in rows], axis=1)[:, order].astype(bool),
            items=places.astype(np.int64)[order],
            true=true,
            where=np.array([item for item, _ in rows], dtype=np.int64),
            recalls=recalls,
        )


def _resampled(labels: Sequence[_Label], counts: Counts) -> Floats:
    """[thresholds, resamples]: the mean over the labels that have something true in a resample."""
    slabs = []
    for at in range(0, len(counts), AT_ONCE):
        some = counts[at : at + AT_ONCE]
        total, known = np.zeros((10, len(some))), np.zeros((10, len(some)))
        for label in labels:
            precision = label.precision(some)
            known += ~np.isnan(precision)
            total += np.nan_to_num(precision)
        slabs.append(np.divide(total, known, out=np.zeros_like(total), where=known > 0))
    return np.concatenate(slabs, axis=1) if slabs else np.zeros((10, 0))


def _annotation(image: int, box: Json, ids: dict[str, int]) -> Json:
    x0, y0, x1, y1 = box["box"]
    annotation = {"image_id": image, "category_id": ids[label_key(box["label"])], "bbox": [x0, y0, x1 - x0, y1 - y0]}
    annotation |= {"area": (x1 - x0) * (y1 - y0), "iscrowd": int(box.get("crowd", False))}
    if "mask" in box:
        annotation["segmentation"] = {"size": list(box["mask"]["size"]), "counts": box["mask"]["counts"]}
    return annotation


def _coco(images: list[Json], annotations: list[Json], ids: dict[str, int]) -> Any:
    coco = COCO()
    categories = [{"id": at, "name": key} for key, at in ids.items()]
    coco.dataset = {"images": images, "categories": categories}
    coco.dataset["annotations"] = [{"id": at, **annotation} for at, annotation in enumerate(annotations, 1)]
    coco.createIndex()
    return coco


def _size(true: Json) -> Json:
    """Return the picture's size, which annToRLE looks up, also for masks that have their own."""
    height, width = true["boxes"][0]["mask"]["size"] if true["boxes"] and "mask" in true["boxes"][0] else (1, 1)
    return {"height": height, "width": width}


def mask_overlap(truths: Sequence[Json], answers: Sequence[Json | None], counts: Counts) -> list[Measured]:
    """Measure the mean IoU of true instances with the masks that were detected for them, 0 where there is none.

    A detected mask counts for one instance of its label, the pairs that overlap most first. Crowds are left out.
    """
    sums, instances = [], []
    for truth, answer in zip(truths, answers, strict=True):
        wanted = [box for box in truth["boxes"] if not box.get("crowd", False)]
        sums.append(sum(_overlaps(wanted, (answer or {"boxes": []})["boxes"])))
        instances.append(float(len(wanted)))
    return [ratio("mask IoU", sums, instances, counts)]


def _overlaps(wanted: Sequence[Json], detected: Sequence[Json]) -> list[float]:
    if not wanted or not detected:
        return []
    overlap = coco_mask.iou([_rle(box) for box in detected], [_rle(box) for box in wanted], [0] * len(wanted))
    pairs = sorted(
        (
            (float(overlap[j, i]), i, j)
            for i, box in enumerate(wanted)
            for j, other in enumerate(detected)
            if _same_label(box, other)
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


def _same_label(box: Json, other: Json) -> bool:
    return label_key(box["label"]) == label_key(other["label"])


def _rle(box: Json) -> Json:
    return {"size": list(box["mask"]["size"]), "counts": box["mask"]["counts"].encode()}
