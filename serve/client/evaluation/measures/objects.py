"""Objects: the share of their fields that are right."""

from collections.abc import Sequence

from serve.client.evaluation.measures.base import Counts, Json, Measured, mean, ratio
from serve.tasks.extracted import equal_leaves, leaves


def field_accuracy(truths: Sequence[Json], answers: Sequence[Json | None], counts: Counts) -> list[Measured]:
    """Measure the share of equal fields among those of the truth or the answer, and of objects that are all right.

    Numbers are equal nearly, texts but for case and surrounding space. Without an answer every field is missed.
    """
    pairs = [
        (0, len([*leaves(truth["data"])])) if answer is None else equal_leaves(truth["data"], answer["data"])
        for truth, answer in zip(truths, answers, strict=True)
    ]
    alike, total = [float(alike) for alike, _ in pairs], [float(total) for _, total in pairs]
    exact = [
        float(answer is not None and alike == total) for (alike, total), answer in zip(pairs, answers, strict=True)
    ]
    return [ratio("field accuracy", alike, total, counts), mean("exact", exact, counts)]
