"""The models' weights for a task, and a temperature for each one's confidence: fitted to the replies about one half of
the pictures of a set, and scored on those about the other half."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from serve.client.evaluation import score
from serve.client.evaluation.measures import MEASURES, Measured
from serve.client.evaluation.measures.base import Counts, Floats, Json, mean
from serve.client.evaluation.score import Interval
from serve.client.http_client import Failure
from serve.tasks import TASKS

LADDER = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
"""The weights that are tried for each model."""
SWEEPS = 4
TEMPERATURES = np.geomspace(0.05, 100, 133)
EQUAL, TODAY, FITTED = "equal weights", "today's weights", "fitted weights"
RIGHT = ("VQA accuracy", "exact", "accuracy", "every shape")
"""Measures that are the share of items with a right answer, by which a confidence can be judged."""
SURE = 1e-6
"""A confidence of 0 or 1 counts as this far from it, so that one wrong reply does not outweigh all others."""
BINS = 10
AT_ONCE = 500
"""Items whose rightness is measured at once: each is a resample, so that what it takes grows with their square."""


@dataclass
class Calibration:
    """A model's confidence as the chance that its reply is right, on the half that it was not fitted to.

    temperature: the power of its confidence, above 1 where it is less often right than it is sure. brier, ece: mean
    squared and expected calibration error x 100, before and after. gain: of the Brier score; positive: better.
    """

    model: str
    replies: int
    right: float
    temperature: float
    brier: tuple[Interval, Interval]
    ece: tuple[Interval, Interval]
    gain: Interval


@dataclass
class FittedWeights:
    """The outcome for a task. items, pictures: of the half that scores; fitted_to: items of the other. rows: values of
    the first measure by weights. gains: of the fitted weights over each of the others, paired; positive is better."""

    task: str
    method: str
    seed: int
    fitted_to: int
    items: int
    pictures: int
    measure: str
    lower_is_better: bool
    weights: dict[str, float]
    rows: dict[str, Interval]
    gains: dict[str, Interval]
    calibrations: list[Calibration]

    @property
    def recommended(self) -> bool:
        """Return whether the fitted weights are better than today's beyond chance."""
        return self.gains[TODAY].low > 0


def fit_task(
    task: str, lines: Sequence[Json], seed: int, merge: str | None = None, weights: Mapping[str, float] | None = None
) -> FittedWeights:
    """Fit a task's weights and temperatures on half of its pictures, drawn by `seed`, and score them on the others.

    merge: the method; default: the recorded one. weights: today's; default: as recorded. Raises as `score.reports`,
    and Failure where there are not two pictures.
    """
    kept = [line for line in lines if line["task"] == task and not score.request_failed(line)]
    names, methods = score.models_of(task, kept), TASKS[task].methods
    recorded = [line["merged"]["method"] for line in kept if "method" in (line.get("merged") or {})]
    method = next((name for name in (merge, *recorded[:1]) if name in methods), next(iter(methods)))
    given, held = halves(kept, seed)

    def scorer(half: Sequence[Json], counts: Counts) -> Callable[[Mapping[str, float]], Measured]:
        replies = [score.good_replies(task, line) for line in half]
        rule = methods[method]
        return lambda by: _first(task, half, [score.merged_json(rule, some, by) for some in replies], counts)

    equal, counts = dict.fromkeys(names, 1.0), score.resamples([line["picture"] for line in held])
    on_given, on_held = scorer(given, np.zeros((0, len(given)), np.uint8)), scorer(held, counts)
    sign = -1 if on_given(equal).lower_is_better else 1
    fitted = best_weights(lambda by: sign * on_given(by).value, names)
    today = score.merges(task, held, method if merge or weights else None, weights or {})[0][1]
    measured = {EQUAL: on_held(equal), TODAY: _first(task, held, today, counts), FITTED: on_held(fitted)}
    best = measured[FITTED]
    calibrations = [calibration(task, name, given, held, counts) for name in names]
    return FittedWeights(
        task,
        method,
        seed,
        len(given),
        len(held),
        len({line["picture"] for line in held}),
        best.name,
        best.lower_is_better,
        fitted,
        {name: score.interval_of(each) for name, each in measured.items()},
        {
            name: score.interval(sign * (best.value - other.value), sign * (best.resampled - other.resampled))
            for name, other in measured.items()
            if name != FITTED
        },
        [each for each in calibrations if each is not None],
    )


