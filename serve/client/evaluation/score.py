"""Scores of each model and of the merged reply, computed from recorded answers; no server is needed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from serve.client.evaluation.judged import judged_right
from serve.client.evaluation.measures import MEASURES, Measured
from serve.client.evaluation.measures.base import Counts, mean
from serve.client.http_client import Failure, Misuse
from serve.errors import ParseError
from serve.models import MODELS
from serve.tasks import TASKS
from serve.tasks.base import MergeRule
from serve.tasks.reply import Reply

Json = dict[str, Any]
RESAMPLES = 1000
RECORDED = "merged"
ALL = "all"
SEED = 20_261_123


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % interval over bootstrap resamples of the images."""

    value: float
    low: float
    high: float


@dataclass
class ScoreRow:
    """The scores of a model or of a merge. failed: the number of items without its answer."""

    name: str
    merged: bool
    failed: int
    measures: dict[str, Interval]


@dataclass
class Gain:
    """The difference of a merge and the best single model, on the same resamples. Positive: the merge is better."""

    row: str
    measure: str
    best: str
    gain: Interval


@dataclass
class Report:
    """The scores of a task. measures: whether lower is better, by name; the first decides which row is best.

    left_out: the number of items whose request failed before any model was asked.
    """

    task: str
    items: int
    pictures: int
    left_out: int
    measures: dict[str, bool]
    rows: list[ScoreRow] = field(default_factory=list)
    gains: list[Gain] = field(default_factory=list)

    def best(self, measure: str, singles: bool = False) -> list[str]:
        """Return the rows with the best value, several where they are equal. singles: leave out merges."""
        rows = [row for row in self.rows if not (singles and row.merged)]
        sign = -1 if self.measures[measure] else 1
        top = max((sign * row.measures[measure].value for row in rows), default=0.0)
        return [row.name for row in rows if sign * row.measures[measure].value >= top - 1e-9]

    def lost(self) -> list[Gain]:
        """Return the merges that are worse than the best single model, by the first measure."""
        first = next(iter(self.measures), None)
        return [gain for gain in self.gains if gain.measure == first and gain.gain.value < -1e-9]


def reports(
    lines: Sequence[Json], merge: str | None = None, weights: Mapping[str, float] | None = None
) -> list[Report]:
    """Return a report per task.

    merge: a method to merge the replies by, or `all` for each of the task's; None keeps the recorded merge, unless
    there are weights. weights: by model, by default its own. Raises Failure for lines about different models, Misuse
    for an unknown method.
    """
    tasks = [task for task in MEASURES if any(line["task"] == task for line in lines)]
    return [_report(task, [line for line in lines if line["task"] == task], merge, weights or {}) for task in tasks]


def reports_by_kind(
    lines: Sequence[Json], merge: str | None = None, weights: Mapping[str, float] | None = None
) -> dict[str, dict[str, Report]]:
    """Return by task and kind of question, where the truth names kinds, a report as `reports` does."""
    kinds: dict[str, dict[str, list[Json]]] = {}
    for line in lines:
        if "kind" in line["truth"]:
            kinds.setdefault(line["task"], {}).setdefault(line["truth"]["kind"], []).append(line)
    return {
        task: {kind: reports(some, merge, weights)[0] for kind, some in sorted(by_kind.items())}
        for task, by_kind in kinds.items()
        if task in MEASURES
    }


def _report(task: str, lines: Sequence[Json], merge: str | None, weights: Mapping[str, float]) -> Report:
    kept = [line for line in lines if not request_failed(line)]
    names = models_of(task, kept)
    truths = [line["truth"] for line in kept]
    counts = resamples([line["picture"] for line in kept])
    report = Report(task, len(kept), len({line["picture"] for line in kept}), len(lines) - len(kept), {})
    measured_by_row: dict[str, list[Measured]] = {}
    columns = _columns(task, kept, names, merge, weights)
    judged = _judged(kept, [answers for *_, answers in columns])
    for (name, merged, answers), right in zip(columns, judged, strict=True):
        measured = [item for measure in MEASURES[task] for item in measure(truths, answers, counts)] if kept else []
        if right:
            measured.append(mean(f"judged by {kept[0]['judged']['by']}", right, counts))
        measured_by_row[name] = measured
        report.measures |= {item.name: item.lower_is_better for item in measured}
        intervals = {item.name: interval(item.value, item.resampled) for item in measured}
        report.rows.append(ScoreRow(name, merged, sum(answer is None for answer in answers), intervals))
    for measure in report.measures:
        best = next(iter(report.best(measure, singles=True)), None)
        for row in report.rows:
            if row.merged and best is not None:
                ours, theirs = (named(measured_by_row[name], measure) for name in (row.name, best))
                sign = -1 if ours.lower_is_better else 1
                gain = interval(sign * (ours.value - theirs.value), sign * (ours.resampled - theirs.resampled))
                report.gains.append(Gain(row.name, measure, best, gain))
    return report


