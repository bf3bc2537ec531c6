"""Weights of models and their agreement with the merged reply, for all merge rules."""

import math
from collections.abc import Mapping, Sequence

from serve.tasks.reply import Merged, Reply, Result


def weigh(replies: Sequence[Reply], weights: Mapping[str, float]) -> dict[str, float]:
    """Return each model's weight, 1 where none is given; all equal where every one of them is 0.

    They are scaled together by a power of two until the largest is between 1 and 2: so products with very small
    weights do not underflow, and equal weights stay equal.
    """
    given = {reply.model: weights.get(reply.model, 1.0) for reply in replies}
    if not any(given.values()):
        return dict.fromkeys(given, 1.0)
    _, exponent = math.frexp(max(given.values()))
    return {model: math.ldexp(weight, 1 - exponent) for model, weight in given.items()}


def standing(reply: Reply, weights: Mapping[str, float]) -> float:
    """Return weight x confidence, which decides ties."""
    return weights[reply.model] * (1.0 if reply.confidence is None else reply.confidence)


def agreed(
    result: Result,
    method: str,
    weights: Mapping[str, float],
    deviations: Mapping[str, float],
    supporters: Sequence[Sequence[str]],
) -> Merged:
    """Return the merged reply with its agreement, 1 - the weighted mean deviation.

    deviations: each model's distance to the result, 0..1, in catalogue order.
    """
    total = sum(weights.values())
    deviation = sum(weights[model] * deviations[model] for model in weights)
    return Merged(
        result=result,
        method=method,
        agreement=_share(1.0 - deviation / total),
        models=list(weights),
        supporters=[list(models) for models in supporters],
        deviations={model: round(_share(value), 6) for model, value in deviations.items()},
    )


def _share(value: float) -> float:
    """Clip to 0..1 what rounding left a little outside."""
    return min(1.0, max(0.0, value))
