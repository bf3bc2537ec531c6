"""Weights and temperatures fitted to recorded replies, and what is answered where models have to agree."""

import json
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from deployments.args import Args
from serve.client.evaluation import fitting, score
from serve.client.evaluation.abstention import THRESHOLDS, abstention
from serve.client.http_client import Failure
from serve.tasks import TASKS

A, B, C = "toy-llava", "toy-paligemma", "toy-paligemma-b"


def recorded(count: int, answers: Callable[[int], Sequence[tuple[str, float]]]) -> list[dict[str, Any]]:
    """Return lines about `count` pictures whose true answer is yes, with what A, B and C say and how sure they are."""
    lines = []
    for at in range(count):
        replies = [
            {"model": name, "status": "ok", "result": {"answer": text}, "text": text, "confidence": sure}
            for name, (text, sure) in zip((A, B, C), answers(at), strict=True)
        ]
        merged = score.merged_json(TASKS["vqa"].methods["vote"], score.good_replies("vqa", {"replies": replies}), {})
        head = {"item": str(at), "task": "vqa", "picture": str(at), "asked": {}, "truth": {"answers": ["yes"]}}
        lines.append(head | {"merged": merged, "replies": replies})
    return lines


def first_is_right(at: int) -> Sequence[tuple[str, float]]:
    """Let A be right nine times of ten, and the others be wrong together every second time."""
    others = ("no" if at % 2 else "yes", 0.9)
    return [("no" if at % 10 == 0 else "yes", 0.9), others, others]


@pytest.mark.slow
def test_fitted_weights_beat_equal_ones_on_the_other_pictures() -> None:
    lines = recorded(200, first_is_right)
    fit = fitting.fit_task("vqa", lines, seed=0)
    assert (fit.method, fit.fitted_to, fit.items, fit.pictures) == ("vote", 100, 100, 100)
    assert fit.weights[A] >= fit.weights[B] + fit.weights[C]
    assert fit.rows[fitting.EQUAL] == fit.rows[fitting.TODAY]
    assert fit.rows[fitting.EQUAL].value == pytest.approx(50, abs=12)
    assert fit.rows[fitting.FITTED].value == pytest.approx(90, abs=8)
    gain = fit.gains[fitting.TODAY]
    assert gain.value == pytest.approx(fit.rows[fitting.FITTED].value - fit.rows[fitting.TODAY].value)
    assert 0 < gain.low <= gain.value <= gain.high and fit.recommended
    assert fit == fitting.fit_task("vqa", list(lines), seed=0)
    already = fitting.fit_task("vqa", lines, seed=0, weights={A: 3.0})
    assert already.gains[fitting.TODAY].value == 0 and not already.recommended


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_models_that_are_equally_good_keep_equal_weights_or_get_no_recommendation(seed: int) -> None:
    draws = np.random.default_rng(seed)
    lines = recorded(60, lambda at: [(("yes", "no")[int(draws.random() < 0.3)], 0.5) for _ in "abc"])
    assert not fitting.fit_task("vqa", lines, seed).recommended


