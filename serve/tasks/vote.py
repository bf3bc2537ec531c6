"""Majority vote: the answer most weight stands behind."""

from collections.abc import Callable, Mapping, Sequence

from serve.tasks.base import Merged, Reply


def weigh(replies: Sequence[Reply], weights: Mapping[str, float]) -> dict[str, float]:
    """Each model's weight, 1 where none is given; all equal where every one of them is 0."""
    given = {reply.model: weights.get(reply.model, 1.0) for reply in replies}
    return given if any(given.values()) else dict.fromkeys(given, 1.0)


def merged(
    winner: Reply,
    replies: Sequence[Reply],
    weights: Mapping[str, float],
    method: str,
    deviations: Mapping[str, float],
    supporters: list[str],
) -> Merged:
    """The winner's result as the merged one; agreement = 1 - the weighted mean deviation."""
    total = sum(weights.values())
    strayed = sum(weights[model] * deviations[model] for model in weights)
    return Merged(
        result=winner.result,
        method=method,
        agreement=min(1.0, max(0.0, 1.0 - strayed / total)),
        models=[reply.model for reply in replies],
        supporters=[supporters],
        deviations={model: round(value, 6) for model, value in deviations.items()},
    )


def standing(reply: Reply, weights: Mapping[str, float]) -> float:
    """Weight x confidence: what decides between equals."""
    return weights[reply.model] * (1.0 if reply.confidence is None else reply.confidence)


def majority(key: Callable[[Reply], str]) -> Callable[[Sequence[Reply], Mapping[str, float]], Merged]:
    """A vote over key(reply). Ties: the larger sum of weight x confidence, then the earlier in the catalogue."""

    def vote(replies: Sequence[Reply], given: Mapping[str, float]) -> Merged:
        weights = weigh(replies, given)
        camps: dict[str, list[Reply]] = {}
        for reply in replies:
            camps.setdefault(key(reply), []).append(reply)

        def strength(camp: list[Reply]) -> tuple[float, float]:
            return sum(weights[r.model] for r in camp), sum(standing(r, weights) for r in camp)

        camp = max(camps.values(), key=strength)  # max keeps the first of equals: catalogue order
        spokesman = max(camp, key=lambda reply: standing(reply, weights))
        backers = [reply.model for reply in camp]
        deviations = {reply.model: 0.0 if reply.model in backers else 1.0 for reply in replies}
        return merged(spokesman, replies, weights, "vote", deviations, backers)

    return vote
