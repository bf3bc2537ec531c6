"""`diptych check` against the two toys with scripted engines that know, or do not know, what is in the picture."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from command import Ran, runner
from served import LLAVA, PALIGEMMA, listening, served

from serve.client import check
from serve.client.evaluation import toys
from serve.engines.base import Prompt
from serve.engines.fake import FakeEngine
from serve.models import contracts
from serve.models.contracts import Contract
from serve.models.llava_tasks import REGION
from serve.models.paligemma_tasks import READ
from serve.toy.probe_scenes import probe_scenes

Box = tuple[float, ...]


class Seer:
    """A model's replies: to boxes by what was drawn, to questions by the true answers, in the order of the check."""

    def __init__(self, contract: Contract, *, shift: float = 0, blind: bool = False) -> None:
        self.contract, self.shift, self.blind = contract, shift, blind
        self.scenes = iter(probe_scenes(0))
        self.scene = next(self.scenes)
        self.truths = {task: iter(list(toys.items(task, check.QUESTIONS, 0))) for task in ("vqa", "ocr")}

    def __call__(self, prompt: Prompt) -> str:
        text = prompt.text
        if text.startswith("detect ") or REGION in text:
            while not (wanted := [label for label in self._labels() if re.search(rf"[:;t] {label}\b", text)]):
                self.scene = next(self.scenes)
            if text.startswith("detect ") and len(wanted) < len(text.split(";")):
                self.scene = next(self.scenes)
                return self(prompt)
            return self.contract.format([(label, self._box(label)) for label in wanted], self.scene.size)
        if self.blind:
            return "nothing"
        reads = "written" in text or text.strip() == READ
        truth = next(self.truths["ocr" if reads else "vqa"]).truth
        return str(truth["text"] if reads else truth["answers"][0])

    def _labels(self) -> list[str]:
        return [label for label, _ in self.scene.boxes[: check.LABELS]]

    def _box(self, label: str) -> Box:
        width, height = self.scene.size
        if self.blind:
            return (0.3 * width, 0.3 * height, 0.7 * width, 0.7 * height)
        x0, y0, x1, y1 = dict(self.scene.boxes)[label]
        return (
            min(x0 + self.shift, width), min(y0 + self.shift, height),
            min(x1 + self.shift, width), min(y1 + self.shift, height),
        )  # fmt: skip


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    monkeypatch.setenv("COLUMNS", "160")
    return runner(capsys)


def outcomes(run: Callable[..., Ran], llava: Any, paligemma: Any, *names: str) -> tuple[int, list[dict[str, Any]]]:
    with listening(served(FakeEngine(llava), FakeEngine(paligemma))) as url:
        ran = run("check", *(names or ("all",)), "--json", "--server", url)
    return ran.status, json.loads(ran.out)


def test_models_that_see_pass(run: Callable[..., Ran]) -> None:
    status, (llava, paligemma) = outcomes(run, Seer(contracts.LLAVA), Seer(contracts.PALIGEMMA))
    for outcome in (llava, paligemma):
        assert outcome["passed"] and outcome["right"] == {"vqa": 1.0, "ocr": 1.0} and outcome["errors"] == []
        assert outcome["detect"]["verdict"] == "agrees" and outcome["detect"]["error"] < 0.01
        assert outcome["detect"]["boxes"] == {"read": 40, "drawn": 40}
    assert (llava["model"], paligemma["model"], status) == (LLAVA, PALIGEMMA, 0)


def test_models_with_planted_faults_fail_by_name(run: Callable[..., Ran]) -> None:
    swapped = replace(contracts.PALIGEMMA, order="xy")
    status, (llava, paligemma) = outcomes(run, Seer(contracts.LLAVA, shift=90), Seer(swapped))
    assert status == 1 and not llava["passed"] and not paligemma["passed"]
    assert re.fullmatch(r"Every box is off by \(\d\d, \d\d\) pixels\.", llava["detect"]["reason"])
    assert llava["detect"]["shift"] == pytest.approx([90, 90], abs=3)
    assert paligemma["detect"]["reason"] == "x and y are swapped."


def test_model_without_the_picture_fails(run: Callable[..., Ran]) -> None:
    blind = Seer(contracts.PALIGEMMA, blind=True)
    status, (outcome,) = outcomes(run, "red", blind, PALIGEMMA)
    assert status == 1 and outcome["right"] == {"vqa": 0.0, "ocr": 0.0}
    assert outcome["detect"]["reason"] == "The answers do not depend on the picture."


def test_model_without_boxes_fails_and_tells_its_errors(run: Callable[..., Ran]) -> None:
    with listening(served(FakeEngine("red"), FakeEngine("red"))) as url:
        ran = run("check", LLAVA, "--server", url)
    assert ran.status == 1 and "too_few_replies" in ran.out and "Only 0 of 40 boxes" in ran.out
    assert ran.out.count("The reply holds no box of the form") == 1


def test_model_that_is_not_served_is_refused(run: Callable[..., Ran]) -> None:
    with listening(served()) as url:
        ran = run("check", "llava-1.5-7b", "--server", url)
    assert ran.status != 0 and f"not served at {url} for images, but {LLAVA}, {PALIGEMMA}." in ran.err
