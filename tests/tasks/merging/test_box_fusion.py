"""Box fusion and sightings: whose boxes are one object, where it lies, how sure that is."""

import pytest

from serve.tasks import TASKS
from serve.tasks.boxes import DetectResult, LabelledBox, label_key
from serve.tasks.reply import Merged, Reply

Row = tuple[str, tuple[float, float, float, float], float]


def fuse(*columns: list[Row], method: str = "weighted_box_fusion", weights: dict[str, float] | None = None) -> Merged:
    replies = [
        Reply(
            model="abcd"[at],
            status="ok",
            result=DetectResult(boxes=[LabelledBox(label=label, box=box, score=score) for label, box, score in rows]),
        )
        for at, rows in enumerate(columns)
    ]
    return TASKS["detect"].methods[method](replies, weights or {})


def boxes(merged: Merged) -> list[LabelledBox]:
    assert isinstance(merged.result, DetectResult)
    return merged.result.boxes


def test_boxes_are_fused_by_score_and_a_lone_box_scores_by_its_share() -> None:
    merged = fuse([("cat", (0, 0, 10, 10), 0.9)], [("A cat", (1, 0, 11, 10), 0.3), ("dog", (20, 20, 30, 30), 0.8)])
    cat, dog = boxes(merged)
    assert cat.box == (0.25, 0, 10.25, 10) and cat.score == pytest.approx(0.6)
    assert dog.box == (20, 20, 30, 30) and dog.score == pytest.approx(0.4)
    assert merged.supporters == [["a", "b"], ["b"]]
    assert merged.deviations["a"] > 0.5 > merged.deviations["b"]


def test_labels_are_fused_apart() -> None:
    assert len(boxes(fuse([("cat", (0, 0, 9, 9), 1)], [("dog", (0, 0, 9, 9), 1)]))) == 2
    assert label_key(" The  Red cat ") == label_key("red cat") and label_key("a") == "a"


def test_boxes_of_the_same_model_are_never_fused_with_each_other() -> None:
    merged = fuse([("cat", (0, 0, 10, 10), 0.9), ("cat", (1, 0, 11, 10), 0.8)], [("cat", (0, 0, 10, 10), 0.7)])
    assert merged.supporters == [["a", "b"], ["a"]]


def test_box_that_a_model_repeats_forty_times_counts_once() -> None:
    cat: Row = ("cat", (0.0, 0.0, 10.0, 10.0), 0.5)
    near: Row = ("The cat.", (0.1, 0.0, 10.0, 10.0), 0.9)
    dog: Row = ("dog", (0.0, 0.0, 10.0, 10.0), 0.5)
    other: Row = ("cat", (1.0, 0.0, 11.0, 10.0), 0.8)
    for many in ([cat] * 40, [cat, near] * 20, [cat, dog, cat, dog, near]):
        once = [cat, dog] if dog in many else [cat]
        assert fuse(many, [other], [cat]) == fuse(once, [other], [cat])
    assert len(boxes(fuse([cat, dog] * 40))) == 2  # two labels are two objects


def test_groups_with_the_same_fused_box_are_the_same_object() -> None:
    """Draw two boxes of a model that overlap by 0.89: they lead two groups, whose means overlap by 0.94."""

    def at(x: float, score: float = 0.9) -> Row:
        return ("cat", (x, 0.0, x + 10.0, 10.0), score)

    merged = fuse([at(0.0), at(0.6)], [at(0.29, 0.89)], [at(0.31, 0.89)])
    assert merged.supporters == [["a", "b", "c"]]
    assert len(boxes(merged)) == 1
    assert fuse([at(0.0), at(1.6)], [at(0.29, 0.89)], [at(1.31, 0.89)]).supporters == [["a", "b"], ["a", "c"]]


def test_a_place_that_a_model_names_twice_keeps_the_name_that_others_see_there() -> None:
    cross: Row = ("cross", (50.0, 0.0, 60.0, 10.0), 0.8)
    circle: Row = ("circle", (0.0, 0.0, 10.0, 10.0), 0.7)
    wrong: Row = ("circle", (50.0, 0.0, 60.0, 10.3), 0.7)
    merged = fuse([circle, cross], [wrong, cross])
    assert [box.label for box in boxes(merged)] == ["circle", "cross"]
    assert merged.supporters == [["a"], ["a", "b"]] and merged.deviations["b"] == pytest.approx(2 / 3)
    assert len(boxes(fuse([cross], [wrong, cross]))) == 2  # nobody has seen a circle elsewhere
    assert len(boxes(fuse([circle, cross], [wrong]))) == 3  # one name each
    assert len(boxes(fuse([circle, cross], [wrong, cross], [wrong]))) == 3  # another sees it there, and no cross
    assert len(boxes(fuse([wrong, cross], [wrong, cross]))) == 2  # two labels of one object
    sure: Row = ("circle", (50.0, 0.0, 60.0, 10.3), 0.9)
    assert len(boxes(fuse([circle, cross], [sure, cross]))) == 3  # it is surer of this name
    far: Row = ("circle", (54.0, 0.0, 64.0, 10.0), 0.7)
    assert len(boxes(fuse([circle, cross], [far, cross]))) == 3  # another place


def test_box_that_fits_two_groups_equally_joins_the_first() -> None:
    left, right = ("cat", (0.0, 0.0, 10.0, 10.0), 0.5), ("cat", (2.0, 0.0, 12.0, 10.0), 0.5)
    middle = ("cat", (1.0, 0.0, 11.0, 10.0), 0.4)
    assert fuse([left, right], [middle]).supporters == [["a", "b"], ["a"]]


def test_boxes_that_fit_only_groups_with_their_model_form_new_groups() -> None:
    leader: Row = ("cat", (0.0, 0.0, 10.0, 10.0), 0.9)
    two: list[Row] = [("cat", (0.0, 0.0, 10.0, 9.0), 0.8), ("cat", (0.0, 2.0, 10.0, 10.0), 0.7)]
    assert fuse([leader], two, two).supporters == [["a", "b", "c"], ["b", "c"]]


def test_boxes_that_overlap_little_are_two_objects() -> None:
    assert len(boxes(fuse([("cat", (0, 0, 10, 10), 0.9)], [("cat", (6, 0, 16, 10), 0.9)]))) == 2


def test_consensus_leaves_out_boxes_with_less_than_half_of_the_weight() -> None:
    columns = ([("cat", (0, 0, 10, 10), 0.9)], [("cat", (1, 0, 11, 10), 0.9)], [("dog", (20, 0, 30, 10), 0.99)])
    merged = fuse(*columns, method="consensus")
    assert [box.label for box in boxes(merged)] == ["cat"] and merged.supporters == [["a", "b"]]
    assert merged.deviations["c"] == 1
    heavy = fuse(*columns, method="consensus", weights={"c": 2})
    assert [box.label for box in boxes(heavy)] == ["cat", "dog"]  # half is enough
    assert [box.label for box in boxes(fuse(*columns, method="consensus", weights={"c": 3}))] == ["dog"]


def test_replies_without_boxes_agree_fully() -> None:
    merged = fuse([], [])
    assert boxes(merged) == [] and merged.agreement == 1 and merged.supporters == []


def test_box_of_a_single_model_of_two_is_half_agreement() -> None:
    assert fuse([("cat", (0, 0, 9, 9), 1)], []).agreement == 0.5
