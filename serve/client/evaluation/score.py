"""How good each model and the merged reply are, from recorded answers alone: nothing is asked here."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from serve.client.evaluation.measures import MEASURES, Measured
from serve.client.evaluation.measures.base import Counts
from serve.client.http_client import Failure, Misuse
from serve.errors import ParseError
from serve.models import MODELS
from serve.tasks import TASKS
from serve.tasks.base import MergeRule, Reply

Json = dict[str, Any]
RESAMPLES = 1000
RECORDED = "merged"
ALL = "all"
SEED = 20_261_123


@dataclass(frozen=True)
class Interval:
    """A number and the middle 95 % of what it is over resampled pictures."""

    value: float
    low: float
    high: float


@dataclass
class Row:
    """One model, or a merge of all. failed: items to which it had no answer."""

    name: str
    merged: bool
    failed: int
    measures: dict[str, Interval]


@dataclass
class Gain:
    """A merge less the best single model, on the same resamples. Positive: the merge is better."""

    row: str
    measure: str
    best: str
    gain: Interval


@dataclass
class Report:
    """One task's scores. measures: their names, the deciding one first, and whether lower is better.

    left_out: items that no model was asked about, because the request itself failed.
    """

    task: str
    items: int
    pictures: int
    left_out: int
    measures: dict[str, bool]
    rows: list[Row] = field(default_factory=list)
    gains: list[Gain] = field(default_factory=list)

    def best(self, measure: str, singles: bool = False) -> list[str]:
        """The rows with the best value, more than one where they are equal."""
        rows = [row for row in self.rows if not (singles and row.merged)]
        sign = -1 if self.measures[measure] else 1
        top = max((sign * row.measures[measure].value for row in rows), default=0.0)
        return [row.name for row in rows if sign * row.measures[measure].value >= top - 1e-9]

    def lost(self) -> list[Gain]:
        """Where a merge is worse than the best single model, by the task's deciding measure."""
        first = next(iter(self.measures), None)
        return [gain for gain in self.gains if gain.measure == first and gain.gain.value < -1e-9]


def reports(
    lines: Sequence[Json], merge: str | None = None, weights: Mapping[str, float] | None = None
) -> list[Report]:
    """A report per task. merge: a method to merge by again, `all` for each of the task's methods; the recorded merge
    where left out and no weights are given. weights: per model, its card's where left out. Raises Failure or Misuse."""
    tasks = [task for task in MEASURES if any(line["task"] == task for line in lines)]
    return [_report(task, [line for line in lines if line["task"] == task], merge, weights or {}) for task in tasks]


def _report(task: str, lines: Sequence[Json], merge: str | None, weights: Mapping[str, float]) -> Report:
    kept = [line for line in lines if not _never_asked(line)]
    names = _models(task, kept)
    truths = [line["truth"] for line in kept]
    counts = resamples([line["picture"] for line in kept])
    report = Report(task, len(kept), len({line["picture"] for line in kept}), len(lines) - len(kept), {})
    taken: dict[str, list[Measured]] = {}
    for name, merged, answers in _columns(task, kept, names, merge, weights):
        measured = [one for measure in MEASURES[task] for one in measure(truths, answers, counts)] if kept else []
        taken[name] = measured
        report.measures |= {one.name: one.lower_is_better for one in measured}
        intervals = {one.name: _interval(one.value, one.resampled) for one in measured}
        report.rows.append(Row(name, merged, sum(answer is None for answer in answers), intervals))
    for measure in report.measures:
        best = next(iter(report.best(measure, singles=True)), None)
        for row in report.rows:
            if row.merged and best is not None:
                ours, theirs = (_named(taken[name], measure) for name in (row.name, best))
                sign = -1 if ours.lower_is_better else 1
                gain = _interval(sign * (ours.value - theirs.value), sign * (ours.resampled - theirs.resampled))
                report.gains.append(Gain(row.name, measure, best, gain))
    return report


def _columns(
    task: str, lines: Sequence[Json], names: Sequence[str], merge: str | None, weights: Mapping[str, float]
) -> list[tuple[str, bool, list[Json | None]]]:
    """(row, whether it is a merge, its answers) of every model and every merge."""
    found: list[tuple[str, bool, list[Json | None]]] = [
        (name, False, [_said(line, name) for line in lines]) for name in names
    ]
    if merge is None and not weights:
        return [*found, (RECORDED, True, [(line.get("merged") or {}).get("result") for line in lines])]
    methods = TASKS[task].methods
    if merge not in (None, ALL, *methods):
        raise Misuse(f"{task} merges again by {', '.join(methods)} or {ALL}, not by {merge}.")
    chosen = list(methods) if merge == ALL else [merge or next(iter(methods))]
    again = [(f"{RECORDED} by {name}", _merging(task, methods[name], weights)) for name in chosen]
    return found + [(row, True, [combine(line) for line in lines]) for row, combine in again]


def _merging(task: str, rule: MergeRule, weights: Mapping[str, float]) -> Callable[[Json], Json | None]:
    kind = TASKS[task].result

    def combine(line: Json) -> Json | None:
        good = [
            Reply.model_validate({**reply, "result": None}).model_copy(
                update={"result": kind.model_validate(reply["result"])}
            )
            for reply in line.get("replies", [])
            if reply["status"] == "ok" and reply["result"] is not None
        ]
        if not good:
            return None
        counted = {reply.model: MODELS[reply.model].weight for reply in good if reply.model in MODELS} | dict(weights)
        merged = rule(good, counted).result
        return None if merged is None else merged.model_dump(mode="json")

    return combine


def _never_asked(line: Json) -> bool:
    """The request failed as such. Where all models spoke and none of them to the point, all of them were wrong."""
    return "error" in line and line["error"].get("code") != ParseError.code


def _models(task: str, lines: Sequence[Json]) -> list[str]:
    found = {tuple(reply["model"] for reply in line["replies"]) for line in lines if "replies" in line}
    if len(found) > 1:
        both = "; ".join(", ".join(names) for names in sorted(found))
        raise Failure(f"{task}: not every question went to the same models ({both}): ask them into files of their own.")
    return list(found.pop()) if found else []


def _said(line: Json, model: str) -> Json | None:
    for reply in line.get("replies", []):
        if reply["model"] == model and reply["status"] == "ok":
            result: Json | None = reply["result"]
            return result
    return None


def resamples(pictures: Sequence[str]) -> Counts:
    """[RESAMPLES, items]: how often each item is drawn where pictures are drawn with replacement, as many as there are.

    Questions about one picture are drawn together: they are not independent. The same for every model, so that
    differences are paired.
    """
    known = {name: at for at, name in enumerate(dict.fromkeys(pictures))}
    owner = np.array([known[name] for name in pictures], dtype=np.int64)
    random = np.random.default_rng(SEED)
    counts = np.zeros((RESAMPLES, len(known)), np.uint8)
    for row in counts:
        row[:] = np.bincount(random.integers(0, len(known), len(known)), minlength=len(known)) if len(known) else 0
    return counts[:, owner]


def _interval(value: float, resampled: Any) -> Interval:
    low, high = np.percentile(resampled, [2.5, 97.5]) if len(resampled) else (value, value)
    return Interval(value, float(low), float(high))


def _named(measured: Sequence[Measured], name: str) -> Measured:
    return next(one for one in measured if one.name == name)