def test_no_picture_is_in_both_halves_and_another_seed_draws_others() -> None:
    lines = [line | {"picture": str(at // 3)} for at, line in enumerate(recorded(60, first_is_right))]
    given, held = fitting.halves(lines, 0)
    assert len(given) == len(held) == 30
    assert {line["picture"] for line in given}.isdisjoint(line["picture"] for line in held)
    assert fitting.halves(lines, 1) != (given, held)
    with pytest.raises(Failure, match="two pictures"):
        fitting.halves(lines[:3], 0)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_temperature_makes_confidence_the_chance_of_being_right(temperature: float) -> None:
    """Draw replies that are right with the chance that their confidence has at this temperature."""
    draws = np.random.default_rng(7)
    sure = draws.uniform(0.3, 0.99, 3000)
    right = draws.random(3000) < sure**temperature
    lines = recorded(3000, lambda at: [("yes" if right[at] else "no", float(sure[at]))] * 3)
    given, held = fitting.halves(lines, 0)
    row = fitting.calibration("vqa", A, given, held, score.resamples([line["picture"] for line in held]))
    assert row is not None and row.replies == 1500
    assert row.temperature == pytest.approx(temperature, rel=0.15)
    assert row.ece[1].value < 5 and (row.gain.low > 0) is (temperature != 1.0)
    if temperature != 1.0:
        assert row.ece[1].high < row.ece[0].low


def test_rightness_of_many_replies_takes_memory_for_each_alone() -> None:
    answers = [{"answer": "yes" if at % 3 else "no"} for at in range(6001)]
    tracemalloc.start()
    try:
        right = fitting._right("vqa", [{"answers": ["yes"]}] * len(answers), answers)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert right.tolist() == [float(at % 3 > 0) for at in range(6001)]
    assert peak < 4 * 2**20  # a resample for each would take 34 MiB


def test_captions_without_shapes_beside_others_have_no_rightness() -> None:
    """Let only the last truth name no shapes, so that it is measured apart from most others."""
    truths = [{"captions": ["a red circle"], "shapes": ["red circle"]}] * fitting.AT_ONCE + [{"captions": ["a cat"]}]
    results = [{"caption": "a red circle"}] * len(truths)
    assert fitting._right("caption", truths[:-1], results[:-1]).tolist() == [1.0] * fitting.AT_ONCE
    assert not len(fitting._right("caption", truths, results))


def test_task_without_right_and_wrong_or_confidences_has_no_temperature() -> None:
    lines = recorded(20, first_is_right)
    silent = [line | {"replies": [reply | {"confidence": None} for reply in line["replies"]]} for line in lines]
    assert fitting.fit_task("vqa", silent, seed=0).calibrations == []
    counts = score.resamples([line["picture"] for line in lines])
    assert fitting.calibration("detect", A, lines, lines, counts) is None


@pytest.mark.slow
def test_command_prints_weights_that_the_config_takes(diptych: Any, tmp_path: Path) -> None:
    path = tmp_path / "vqa.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in recorded(200, first_is_right)))
    ran = diptych("evaluate", "--from", path, "--fit-weights", "--by-agreement")
    assert ran.status == 0, ran.err
    assert "fitted - today's weights = +" in ran.out and "Fitted to 100 items of other pictures (seed 0)" in ran.out
    entries = yaml.safe_load(ran.out[ran.out.index("models:") :])
    models = Args.model_validate(entries).models_by_name
    (report,) = json.loads(diptych("evaluate", "--from", path, "--fit-weights", "--by-agreement", "--json").out)
    assert {name: model.weight_in("vqa") for name, model in models.items()} == report["fit"]["weights"]
    assert report["fit"]["recommended"] and models[B].weight_in("caption") == 1
    assert [row["answered"] for row in report["by_agreement"]["thresholds"]] == [200, 200, 200, 80, 80]
    other = diptych("evaluate", "--from", path, "--fit-weights", "--weights", f"{A}=3", "--seed", "4")
    assert "(seed 4)" in other.out and "keep those" in other.out and "models:" not in other.out


def test_scores_by_agreement_are_those_of_answered_items() -> None:
    """Let all be right on 6 of 10, and two of three wrong on the others, one of which has no merged reply."""
    lines = recorded(10, lambda at: [("yes", 0.9), *[("yes" if at < 6 else "no", 0.9)] * 2])
    lines[9]["merged"] = None
    outcome = abstention("vqa", lines)
    assert (outcome.items, outcome.measure, outcome.lower_is_better) == (10, "VQA accuracy", False)
    values = {row.min_agreement: (row.answered, row.coverage.value, row.measured) for row in outcome.thresholds}
    assert list(values) == list(THRESHOLDS)
    for least, (answered, coverage, measured) in values.items():
        assert measured is not None and measured.low <= measured.value <= measured.high
        assert (answered, coverage) == ((9, 90.0) if least < 0.6 else (6, 60.0))
        assert measured.value == pytest.approx(100 * 6 / answered)
    unsure = abstention("vqa", lines, weights={A: 0.0})
    assert [row.answered for row in unsure.thresholds] == [10] * len(THRESHOLDS)
