"""Counts: how many are exact, and how far off they are."""

from collections.abc import Sequence

from serve.client.evaluation.measures.base import Counts, Json, Measured, mean, ratio


def count_errors(truths: Sequence[Json], answers: Sequence[Json | None], counts: Counts) -> list[Measured]:
    """Measure the share of exact counts, and the mean absolute error. No answer is wrong, and an error of the count."""
    pairs = [
        (truth["count"], 0 if result is None else result["count"], result is None)
        for truth, result in zip(truths, answers, strict=True)
    ]
    exact = [float(count == true and not silent) for true, count, silent in pairs]
    errors = [float(abs(count - true)) for true, count, _ in pairs]
    return [mean("exact", exact, counts), ratio("absolute error", errors, [1.0] * len(errors), counts, lower=True)]
