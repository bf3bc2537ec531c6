"""`diptych check` against two toys with engines that know, or do not know, what is in the picture."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from command import Ran, runner
from seeing_model import SeeingModel, ninety_off
from served import LLAVA, PALIGEMMA, listening, served

from serve.client import check
from serve.engines.fake import FakeEngine
from serve.models import contracts

pytestmark = pytest.mark.slow


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    monkeypatch.setenv("COLUMNS", "160")
    return runner(capsys)


def outcomes(run: Callable[..., Ran], llava: Any, paligemma: Any, *names: str) -> tuple[int, list[dict[str, Any]]]:
    with listening(served(FakeEngine(llava), FakeEngine(paligemma))) as url:
        ran = run("check", *(names or ("all",)), "--json", "--server", url)
    return ran.status, json.loads(ran.out)


def test_models_that_see_pass(run: Callable[..., Ran]) -> None:
    status, (llava, paligemma) = outcomes(run, SeeingModel(contracts.LLAVA), SeeingModel(contracts.PALIGEMMA))
    for report in (llava, paligemma):
        assert report["outcome"] == "passed" and {task["outcome"] for task in report["tasks"].values()} == {"passed"}
        detect, vqa, ocr = (report["tasks"][name] for name in ("detect", "vqa", "ocr"))
        assert detect["boxes"]["verdict"] == "agrees" and detect["boxes"]["error"] < 0.01
        assert (detect["boxes"]["read"], detect["boxes"]["drawn"]) == (40, 40)
        assert (vqa["right"], ocr["right"], detect["messages"]) == (1.0, 1.0, [])
    assert (llava["model"], paligemma["model"], status) == (LLAVA, PALIGEMMA, 0)


def test_models_with_planted_faults_fail_by_name(run: Callable[..., Ran]) -> None:
    swapped = replace(contracts.PALIGEMMA, order="xy")
    status, reports = outcomes(run, SeeingModel(contracts.LLAVA, ninety_off), SeeingModel(swapped))
    llava, paligemma = (report["tasks"]["detect"] for report in reports)
    assert status == 1 and [report["outcome"] for report in reports] == ["failed", "failed"]
    assert re.fullmatch(r"Every box is off by \(\d\d, \d\d\) pixels\.", llava["reason"])
    assert llava["boxes"]["shift"] == pytest.approx([90, 90], abs=3) and llava["boxes"]["faults"] == ["shifted"]
    assert paligemma["reason"] == "x and y are swapped." and paligemma["boxes"]["faults"] == ["axes_swapped"]


def test_numbers_outside_the_contract_tell_the_fault(run: Callable[..., Ran]) -> None:
    thousandths = SeeingModel(replace(contracts.LLAVA, scale=999, decimals=0))
    status, (report,) = outcomes(run, thousandths, "red", LLAVA)
    assert (status, report["tasks"]["detect"]["reason"]) == (1, "0 to 999 taken for 0 to 1.")
    assert report["tasks"]["detect"]["messages"] == [
        "The reply holds no box of the form [x0, y0, x1, y1] inside the image."
    ]


def test_model_without_the_picture_fails(run: Callable[..., Ran]) -> None:
    status, (report,) = outcomes(run, "red", SeeingModel(contracts.PALIGEMMA, blind=True), PALIGEMMA)
    reasons = {task["reason"] for task in report["tasks"].values()}
    assert status == 1 and reasons == {"The answers do not depend on the picture."}


def test_model_without_boxes_fails_and_tells_its_errors(run: Callable[..., Ran]) -> None:
    with listening(served(FakeEngine("red"), FakeEngine("red"))) as url:
        ran = run("check", LLAVA, "--server", url)
    assert ran.status == 1 and "too_few_replies" in ran.out and "Only 0 of 40 boxes" in ran.out
    assert ran.out.count("The reply holds no box of the form") == 1


def test_model_that_gives_no_reply_is_not_judged(run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "PATIENCE_S", 0.0)
    with listening(served(FakeEngine(fail_after=0), FakeEngine(SeeingModel(contracts.PALIGEMMA)))) as url:
        ran = run("check", "all", "--server", url)
    assert ran.status == check.NOT_ASKED == 3
    assert re.search(rf"{LLAVA} +not_asked +- ", ran.out) and re.search(rf"{PALIGEMMA} +passed +agrees ", ran.out)
    assert re.search("40 of 40 questions could not be asked: .*The model failed", ran.out)


def test_model_that_is_not_served_is_refused(run: Callable[..., Ran]) -> None:
    with listening(served()) as url:
        ran = run("check", "llava-1.5-7b", "--server", url)
    assert ran.status != 0 and f"not served at {url} for images, but {LLAVA}, {PALIGEMMA}." in ran.err