def halves(lines: Sequence[Json], seed: int) -> tuple[list[Json], list[Json]]:
    """Return the lines about half of the pictures, drawn by the seed, and those about the others. Raises Failure."""
    pictures = sorted({line["picture"] for line in lines})
    if len(pictures) < 2:
        raise Failure("--fit-weights takes answers about two pictures at least: some to fit to, others to score on.")
    chosen = set(random.Random(f"fit {seed}").sample(pictures, len(pictures) // 2))
    given = [line for line in lines if line["picture"] in chosen]
    return given, [line for line in lines if line["picture"] not in chosen]


def best_weights(quality: Callable[[Mapping[str, float]], float], models: Sequence[str]) -> dict[str, float]:
    """Return the weights of LADDER with the highest quality, one model's changed at a time, from equal weights.

    Of equally good ones those stay that were found first, so that without a gain all are equal.
    """
    known: dict[tuple[float, ...], float] = {}

    def value(trial: Mapping[str, float]) -> float:
        proportions = tuple(trial[model] / max(trial.values()) for model in models)
        if proportions not in known:
            known[proportions] = quality(trial)
        return known[proportions]

    best = dict.fromkeys(models, 1.0)
    for _ in range(SWEEPS):
        before = best
        for model in models:
            trials = [best | {model: weight} for weight in LADDER]
            for trial in trials:
                if any(trial.values()) and value(trial) > value(best) + 1e-9:
                    best = trial
        if best == before:
            break
    return best


def calibration(
    task: str, model: str, given: Sequence[Json], held: Sequence[Json], counts: Counts
) -> Calibration | None:
    """Fit a temperature to a model's replies in `given`, and measure its effect in `held`.

    counts: resamples of `held`. Return None where no temperature can be fitted: confidences are missing, the task has
    no right or wrong, or all replies in `given` are right, or wrong.
    """
    sure, right, _ = _confidences(task, model, given)
    other_sure, other_right, at = _confidences(task, model, held)
    if not 0 < right.sum() < len(right) or not len(other_right):
        return None
    losses = [_log_loss(calibrated(sure, value), right) for value in TEMPERATURES]
    temperature = float(TEMPERATURES[int(np.argmin(losses))])
    drawn = counts[:, at]
    drawn = drawn[drawn.any(axis=1)]
    before, after = other_sure, calibrated(other_sure, temperature)
    briers = [mean("Brier", ((each - other_right) ** 2).tolist(), drawn) for each in (before, after)]
    gain = score.interval(briers[0].value - briers[1].value, briers[0].resampled - briers[1].resampled)
    return Calibration(
        model,
        len(at),
        100 * float(other_right.mean()),
        temperature,
        (score.interval_of(briers[0]), score.interval_of(briers[1])),
        (_calibration_error(before, other_right, drawn), _calibration_error(after, other_right, drawn)),
        gain,
    )


def calibrated(confidence: Floats, temperature: float) -> Floats:
    """Return confidence ** temperature: above 1, as a softmax's temperature, it makes a model less sure.

    Unlike logit(confidence) / temperature it goes below a half, which a model needs that is mostly wrong.
    """
    values: Floats = np.clip(confidence, SURE, 1 - SURE) ** temperature
    return values


def _log_loss(confidence: Floats, right: Floats) -> float:
    bounded = np.clip(confidence, SURE, 1 - SURE)
    return float(-(right * np.log(bounded) + (1 - right) * np.log(1 - bounded)).mean())


def _calibration_error(confidence: Floats, right: Floats, counts: Counts) -> Interval:
    """Return the expected calibration error x 100: the mean gap of confidence and share right, over BINS of it."""
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.stack([np.where(bins == at, right - confidence, 0.0) for at in range(BINS)], axis=1)
    resampled = 100 * np.abs(counts @ gaps).sum(axis=1) / counts.sum(axis=1)
    return score.interval(100 * float(np.abs(gaps.sum(axis=0)).sum()) / len(right), resampled)


def _confidences(task: str, model: str, lines: Sequence[Json]) -> tuple[Floats, Floats, list[int]]:
    """Return of a model's replies with a result the confidence, how right it is, 0..1, and the place of its line."""
    at, sure, results = [], [], []
    for place, line in enumerate(lines):
        for reply in line.get("replies", []):
            if reply["model"] == model and reply["result"] is not None and reply.get("confidence") is not None:
                at.append(place)
                sure.append(reply["confidence"])
                results.append(reply["result"])
    right = _right(task, [lines[place]["truth"] for place in at], results)
    return (np.array(sure), right, at) if len(right) else (np.zeros(0), right, [])


def _right(task: str, truths: Sequence[Json], results: Sequence[Json | None]) -> Floats:
    """Return how right each result is; empty for a task without right and wrong."""
    if TASKS[task].places is not None or not truths:
        return np.zeros(0)
    slabs = []
    for at in range(0, len(truths), AT_ONCE):
        some = slice(at, at + AT_ONCE)
        each = np.eye(len(truths[some]), dtype=np.uint8)
        measures = (item for measure in MEASURES[task] for item in measure(truths[some], results[some], each))
        slab = next((item.resampled / 100 for item in measures if item.name in RIGHT), None)
        if slab is None:
            return np.zeros(0)
        slabs.append(slab)
    return np.concatenate(slabs)


def _first(task: str, lines: Sequence[Json], merged: Sequence[Json | None], counts: Counts) -> Measured:
    results = [(each or {}).get("result") for each in merged]
    return MEASURES[task][0]([line["truth"] for line in lines], results, counts)[0]
