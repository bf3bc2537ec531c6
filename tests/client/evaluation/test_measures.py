"""Measures against values computed by hand, and against pycocotools."""

import contextlib
import io
import math
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from serve.client.evaluation.measures import MEASURES, Measured, cider, instances
from serve.client.evaluation.measures.answers import accuracy
from serve.client.evaluation.measures.base import Counts
from serve.client.evaluation.score import resamples
from serve.media import masks


def once(items: int) -> Counts:
    return np.ones((1, items), np.uint8)


def measured(task: str, truths: list[Any], answers: list[Any], counts: Counts | None = None) -> dict[str, Measured]:
    drawn = once(len(truths)) if counts is None else counts
    values = [value for measure in MEASURES[task] for value in measure(truths, answers, drawn)]
    return {value.name: value for value in values}


# --- VQA accuracy ---


@pytest.mark.parametrize(
    ("people", "value"),
    [
        # ten answers, as visualqa.org works it: with k of them equal, leaving each one out in turn
        (["red"] * 10, 1.0),
        (["red"] * 4 + ["blue"] * 6, 1.0),
        (["red"] * 3 + ["blue"] * 7, 0.9),  # (3 x 2/3 + 7 x 1) / 10
        (["red"] * 2 + ["blue"] * 8, 0.6),  # (2 x 1/3 + 8 x 2/3) / 10
        (["red"] + ["blue"] * 9, 0.3),  # (0 + 9 x 1/3) / 10
        (["blue"] * 10, 0.0),
        (["red"], 1.0),
        (["crimson", "Red."], 1.0),
        (["crimson"], 0.0),
    ],
)
def test_vqa_accuracy_follows_the_official_rule(people: list[str], value: float) -> None:
    assert accuracy("The red", people) == pytest.approx(value)


def test_missing_answer_counts_as_wrong() -> None:
    truths = [{"answers": ["two"]}, {"answers": ["no"]}]
    assert measured("vqa", truths, [{"answer": "2"}, None])["VQA accuracy"].value == 50.0


# --- CIDEr-D ---


def test_cider_d_equals_values_computed_by_hand() -> None:
    """Score two images with a reference each, "red cat" and "red dog". "red" is in both, so its idf is log(2/2) = 0;
    "cat", "dog" and the pairs are in one: log 2."""
    references = [["red cat"], ["red dog"]]
    # identical: cosine 1 for n = 1 and n = 2, and there are no runs of 3 and 4: 10 x (1 + 1 + 0 + 0) / 4
    assert cider.scores(["A.", "red dog"], references)[1] == pytest.approx(5.0)
    # "the cat": unseen words have idf log 2 - log 1. n = 1: (0, 1) . (1, 1) / (1 x sqrt 2); n = 2: no run in common
    assert cider.scores(["the cat", ""], references)[0] == pytest.approx(10 * (1 / math.sqrt(2)) / 4)
    # "cat cat cat": n = 1 clipped to the reference's one "cat": min(3, 1) x 1 / (3 x 1); one word longer than it
    expected = 10 * (1 / 3) / 4 * math.exp(-1 / 72)
    assert cider.scores(["cat cat cat", ""], references)[0] == pytest.approx(expected)


def test_cider_d_is_the_mean_over_references() -> None:
    references = [["a big red cat", "x y"], ["a dog"]]
    alone = cider.scores(["a big red cat", ""], [["a big red cat"], ["a dog"]])[0]
    assert alone == pytest.approx(10.0)
    assert cider.scores(["a big red cat", ""], references)[0] == pytest.approx(5.0)


texts = st.text("ab c.", max_size=12)


@given(st.lists(st.tuples(texts, st.lists(texts, min_size=1, max_size=3)), min_size=1, max_size=4))
def test_cider_d_is_between_0_and_10_for_references_in_any_order(pairs: list[tuple[str, list[str]]]) -> None:
    captions, references = [text for text, _ in pairs], [some for _, some in pairs]
    values = cider.scores(captions, references)
    assert all(-1e-9 <= value <= 10 + 1e-9 for value in values)
    assert values == pytest.approx(cider.scores(captions, [some[::-1] for some in references]))


