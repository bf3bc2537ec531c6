"""Merged replies by how much the models agree: how many are answered at a threshold, and how right those are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from serve.client.evaluation import score
from serve.client.evaluation.measures import MEASURES
from serve.client.evaluation.measures.base import Json, mean
from serve.client.evaluation.score import Interval
from serve.router.merge_replies import ROUNDING

THRESHOLDS = (0.0, 0.3, 0.5, 0.7, 0.9)


@dataclass
class Threshold:
    """The items with so much agreement. coverage: their share of all. measured: by the task's first measure, over them
    alone; None where there is none."""

    min_agreement: float
    answered: int
    coverage: Interval
    measured: Interval | None = None


@dataclass
class Abstention:
    """A task's thresholds. measure: the name of its first measure."""

    task: str
    items: int
    measure: str
    lower_is_better: bool
    thresholds: list[Threshold]


def abstention(
    task: str, lines: Sequence[Json], merge: str | None = None, weights: Mapping[str, float] | None = None
) -> Abstention:
    """Score a task's merged replies by how much the models agree. merge, weights: as of `score.reports`; of several
    methods the first. What has no merged reply counts as not answered."""
    kept = [line for line in lines if line["task"] == task and not score.request_failed(line)]
    merged = [each or {} for each in score.merges(task, kept, merge, weights or {})[0][1]]
    agreements = np.array([each.get("agreement", -1.0) for each in merged])
    counts = score.resamples([line["picture"] for line in kept])
    outcome = Abstention(task, len(kept), "", False, [])
    for least in THRESHOLDS:
        answered = agreements >= least - ROUNDING
        coverage = mean("answered", answered.astype(float).tolist(), counts)
        row = Threshold(least, int(answered.sum()), score.interval_of(coverage))
        outcome.thresholds.append(row)
        if row.answered:
            at, drawn = np.flatnonzero(answered), counts[:, answered]
            truths, results = [kept[i]["truth"] for i in at], [merged[i]["result"] for i in at]
            first = MEASURES[task][0](truths, results, drawn[drawn.any(axis=1)])[0]
            row.measured = score.interval_of(first)
            outcome.measure, outcome.lower_is_better = first.name, first.lower_is_better
    return outcome
