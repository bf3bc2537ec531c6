"""Point fusion: whose points are one object, and where it lies."""

import math

import pytest

from serve.tasks import TASKS
from serve.tasks.points import PointResult
from serve.tasks.reply import Merged, Reply

Row = tuple[str, tuple[float, float], float]
SIZE = (100, 400)  # of an area whose root is 200: points within 20 pixels are one object


def fuse(*columns: list[Row], method: str = "point_fusion") -> Merged:
    rows = [[{"label": label, "point": point, "score": score} for label, point, score in column] for column in columns]
    replies = [
        Reply(model="abcd"[at], status="ok", result=PointResult.model_validate({"points": points, "size": SIZE}))
        for at, points in enumerate(rows)
    ]
    return TASKS["point"].methods[method](replies, {})


def points(merged: Merged) -> list[tuple[str, tuple[float, float], float]]:
    assert isinstance(merged.result, PointResult)
    return [(point.label, point.point, point.score) for point in merged.result.points]


def test_points_are_fused_by_score_and_a_lone_point_scores_by_its_share() -> None:
    merged = fuse([("cat", (50, 50), 0.9)], [("A cat", (60, 50), 0.3), ("dog", (300, 20), 0.8)])
    assert points(merged) == [("cat", (52.5, 50), pytest.approx(0.6)), ("dog", (300, 20), pytest.approx(0.4))]
    assert merged.supporters == [["a", "b"], ["b"]]
    assert merged.deviations == {
        "a": pytest.approx(1 - (1 - 2.5 / 40) / 2),
        "b": pytest.approx(1 - (1 + 32.5 / 40) / 2),
    }


def test_points_farther_apart_than_the_reach_are_two_objects() -> None:
    assert len(points(fuse([("cat", (50, 50), 1)], [("cat", (70, 50), 1)]))) == 1
    assert len(points(fuse([("cat", (50, 50), 1)], [("cat", (70.1, 50), 1)]))) == 2
    assert len(points(fuse([("cat", (50, 50), 1)], [("dog", (50, 50), 1)]))) == 2


def test_points_of_a_crowd_join_the_nearest_and_each_model_has_one_in_a_group() -> None:
    crowd: list[Row] = [("head", (x, 50), 0.9 - x / 1000) for x in range(20, 80, 6)]
    shifted: list[Row] = [("head", (x + 1, 50), 0.5) for x in range(20, 80, 6)]
    merged = fuse(crowd, shifted)
    assert len(points(merged)) == len(crowd) and all(models == ["a", "b"] for models in merged.supporters)
    assert all(
        math.dist(point, (x, 50)) <= 1 for (_, point, _), (_, (x, _), _) in zip(points(merged), crowd, strict=True)
    )


def test_consensus_leaves_out_a_point_that_less_than_half_of_the_weight_saw() -> None:
    rows: list[Row] = [("cat", (50, 50), 0.5)]
    merged = fuse(rows, rows, [*rows, ("cat", (200, 50), 0.9)], method="consensus")
    assert len(points(merged)) == 1 and merged.deviations["c"] == pytest.approx(0.5)
    assert len(points(fuse(rows, [], method="consensus"))) == 1


def test_result_keeps_a_point_that_is_written_twice_once() -> None:
    (column,) = [points(fuse([("cat", (5, 5), 0.9), ("The cat.", (5, 5), 0.8), ("cat", (5, 6), 0.7)]))]
    assert [point for _, point, _ in column] == [(5, 5), (5, 6)]