def test_caption_of_a_scene_must_name_every_shape_once() -> None:
    true = {"captions": ["a red circle and a blue star"], "shapes": ["red circle", "blue star"]}
    for caption, value in (
        ("a blue star and a red circle", 100.0),
        ("a red circle", 0.0),
        ("a red circle, a blue star and a red circle", 0.0),
    ):
        assert measured("caption", [true], [{"caption": caption}])["every shape"].value == value
    assert "every shape" not in measured("caption", [{"captions": ["a cat"]}], [{"caption": "a cat"}])


# --- characters ---


def test_character_error_rate_is_of_the_whole_set() -> None:
    truths = [{"text": "STOP"}, {"text": "OPEN  NOW"}, {"text": "42"}]
    values = measured("ocr", truths, [{"text": "STOP"}, {"text": "OPEN\nNAW!"}, None])
    assert values["CER"].value == pytest.approx(100 * (0 + 2 + 2) / (4 + 8 + 2)) and values["CER"].lower_is_better
    assert values["exact"].value == pytest.approx(100 / 3)


def test_text_for_an_image_without_text_counts_as_wrong() -> None:
    assert measured("ocr", [{"text": ""}, {"text": "ab"}], [{"text": "x"}, {"text": "ab"}])["CER"].value == 50.0


# --- chat ---


def test_chat_is_exact_but_for_case_and_full_stop() -> None:
    values = measured("chat", [{"answers": ["The background is red."]}] * 2, [{"text": "the background is red"}, None])
    assert values["exact"].value == 50.0


# --- boxes ---


def box(label: str, x: float, y: float, side: float = 10.0, score: float | None = None, crowd: bool = False) -> Any:
    mask = np.zeros((60, 60), bool)
    mask[round(y) : round(y + side), round(x) : round(x + side)] = True
    item = {"label": label, "box": [x, y, x + side, y + side], "mask": masks.encode(mask).model_dump(), "crowd": crowd}
    return item if score is None else item | {"score": score}


def test_average_precision_equals_a_value_computed_by_hand() -> None:
    """Detect two cats, the surest box wrong: precision 1/2 up to recall 1/2, then 0: 51 of 101 recalls x 1/2."""
    truths = [{"boxes": [box("cat", 0, 0), box("cat", 40, 40)]}]
    answers = [{"boxes": [box("cat", 20, 20, score=0.9), box("cat", 0, 0, score=0.5)]}]
    values = measured("detect", truths, answers)
    assert values["mAP@0.5"].value == pytest.approx(100 * 51 / 101 * 0.5)
    assert values["mAP@0.5:0.95"].value == pytest.approx(100 * 51 / 101 * 0.5)


def test_label_ignores_articles_and_case() -> None:
    values = measured("detect", [{"boxes": [box("a Cat", 0, 0)]}], [{"boxes": [box("cat", 0, 0, score=0.5)]}])
    assert values["mAP@0.5:0.95"].value == pytest.approx(100.0)


def test_precision_is_0_without_boxes_or_without_objects() -> None:
    for answers in ([None], [{"boxes": []}]):
        assert measured("detect", [{"boxes": [box("cat", 0, 0)]}], answers)["mAP@0.5"].value == 0.0
    assert measured("detect", [{"boxes": []}], [{"boxes": [box("cat", 0, 0, score=1.0)]}])["mAP@0.5"].value == 0.0


def scattered(seed: int, items: int = 12) -> tuple[list[Any], list[Any]]:
    """Make random items with detections near the true boxes, some missing, some wrong, some crowds, tied scores."""
    rng = random.Random(seed)
    truths, answers = [], []
    for _ in range(items):
        true = [
            box(rng.choice("abc"), rng.uniform(0, 40), rng.uniform(0, 40), rng.uniform(8, 18), crowd=rng.random() < 0.1)
            for _ in range(rng.randint(0, 4))
        ]
        detected = []
        for item in true:
            if rng.random() < 0.7:
                x, y = (v + rng.uniform(-3, 3) for v in item["box"][:2])
                label = item["label"] if rng.random() < 0.9 else rng.choice("abc")
                side = item["box"][2] - item["box"][0]
                detected.append(box(label, max(0, x), max(0, y), side, score=round(rng.random(), 1)))
        truths.append({"boxes": true})
        answers.append({"boxes": detected} if rng.random() < 0.9 else None)
    return truths, answers


