"""Weighted median: the number with half of the weight, or less, on either side."""

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate

from serve.tasks.base import MergeRule
from serve.tasks.merging.agreement import agreed, standing, weigh
from serve.tasks.reply import Merged, Reply


def weighted_median(number: Callable[[Reply], int], by_confidence: bool = False) -> MergeRule:
    """Make a rule that takes the weighted median of number(reply), so that one wild number moves nothing.

    Of the two numbers in the middle, where the halves are equal, it is the one with more weight, then the larger:
    models miss what is there more often than they see what is not. by_confidence: a reply's weight is multiplied by its
    confidence. The surest model that says the median speaks for it: the result has its other fields. A model deviates
    by its distance to the median over the larger of the two numbers.
    """

    def choose(replies: Sequence[Reply], given: Mapping[str, float]) -> Merged:
        weights = weigh(replies, given)
        says = {reply.model: standing(reply, weights) for reply in replies}
        votes = says if by_confidence and any(says.values()) else weights
        camps: dict[int, list[Reply]] = {}
        for reply in replies:
            camps.setdefault(number(reply), []).append(reply)
        tally = {value: sum(votes[reply.model] for reply in camp) for value, camp in camps.items()}
        median = max(_middle(tally), key=lambda value: (tally[value], value))
        spokesman = max(camps[median], key=lambda reply: says[reply.model])  # of equals the first in the catalogue
        deviations = {reply.model: _apart(number(reply), median) for reply in replies}
        assert spokesman.result is not None
        method = "weighted_median" if by_confidence else "median"
        return agreed(spokesman.result, method, weights, deviations, [[reply.model for reply in camps[median]]])

    return choose


def _middle(votes: Mapping[int, float]) -> list[int]:
    """Return the medians of numbers by their votes: one, or two with the numbers between them that have none."""
    numbers = sorted(votes)
    total = sum(votes[value] for value in numbers)
    below = dict(zip(numbers, accumulate((votes[value] for value in numbers), initial=0.0), strict=False))
    half = total / 2 * (1 + 1e-9)
    return [value for value in votes if below[value] <= half and total - below[value] - votes[value] <= half]


def _apart(value: int, median: int) -> float:
    """Return the distance of two counts over the larger of them: 0 for equal ones, 1 where one is 0."""
    return 0.0 if value == median else abs(value - median) / max(value, median)
