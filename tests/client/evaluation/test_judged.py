"""A judge's column where the replies are merged again: texts that no model gave."""

import json
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from served import listening

from serve.api.app import create_app
from serve.client.evaluation import judged, score
from serve.engines.fake import FakeEngine
from serve.models import MODELS
from serve.router import Router
from serve.worker import Worker

TEXTS = ("the quick brown cat", "the quick brawn fox", "thy quick brown fox")
"""Three readings that are merged by their words to a fourth: the quick brown fox."""


def recorded(truth: str) -> dict[str, Any]:
    replies = [
        {"model": name, "status": "ok", "result": {"text": text}, "text": text, "confidence": 0.9}
        for name, text in zip("abc", TEXTS, strict=True)
    ]
    merged = {"result": {"text": TEXTS[1]}, "method": "medoid", "agreement": 1.0}
    head = {"item": "i", "picture": "p", "task": "ocr", "asked": {}, "truth": {"text": truth}}
    return head | {"replies": replies, "merged": merged}


def judge(monkeypatch: pytest.MonkeyPatch, line: dict[str, Any], *others: str) -> list[str]:
    """Let a judge that says yes to everything judge a line; return the answers that it was asked about."""
    answers: list[str] = []

    def say_yes(jobs: Any, asker: Any, kept: Any, total: int) -> None:
        for job in jobs:
            answers.append(job.line["answer"])
            kept.add(job.line | {"replies": [{"result": {"answer": "yes"}}]})

    monkeypatch.setattr(judged, "ask_all", say_yes)
    results: dict[str, Any] = {"others": {"i": [{"text": text} for text in others]}} if others else {}
    judged.judge_answers([line], {"i": lambda: b""}, None, "j", **results)  # type: ignore[arg-type]
    return answers


def judged_by(line: dict[str, Any]) -> dict[str, float | None]:
    (report,) = score.reports([line], score.ALL)
    return {
        row.name: row.measures["judged by j"].value if "judged by j" in row.measures else None for row in report.rows
    }


def test_merged_text_worded_as_the_true_one_is_right_without_a_question(monkeypatch: pytest.MonkeyPatch) -> None:
    line = recorded("the quick brown fox")
    assert judge(monkeypatch, line) == list(TEXTS)
    assert {*judged_by(line).values()} == {100.0}


def test_text_that_replies_are_merged_to_again_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    line = recorded("the fast brown fox")
    assert judge(monkeypatch, line, "the quick brown fox") == [*TEXTS, "the quick brown fox"]
    assert {*judged_by(line).values()} == {100.0}


def test_judge_without_a_verdict_on_a_merged_text_has_no_column(monkeypatch: pytest.MonkeyPatch) -> None:
    line = recorded("the fast brown fox")
    judge(monkeypatch, line)
    assert {*judged_by(line).values()} == {None}


def test_command_asks_the_judge_about_a_text_that_weights_alone_give(diptych: Any, tmp_path: Path) -> None:
    PIL.Image.new("RGB", (32, 24), "red").save(tmp_path / "a.png")
    (tmp_path / "labels.jsonl").write_text('{"image": "a.png", "text": "the fast brown dog"}\n')
    verdicts = {"The answer given was": "No", "The answer given was: 'the quick brown dog'": "Yes"}
    engines = {
        "toy-llava": FakeEngine({"": "the quick brown cat"} | verdicts),
        "toy-paligemma": FakeEngine("the quick brawn fox"),
        "toy-llava-b": FakeEngine("thy quick brown dog"),
    }
    workers = [Worker(MODELS[name], engine) for name, engine in engines.items()]
    for worker in workers:
        worker.mark("ready", "ready")
    with listening(create_app(Router(workers))) as url:
        ask = ("evaluate", tmp_path, "--task", "ocr", "--json", "--judged-by", "toy-llava", "--server", url)
        ran = diptych(*ask, "--merge", "all", "--weights", "toy-llava-b=1.5")
    assert ran.status == 0, ran.err
    rows = {row["name"]: row["measures"] for row in json.loads(ran.out)[0]["rows"]}
    rights = {name: measures["judged by toy-llava"]["value"] for name, measures in rows.items()}
    assert rights.pop("merged by rover") == 100.0 and {*rights.values()} == {0.0}
