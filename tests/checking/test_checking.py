"""A check passes simulated models that see, in every contract, and refuses each planted fault by its name."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from simulated_models import (
    Move,
    SimulatedModel,
    anywhere,
    around_the_middle,
    middle,
    scattered,
    shifted,
    stretched,
    swapped,
)

from serve.checking.check import Ask, CheckAnswer, check
from serve.checking.questions import CheckQuestion, check_questions
from serve.models.check_report import CheckReport
from serve.models.contracts import (
    DEEPSEEK_VL2,
    GEMMA4,
    INTERNVL,
    LFM2_VL,
    LLAVA,
    PALIGEMMA,
    QWEN2_5_VL,
    QWEN3_VL,
    Contract,
)
from serve.models.probing import ProbeFault, Verdict

SEEDS = range(1, 21)
TASKS = ("detect", "vqa", "ocr")
SOUND = [QWEN3_VL, QWEN2_5_VL, GEMMA4, PALIGEMMA, LLAVA, DEEPSEEK_VL2, INTERNVL]
"""Scales 1000, pixels, 1000 with y first, 1023 with y first, 1 across the padded square, 999, 1000 in tags."""
FAULTY = [QWEN2_5_VL, GEMMA4, LLAVA]


def checked(model: SimulatedModel, declared: Contract | None, seed: int, **options: Any) -> CheckReport:
    return asyncio.run(check("m", TASKS, model.ask(seed), contract=declared, seed=seed, **options))


def faults(report: CheckReport) -> tuple[ProbeFault, ...]:
    boxes = report.tasks["detect"].boxes
    assert boxes is not None
    return boxes.faults


def named(contract: Any) -> str:
    return getattr(contract, "name", "")


@pytest.mark.slow
@pytest.mark.parametrize("contract", SOUND, ids=named)
def test_sound_model_passes_each_of_twenty_times(contract: Contract) -> None:
    for seed in SEEDS:
        report = checked(SimulatedModel(contract), contract, seed)
        assert report.outcome == "passed", (seed, report)
        assert report.contract == contract and report.tasks["detect"].boxes.verdict == Verdict.AGREES  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.parametrize("contract", FAULTY, ids=named)
def test_model_with_swapped_axes_is_refused_each_of_twenty_times(contract: Contract) -> None:
    reports = [checked(SimulatedModel(swapped(contract)), contract, seed) for seed in SEEDS]
    assert [faults(report) for report in reports] == [(ProbeFault.AXES_SWAPPED,)] * 20
    assert {report.refusal("detect") for report in reports} == {"x and y are swapped."}
    assert {report.tasks["vqa"].outcome for report in reports} == {"passed"} and reports[0].refusal("vqa") is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("contract", "writes", "reason"),
    [
        (QWEN2_5_VL, {"scale": 999, "resized": None}, "0 to 999 taken for pixels of the resized picture."),
        (replace(QWEN2_5_VL, resized=None), {"scale": 999}, "0 to 999 taken for pixels."),
        (QWEN3_VL, {"scale": None}, "pixels taken for 0 to 1000."),
        (LFM2_VL, {"scale": 999, "decimals": 0}, "0 to 999 taken for 0 to 1."),
        (DEEPSEEK_VL2, {"scale": None}, "pixels taken for 0 to 999."),
    ],
    ids=named,
)
def test_model_of_another_scale_is_refused_each_of_twenty_times(
    contract: Contract, writes: dict[str, Any], reason: str
) -> None:
    for seed in SEEDS:
        report = checked(SimulatedModel(replace(contract, **writes)), contract, seed)
        assert (faults(report), report.refusal("detect")) == ((ProbeFault.OTHER_SCALE,), reason), seed


@pytest.mark.slow
@pytest.mark.parametrize("contract", FAULTY, ids=named)
def test_model_ninety_pixels_off_is_refused_each_of_twenty_times(contract: Contract) -> None:
    for seed in SEEDS:
        report = checked(SimulatedModel(contract, shifted(90, 90)), contract, seed)
        boxes = report.tasks["detect"].boxes
        assert boxes is not None and boxes.faults == (ProbeFault.SHIFTED,), (seed, boxes)
        assert boxes.shift == pytest.approx((90, 90), abs=8)


@pytest.mark.slow
@pytest.mark.parametrize(("contract", "move"), [(QWEN3_VL, middle), (PALIGEMMA, anywhere)], ids=named)
def test_model_without_the_picture_is_refused_each_of_twenty_times(contract: Contract, move: Move) -> None:
    for seed in SEEDS:
        report = checked(SimulatedModel(contract, move, blind=move is middle), contract, seed)
        assert faults(report) == (ProbeFault.WITHOUT_PICTURE,), (seed, report)
        assert report.refusal("detect") == "The answers do not depend on the picture."
        if move is middle:
            reasons = [report.tasks[task].reason for task in ("vqa", "ocr")]
            assert reasons == ["The answers do not depend on the picture."] * 2, (seed, report)


def test_missing_boxes_of_a_model_without_the_picture_have_that_cause() -> None:
    async def ask(question: CheckQuestion) -> CheckAnswer:
        return CheckAnswer("nothing", None if question.task == "detect" else "nothing")

    report = asyncio.run(check("m", TASKS, ask, contract=LLAVA))
    assert faults(report) == (ProbeFault.WITHOUT_PICTURE,)
    assert str(report.refusal("detect")).startswith("The answers do not depend on the picture. Only 0 of 40 boxes ")


BREAKAGES = {
    "vllm 36117, 30918: every y nearly doubled": (stretched(1, 1.87), ProbeFault.STRETCHED),
    "sglang 36762: off by 95 pixels": (shifted(67, -67), ProbeFault.SHIFTED),
    "sglang 36762: off by 95 pixels, here and there": (scattered(95), None),
    "llama.cpp 16880: positions not aligned at the corners": (around_the_middle(0.85), ProbeFault.STRETCHED),
}
"""Published faults of engines that break grounding and no other task, with the fault that the check names."""


@pytest.mark.slow
@pytest.mark.parametrize(("move", "fault"), BREAKAGES.values(), ids=list(BREAKAGES))
def test_engine_that_breaks_grounding_alone_is_refused(move: Move, fault: ProbeFault | None) -> None:
    for seed in range(1, 11):
        report = checked(SimulatedModel(QWEN3_VL, move, cut=False), QWEN3_VL, seed)
        assert faults(report) == (() if fault is None else (fault,)), (seed, report.tasks["detect"])
        assert report.refusal("detect") and report.refusal("vqa") is None
        assert [report.tasks[task].outcome for task in TASKS] == ["failed", "passed", "passed"]


@pytest.mark.parametrize("contract", [QWEN3_VL, QWEN2_5_VL, GEMMA4, LFM2_VL, INTERNVL, LLAVA], ids=named)
def test_unknown_contract_is_that_of_the_first_form_that_is_answered(contract: Contract) -> None:
    def silent(question: CheckQuestion) -> Any:
        return asyncio.sleep(0, CheckAnswer("I cannot say.", None, "The reply holds no coordinates."))

    ask = SimulatedModel(contract).ask(1)
    report = asyncio.run(check("m", TASKS, ask, forms=[silent, ask], seed=1))
    boxes = report.tasks["detect"].boxes
    assert report.outcome == "passed" and boxes is not None
    assert (boxes.verdict, boxes.form) == (Verdict.FITS, 1)
    assert boxes.contract is not None and boxes.contract.style == contract.style
    box, size = (60, 80, 160, 200), (300, 420)
    placed = boxes.contract.parse(contract.format([("cat", box)], size), size, ["cat"])
    assert placed.boxes[0].box == pytest.approx(box, abs=4)


def failing(share: float, tasks: Sequence[str] = TASKS) -> Ask:
    """Return a model that sees, but whose server does not reply to a part of the questions of some tasks."""
    ask, count = SimulatedModel(QWEN3_VL).ask(0), 0

    async def some(question: CheckQuestion) -> CheckAnswer:
        nonlocal count
        if question.task in tasks:
            count += 1
            if count % 100 < 100 * share:
                return CheckAnswer(message="Its server cannot be reached.", replied=False)
        return await ask(question)

    return some


def test_failed_requests_are_no_verdict() -> None:
    report = asyncio.run(check("m", TASKS, failing(1.0), contract=QWEN3_VL))
    assert report.outcome == "not_asked" and report.refusal("detect") is None and report.contract is None
    reason = "40 of 40 questions could not be asked: Its server cannot be reached."
    assert report.tasks["detect"].reason == reason and report.tasks["detect"].boxes is None
    report = asyncio.run(check("m", TASKS, failing(1.0, ["vqa"]), contract=QWEN3_VL))
    assert [report.tasks[task].outcome for task in TASKS] == ["passed", "not_asked", "passed"]
    assert report.outcome == "not_asked" and "could not be checked" in report.summary


def test_few_failed_requests_are_left_out() -> None:
    assert asyncio.run(check("m", ["detect"], failing(0.03), contract=QWEN3_VL)).outcome == "passed"


def test_server_that_never_replies_gets_few_questions() -> None:
    received = []

    async def ask(question: CheckQuestion) -> CheckAnswer:
        received.append(question)
        return CheckAnswer(replied=False)

    asyncio.run(check("m", ["detect"], ask, contract=QWEN3_VL))
    assert len(received) == 8


@pytest.mark.slow
def test_check_ends_in_time() -> None:
    async def ask(question: CheckQuestion) -> CheckAnswer:
        await asyncio.sleep(60 if question.task == "vqa" else 0)
        return await SimulatedModel(QWEN3_VL).ask(0)(question)

    report = asyncio.run(check("m", TASKS, ask, contract=QWEN3_VL, limit_s=0.2))
    assert report.tasks["vqa"].reason == "The check took longer than 0.2 s." and report.outcome == "not_asked"
    assert list(report.tasks) == ["detect", "vqa"]


def test_without_the_picture_at_most_half_of_the_facts_can_be_right() -> None:
    for seed in range(5):
        answers: dict[str, list[object]] = {}
        for question in check_questions("vqa", seed):
            answers.setdefault(question.fields["question"], []).append(question.truth)
        assert len(answers) == 6 and all(first != second for first, second in answers.values())
        assert len({question.truth for question in check_questions("ocr", seed)}) == 8


def test_report_survives_json_with_its_contract() -> None:
    report = checked(SimulatedModel(QWEN2_5_VL), QWEN2_5_VL, 0, versions={"vllm": "0.32.0"})
    assert CheckReport.model_validate_json(report.model_dump_json()) == report
    assert report.contract == QWEN2_5_VL
    assert "passed at " in report.summary and " on vllm 0.32.0. detect: x before y, pixels of" in report.summary
