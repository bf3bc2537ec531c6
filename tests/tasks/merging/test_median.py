"""The weighted median of counts."""

import pytest

from serve.tasks import TASKS
from serve.tasks.count import CountResult
from serve.tasks.reply import Merged, Reply


def merge(method: str, *counts: int, sure: tuple[float, ...] = (), **weights: float) -> Merged:
    replies = [
        Reply(model="abcde"[at], status="ok", result=CountResult(count=count), confidence=sure[at] if sure else None)
        for at, count in enumerate(counts)
    ]
    return TASKS["count"].methods[method](replies, weights)


def count(merged: Merged) -> int:
    assert isinstance(merged.result, CountResult)
    return merged.result.count


@pytest.mark.parametrize(
    ("counts", "weights", "median"),
    [
        ((3, 4, 900), {}, 4),
        ((5, 1, 2, 2, 9), {}, 2),
        ((3, 4, 900), {"c": 2.5}, 900),
        ((7, 2, 3), {"a": 0.0}, 3),  # of two in the middle the larger
        ((3, 3, 8, 9), {}, 3),
    ],
)
def test_median_has_half_of_the_weight_on_either_side(
    counts: tuple[int, ...], weights: dict[str, float], median: int
) -> None:
    assert count(merge("median", *counts, **weights)) == median


def test_larger_of_two_counts_in_the_middle_is_the_median_however_sure() -> None:
    merged = merge("median", 4, 6, sure=(0.6, 0.4))
    assert count(merged) == 6 and merged.supporters == [["b"]]
    assert merged.deviations == {"a": pytest.approx(1 / 3, abs=1e-6), "b": 0} and merged.agreement == pytest.approx(
        5 / 6
    )


def test_sure_model_outweighs_two_that_guess_in_the_weighted_median_alone() -> None:
    sure = (0.2, 0.3, 0.9)
    assert count(merge("median", 2, 2, 3, sure=sure)) == 2
    assert count(merge("weighted_median", 2, 2, 3, sure=sure)) == 3
