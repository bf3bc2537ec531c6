"""What every merge rule shares: how much each model counts, and how far the models agreed with what came out."""

import math
from collections.abc import Mapping, Sequence

from serve.tasks.base import Merged, Reply, Result


def weigh(replies: Sequence[Reply], weights: Mapping[str, float]) -> dict[str, float]:
    """Each model's weight, 1 where none is given; all equal where every one of them is 0.

    Halved or doubled together until the largest is between 1 and 2, so that nothing they are multiplied with is
    lost, however small they are; by powers of two, so that what was equal stays equal.
    """
    given = {reply.model: weights.get(reply.model, 1.0) for reply in replies}
    if not any(given.values()):
        return dict.fromkeys(given, 1.0)
    _, exponent = math.frexp(max(given.values()))
    return {model: math.ldexp(weight, 1 - exponent) for model, weight in given.items()}


def standing(reply: Reply, weights: Mapping[str, float]) -> float:
    """Weight x confidence: what decides between equals."""
    return weights[reply.model] * (1.0 if reply.confidence is None else reply.confidence)


def agreed(
    result: Result,
    method: str,
    weights: Mapping[str, float],
    deviations: Mapping[str, float],
    supporters: Sequence[Sequence[str]],
) -> Merged:
    """The merge, its agreement = 1 - the weighted mean deviation. deviations: per model, 0..1, in catalogue order."""
    total = sum(weights.values())
    strayed = sum(weights[model] * deviations[model] for model in weights)
    return Merged(
        result=result,
        method=method,
        agreement=_share(1.0 - strayed / total),
        models=list(weights),
        supporters=[list(models) for models in supporters],
        deviations={model: round(_share(value), 6) for model, value in deviations.items()},
    )


def _share(value: float) -> float:
    """What rounding left a hair outside 0..1."""
    return min(1.0, max(0.0, value))