def _judged(lines: Sequence[Json], columns: Sequence[Sequence[Json | None]]) -> list[list[float]]:
    """Return how right each column's answers are by the judge; nothing for any column where an answer was not judged,
    as columns with gaps could not be compared."""
    if not all("judged" in line for line in lines):
        return [[] for _ in columns]
    rights = [[judged_right(line, answer) for line, answer in zip(lines, each, strict=True)] for each in columns]
    known = [[value for value in each if value is not None] for each in rights]
    whole = all(len(values) == len(lines) for values in known)
    return known if whole else [[] for _ in columns]


def _columns(
    task: str, lines: Sequence[Json], names: Sequence[str], merge: str | None, weights: Mapping[str, float]
) -> list[tuple[str, bool, list[Json | None]]]:
    """Return (row name, whether it is a merge, its answers) of every model and every merge."""
    columns: list[tuple[str, bool, list[Json | None]]] = [
        (name, False, [_result(line, name) for line in lines]) for name in names
    ]
    for row, merged in merges(task, lines, merge, weights):
        columns.append((row, True, [(each or {}).get("result") for each in merged]))
    return columns


def merges(
    task: str, lines: Sequence[Json], merge: str | None, weights: Mapping[str, float]
) -> list[tuple[str, list[Json | None]]]:
    """Return (row name, the merged reply of each line as JSON, None where there is none) of the recorded merge, or of
    each method that they are merged by again. Arguments and errors as of `reports`."""
    if merge is None and not weights:
        return [(RECORDED, [line.get("merged") for line in lines])]
    methods = TASKS[task].methods
    if merge not in (None, ALL, *methods):
        raise Misuse(f"{task} merges again by {', '.join(methods)} or {ALL}, not by {merge}.")
    chosen = list(methods) if merge == ALL else [merge or next(iter(methods))]
    answers = [good_replies(task, line) for line in lines]
    return [
        (f"{RECORDED} by {name}", [merged_json(methods[name], replies, weights) for replies in answers])
        for name in chosen
    ]


def good_replies(task: str, line: Json) -> list[Reply]:
    """Return a line's replies that have a result."""
    kind = TASKS[task].result
    return [
        Reply.model_validate({**reply, "result": None}).model_copy(
            update={"result": kind.model_validate(reply["result"])}
        )
        for reply in line.get("replies", [])
        if reply["status"] == "ok" and reply["result"] is not None
    ]


def merged_json(rule: MergeRule, replies: Sequence[Reply], weights: Mapping[str, float]) -> Json | None:
    """Merge replies, by the weights of their models where others are not given; None where there is no reply."""
    if not replies:
        return None
    known = {reply.model: MODELS[reply.model].weight for reply in replies if reply.model in MODELS}
    return rule(replies, known | dict(weights)).model_dump(mode="json")


def request_failed(line: Json) -> bool:
    # An error of parsing alone means that all models answered, and all of them wrongly.
    return "error" in line and line["error"].get("code") != ParseError.code


def models_of(task: str, lines: Sequence[Json]) -> list[str]:
    groups = {tuple(reply["model"] for reply in line["replies"]) for line in lines if "replies" in line}
    if len(groups) > 1:
        both = "; ".join(", ".join(names) for names in sorted(groups))
        raise Failure(f"{task}: not every question went to the same models ({both}): ask them into files of their own.")
    return list(groups.pop()) if groups else []


def _result(line: Json, model: str) -> Json | None:
    for reply in line.get("replies", []):
        if reply["model"] == model and reply["status"] == "ok":
            result: Json | None = reply["result"]
            return result
    return None


def resamples(pictures: Sequence[str]) -> Counts:
    """Draw bootstrap resamples of the images: [RESAMPLES, items], how often each item is in each resample.

    pictures: the image of each item. Questions about one image are drawn together, as they are not independent. All
    models have the same resamples, so that differences are paired.
    """
    known = {name: index for index, name in enumerate(dict.fromkeys(pictures))}
    owner = np.array([known[name] for name in pictures], dtype=np.int64)
    random = np.random.default_rng(SEED)
    counts = np.zeros((RESAMPLES, len(known)), np.uint8)
    for row in counts:
        row[:] = np.bincount(random.integers(0, len(known), len(known)), minlength=len(known)) if len(known) else 0
    return counts[:, owner]


def interval_of(measured: Measured) -> Interval:
    return interval(measured.value, measured.resampled)


def interval(value: float, resampled: Any) -> Interval:
    low, high = np.percentile(resampled, [2.5, 97.5]) if len(resampled) else (value, value)
    return Interval(value, float(low), float(high))


def named(measured: Sequence[Measured], name: str) -> Measured:
    return next(item for item in measured if item.name == name)
