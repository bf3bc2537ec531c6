"""Majority vote: the answer with the most weight, or with the most weight x confidence."""

from collections.abc import Callable, Mapping, Sequence

from serve.tasks.base import MergeRule
from serve.tasks.merging.agreement import agreed, standing, weigh
from serve.tasks.reply import Merged, Reply


def majority(key: Callable[[Reply], str], by_confidence: bool = False) -> MergeRule:
    """Make a rule that takes the answer with the most weight. Replies of one key(reply) are one answer.

    Ties go to the larger sum of weight x confidence, then to the earlier in the catalogue. by_confidence: that sum
    alone decides, so that a model that is sure outvotes two that are guessing.
    """

    def vote(replies: Sequence[Reply], given: Mapping[str, float]) -> Merged:
        weights = weigh(replies, given)
        camps: dict[str, list[Reply]] = {}
        for reply in replies:
            camps.setdefault(key(reply), []).append(reply)

        def strength(camp: list[Reply]) -> tuple[float, float]:
            votes, sureness = sum(weights[r.model] for r in camp), sum(standing(r, weights) for r in camp)
            return (sureness, votes) if by_confidence else (votes, sureness)

        camp = max(camps.values(), key=strength)  # max keeps the first of equals: catalogue order
        spokesman = max(camp, key=lambda reply: standing(reply, weights))
        backers = [reply.model for reply in camp]
        deviations = {reply.model: 0.0 if reply.model in backers else 1.0 for reply in replies}
        assert spokesman.result is not None
        return agreed(spokesman.result, "weighted_vote" if by_confidence else "vote", weights, deviations, [backers])

    return vote