def coco(kind: str, truths: list[Any], answers: list[Any]) -> tuple[float, float]:
    """Compute mAP@0.5:0.95 and mAP@0.5 with COCOeval itself."""
    ids = {label: index for index, label in enumerate("abc", 1)}

    def annotation(image: int, item: Any) -> Any:
        x0, y0, x1, y1 = item["box"]
        entry = {"image_id": image, "category_id": ids[item["label"]], "bbox": [x0, y0, x1 - x0, y1 - y0]}
        return entry | {"area": (x1 - x0) * (y1 - y0), "segmentation": item["mask"], "iscrowd": int(item["crowd"])}

    with contextlib.redirect_stdout(io.StringIO()):
        dataset = COCO()
        images = [{"id": at, "height": 60, "width": 60} for at in range(1, len(truths) + 1)]
        dataset.dataset = {"images": images, "categories": [{"id": at, "name": label} for label, at in ids.items()]}
        wanted = [annotation(at, item) for at, true in enumerate(truths, 1) for item in true["boxes"]]
        dataset.dataset["annotations"] = [entry | {"id": at} for at, entry in enumerate(wanted, 1)]
        dataset.createIndex()
        detections = [
            annotation(at, item) | {"score": item["score"]}
            for at, answer in enumerate(answers, 1)
            for item in (answer or {"boxes": []})["boxes"]
        ]
        if kind == "segm":
            for detection in detections:
                del detection["bbox"]
        evaluation = COCOeval(dataset, dataset.loadRes(detections), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0]), float(evaluation.stats[1])


@pytest.mark.parametrize("seed", range(6))
def test_average_precision_equals_pycocotools(seed: int) -> None:
    truths, answers = scattered(seed)
    expected = coco("bbox", truths, answers)
    values = measured("detect", truths, answers)
    assert (values["mAP@0.5:0.95"].value, values["mAP@0.5"].value) == pytest.approx([100 * value for value in expected])
    expected = coco("segm", truths, answers)
    values = measured("segment", truths, answers)
    numbers = (values["mask mAP@0.5:0.95"].value, values["mask mAP@0.5"].value)
    assert numbers == pytest.approx([100 * value for value in expected])


@pytest.mark.parametrize("seed", range(4))
def test_precision_of_a_resample_equals_that_of_its_items(seed: int) -> None:
    """Compare the weighted precision with that of a set in which images drawn twice are there twice."""
    truths, answers = scattered(seed, items=10)
    counts = resamples([str(at) for at in range(10)])[:8]
    values = instances.box_precision(truths, answers, counts)
    for at, drawn in enumerate(counts):
        order = [item for item, times in enumerate(drawn) for _ in range(times)]
        again = instances.box_precision([truths[i] for i in order], [answers[i] for i in order], once(len(order)))
        for weighted, other in zip(values, again, strict=True):
            assert weighted.resampled[at] == pytest.approx(other.value)


# --- masks ---


def test_mask_iou_is_the_mean_over_true_instances() -> None:
    truths = [{"boxes": [box("a", 0, 0), box("a", 30, 0), box("b", 0, 30), box("b", 40, 40, crowd=True)]}]
    detected = [box("a", 5, 0, score=0.9), box("a", 0, 0, score=0.1), box("b", 30, 0, score=0.9)]
    # the first "a" is matched whole, the second not at all, "b" is elsewhere: 1 / 3
    assert measured("segment", truths, [{"boxes": detected}])["mask IoU"].value == pytest.approx(100 / 3)
    half = [box("a", 5, 0, score=0.9)]  # 50 pixels of both, 150 of either
    assert measured("segment", truths, [{"boxes": half}])["mask IoU"].value == pytest.approx(100 / 3 / 3)


def test_mask_of_another_size_has_iou_0() -> None:
    other = box("a", 0, 0, score=0.9) | {"mask": masks.encode(np.ones((9, 9), bool)).model_dump()}
    assert measured("segment", [{"boxes": [box("a", 0, 0)]}], [{"boxes": [other]}])["mask IoU"].value == 0.0


# --- resampling ---


@pytest.mark.slow
@settings(deadline=None, max_examples=20)
@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=20))
def test_items_of_the_same_image_are_drawn_together(pictures: list[str]) -> None:
    counts = resamples(pictures)
    for row in counts[:50]:
        of = dict(zip(pictures, row.tolist(), strict=True))
        assert [of[name] for name in pictures] == row.tolist() and sum(of.values()) == len(of)
    assert (resamples(pictures) == counts).all()


def test_interval_of_a_mean_agrees_with_its_standard_error() -> None:
    """Score 200 right answers of 400: a standard error of 2.5 points, so 1.96 of them either side."""
    counts = resamples([str(at) for at in range(400)])
    truths = [{"answers": ["yes" if at % 2 else "no"]} for at in range(400)]
    values = measured("vqa", truths, [{"answer": "yes"}] * 400, counts)["VQA accuracy"]
    low, high = np.percentile(values.resampled, [2.5, 97.5])
    assert low == pytest.approx(50 - 4.9, abs=0.6) and high == pytest.approx(50 + 4.9, abs=0.6)


# --- points, counts, labels ---


def test_point_is_right_in_an_object_of_its_label_that_no_surer_point_took() -> None:
    boxes = [
        {"label": "cat", "box": [0, 0, 10, 10]},
        {"label": "cat", "box": [2, 2, 6, 6]},
        {"label": "dog", "box": [20, 0, 30, 9]},
    ]
    points = [
        {"label": "A cat", "point": [4, 4], "score": 0.9},  # in the smaller
        {"label": "cat", "point": [5, 5], "score": 0.8},  # in the larger, as the smaller is taken
        {"label": "cat", "point": [9, 9], "score": 0.7},  # too many
        {"label": "cat", "point": [25, 5], "score": 0.6},  # another label's
    ]
    scores = measured("point", [{"boxes": boxes}, {"boxes": boxes[2:]}], [{"points": points}, None])
    assert scores["precision"].value == 50 and scores["recall"].value == 50 and scores["F1"].value == 50


def test_point_is_right_inside_a_mask_and_near_a_true_point() -> None:
    mask = np.zeros((10, 10), bool)
    mask[:5] = True
    boxes = [{"label": "cat", "box": [0, 0, 10, 10], "mask": masks.encode(mask).model_dump()}]
    for y, right in ((4, 100), (6, 0)):
        answer = {"points": [{"label": "cat", "point": [3, y], "score": 1}]}
        assert measured("point", [{"boxes": boxes}], [answer])["F1"].value == right
    truth = {"points": [{"label": "cat", "point": [50, 50], "score": 1}], "size": [100, 100]}
    for x, right in ((59, 100), (61, 0)):
        answer = {"points": [{"label": "cat", "point": [x, 50], "score": 1}]}
        assert measured("point", [truth], [answer])["F1"].value == right


def test_count_without_an_answer_is_wrong_by_the_whole_count() -> None:
    scores = measured("count", [{"count": 3}, {"count": 0}, {"count": 2}], [{"count": 5}, None, {"count": 2}])
    assert scores["exact"].value == pytest.approx(100 / 3)
    assert scores["absolute error"].value == pytest.approx(200 / 3) and scores["absolute error"].lower_is_better


def test_labels_are_right_as_a_set() -> None:
    answers = [{"labels": [{"label": "A cat"}]}, {"labels": [{"label": "cat"}, {"label": "dog"}]}, {"labels": []}, None]
    scores = measured(
        "classify", [{"labels": ["cat"]}, {"labels": ["dog"]}, {"labels": []}, {"labels": ["cat"]}], answers
    )
    assert scores["accuracy"].value == 50 and scores["F1"].value == pytest.approx(100 * 4 / 6)
