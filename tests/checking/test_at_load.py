"""A model whose config says so is checked before it is ready; its report is kept, shown, and turns boxes off."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from seeing_model import SeeingModel, ninety_off
from served import LLAVA, PALIGEMMA, calling

from deployments.args import Args, ModelArgs
from deployments.routing import endpoint as endpoints
from deployments.routing.endpoint import Endpoint
from deployments.routing.replica_route import Quarantine, ReplicaRoute
from serve.api.app import create_app
from serve.checking import at_load
from serve.checking.at_load import check_at_load
from serve.checking.questions import check_questions
from serve.engines import object_store
from serve.engines.base import Prompt
from serve.engines.fake import FakeEngine
from serve.errors import ModelError
from serve.media.image import undecoded_image
from serve.models import MODELS, contracts
from serve.models.check_report import CheckReport
from serve.models.instructed import FIND, detect_skill
from serve.models.llava_tasks import REGION
from serve.models.remote import RemoteModel, chat_messages, remote_model
from serve.router import Router
from serve.tasks import TASKS
from serve.tasks.boxes import LabelledBox
from serve.tasks.detect import DetectRequest
from serve.tasks.reply import Reply
from serve.worker import Worker

ENTRY = ModelArgs(name=LLAVA, check=True)
REMOTE = {"remote": "https://api.example.com/v1", "model": "gpt-x", "boxes": "probe"}


def worker(replies: Any, folder: Path, entry: ModelArgs = ENTRY, **options: Any) -> Worker:
    return Worker(
        MODELS[entry.name], FakeEngine(replies, kept=1000), check=check_at_load(entry, folder=folder, **options)
    )


async def detect(route: Any, seed: int = 0) -> list[LabelledBox]:
    """Return the boxes that a route finds in the first picture of a check."""
    question = check_questions("detect", seed)[0]
    request = DetectRequest(image=undecoded_image(question.load()), **question.fields)
    reply = [event async for event in route.answer("detect", request)][-1]
    assert isinstance(reply, Reply) and reply.error is None, reply
    return reply.result.boxes  # type: ignore[union-attr]


@pytest.mark.slow
async def test_model_is_ready_after_its_check(tmp_path: Path) -> None:
    steps: list[tuple[str, str]] = []
    checked = worker(lambda prompt: steps.append(state()) or seer(prompt), tmp_path)
    seer = SeeingModel(contracts.LLAVA)

    def state() -> tuple[str, str]:
        return checked._state, checked._step

    await checked.start()
    status = await checked.status()
    assert {state for state, _ in steps} == {"starting"} and status.state == "ready"
    assert steps[-1][1] == "being checked, ocr: 4 of 8 questions"
    assert status.report is not None and status.report.outcome == "passed" and status.report.model == LLAVA
    assert status.report.versions["diptych"] and await detect(checked)


async def test_report_is_kept_for_the_same_model_and_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(at_load, "CHECKED", ("ocr",))
    seer = SeeingModel(contracts.LLAVA)
    first, again = worker(seer, tmp_path), worker(seer, tmp_path)
    await first.start()
    await again.start()
    assert len(first.engine.prompts) == 8 and not again.engine.prompts  # type: ignore[attr-defined]
    assert (await again.status()).report == (await first.status()).report
    monkeypatch.setattr(at_load, "_versions", lambda packages: {"vllm": "0.33.0"})
    updated = worker(seer, tmp_path)
    await updated.start()
    assert len(updated.engine.prompts) == 8  # type: ignore[attr-defined]
    other = worker(seer, tmp_path, ModelArgs(name=LLAVA, check=True, engine={"dtype": "float16"}))
    await other.start()
    assert len(other.engine.prompts) == 8 and len(list(tmp_path.iterdir())) == 3  # type: ignore[attr-defined]
    for file in tmp_path.iterdir():
        file.write_text("{")
    await (damaged := worker(seer, tmp_path)).start()
    assert len(damaged.engine.prompts) == 8  # type: ignore[attr-defined]


async def test_checkpoint_of_an_object_store_is_checked_again_at_each_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(at_load, "CHECKED", ("ocr",))
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    entry = ModelArgs(name=LLAVA, check=True, checkpoint="s3://models/toys/llava")
    copy = object_store.folder_of("s3://models/toys/llava")
    copy.mkdir(parents=True)
    seer = SeeingModel(contracts.LLAVA)
    for start in (1, 2):
        (copy / "config.json").write_text("{}")
        os.utime(copy / "config.json", (start, start))
        engine = FakeEngine(seer, kept=1000)
        checked = Worker(entry.model(), engine, check=check_at_load(entry, folder=tmp_path / "kept"))
        await checked.start()
        assert len(engine.prompts) == 8 and (await checked.status()).state == "ready"


async def test_check_that_could_not_ask_is_not_kept_and_turns_nothing_off(tmp_path: Path) -> None:
    silent = Worker(MODELS[LLAVA], FakeEngine(fail_after=0), check=check_at_load(ENTRY, folder=tmp_path))
    await silent.start()
    status = await silent.status()
    assert status.state == "ready" and status.report is not None and status.report.outcome == "not_asked"
    assert not list(tmp_path.iterdir())
    silent.engine = FakeEngine(SeeingModel(contracts.LLAVA))
    assert await detect(silent)


async def test_folder_that_cannot_be_written_costs_nothing_but_the_next_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(at_load, "CHECKED", ("ocr",))
    (tmp_path / "file").write_text("")
    checked = worker(SeeingModel(contracts.LLAVA), tmp_path / "file")
    await checked.start()
    assert (await checked.status()).state == "ready" and checked.report is not None


async def test_check_takes_bounded_time(tmp_path: Path) -> None:
    engine = FakeEngine("red", delay_s=30)
    checked = Worker(MODELS[LLAVA], engine, check=check_at_load(ENTRY, folder=tmp_path, limit_s=0.1))
    await asyncio.wait_for(checked.start(), 5)
    status = await checked.status()
    assert status.state == "ready" and status.report is not None and status.report.outcome == "not_asked"
    assert engine.speaking == 0


@pytest.mark.slow
async def test_boxes_of_a_model_that_fails_are_off_with_the_reason_everywhere(tmp_path: Path) -> None:
    wrong = worker(SeeingModel(contracts.LLAVA, ninety_off), tmp_path)
    sound = worker(SeeingModel(contracts.PALIGEMMA), tmp_path, ModelArgs(name=PALIGEMMA, check=True))
    await asyncio.gather(wrong.start(), sound.start())
    with pytest.raises(ModelError, match=rf"{LLAVA} does no detect here\. Every box is off by \(\d+, \d+\) pixels\."):
        await detect(wrong)
    async with calling(create_app(Router([wrong, sound]))) as client:
        models = {entry["id"]: entry for entry in (await client.get("/v1/models")).json()["data"]}
        cards = {card["id"]: card for card in (await client.get("/v1/catalog")).json()["data"]}
        table = (await client.get("/v1/compare", params={"models": f"{LLAVA},{PALIGEMMA},llava-1.5-7b"})).json()
        question = check_questions("detect", 0)[0]
        files, fields = {"image": question.load()}, {"labels": question.fields["labels"] * 2}
        answer = (await client.post("/v1/tasks/detect", files=files, data=fields)).json()
    assert "detect" not in models[LLAVA]["diptych"]["tasks"] and "vqa" in models[LLAVA]["diptych"]["tasks"]
    assert models["detect"]["diptych"]["models"] == [PALIGEMMA]
    assert models[LLAVA]["diptych"]["check"]["outcome"] == cards[LLAVA]["check"]["outcome"] == "failed"
    boxes = cards[PALIGEMMA]["check"]["tasks"]["detect"]["boxes"]
    assert boxes["meaning"] == "y before x, 0 to 1023" and boxes["margin"] > 0
    assert cards[PALIGEMMA]["contract"]["name"] == "paligemma" and cards["llava-1.5-7b"]["check"] is None
    assert "detect" not in cards[LLAVA]["skills"] and "detect" in cards[PALIGEMMA]["skills"]
    row = next(row for row in table["rows"] if row["name"] == "check")
    assert row["differs"] and row["values"][2] == "not checked here"
    assert "detect: Every box is off by" in row["values"][0] and row["values"][1].startswith("passed at 20")
    assert next(row for row in table["tasks"]["unshared"] if row["task"] == "detect")["models"] == [
        PALIGEMMA,
        "llava-1.5-7b",
    ]
    replies = {reply["model"]: reply for reply in answer["replies"]}
    assert replies[LLAVA]["error"]["code"] == "check_failed" and replies[PALIGEMMA]["status"] == "ok"
    assert answer["merged"]["models"] == [PALIGEMMA]


async def settled(endpoint: Endpoint) -> Any:
    """Return the status of an endpoint once it is ready."""
    for _ in range(3000):
        status = await endpoint.status("gpt-x")
        if status.state == "ready":
            return status
        await asyncio.sleep(0.01)
    raise AssertionError(status)


def by_list(text: str) -> bool:
    return FIND[:4] in text


def by_region(text: str) -> bool:
    return REGION in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("writes", "answers", "meaning"),
    [
        (contracts.GEMMA4, by_list, "y before x, 0 to 1000"),
        (contracts.LLAVA, by_region, "x before y, 0 to 1 across the padded square"),
    ],
    ids=["json", "brackets"],
)
async def test_remote_model_detects_by_the_contract_of_its_check(
    writes: contracts.Contract,
    answers: Callable[[str], bool],
    meaning: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(at_load.FOLDER, str(tmp_path))
    entry = RemoteModel(**REMOTE, tasks=["detect"])
    model = remote_model(entry)
    skills = remote_model(RemoteModel(**REMOTE)).skills
    assert entry.check and list(skills) == [task for task in TASKS if task != "segment"]
    engine = FakeEngine(SeeingModel(writes, answers=answers), kept=1000)
    endpoint = Endpoint(model, engine, entry)
    route = ReplicaRoute(model, endpoint, Quarantine())
    with pytest.raises(ModelError, match="still starting"):
        await detect(route)
    report = (await settled(endpoint)).report
    assert report.outcome == "passed" and report.tasks["detect"].boxes.meaning == meaning
    (box,) = await detect(route)
    assert box.box == pytest.approx(check_questions("detect", 0)[0].truth, abs=6)
    async with calling(create_app(Router([route]))) as client:
        (card,) = [card for card in (await client.get("/v1/catalog")).json()["data"] if card["id"] == "gpt-x"]
    assert card["contract"] and card["contract"]["order"] == writes.order and "detect" in card["skills"]
    endpoint.close()
    again = Endpoint(model, FakeEngine(fail_after=0), entry)  # the report is kept for a day
    assert (await settled(again)).report == report
    again.close()


@pytest.mark.slow
async def test_remote_model_without_a_contract_does_not_detect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(at_load.FOLDER, str(tmp_path))
    entry = RemoteModel(**REMOTE)
    seer = SeeingModel(contracts.QWEN3_VL, answers=lambda text: False)
    endpoint = Endpoint(remote_model(entry), FakeEngine(seer, kept=1000), entry)
    status = await settled(endpoint)
    with pytest.raises(ModelError, match=r"gpt-x does no detect here\. Only 0 of 40 boxes can be read in the replies"):
        await detect(ReplicaRoute(remote_model(entry), endpoint, Quarantine()))
    assert status.report.tasks["vqa"].outcome == "passed"
    endpoint.close()


def test_declared_contract_of_a_remote_model_is_in_its_prompt_and_parser() -> None:
    args = Args.model_validate({"models": [{**REMOTE, "boxes": "gemma4"}]})
    model = args.models_by_name["gpt-x"]
    assert model.skills["detect"].contract == contracts.GEMMA4 and not args.remotes()["gpt-x"].check
    request = DetectRequest(image=undecoded_image(check_questions("detect", 0)[0].load()), labels=["cat", "dog"])
    (prompt,) = model.skills["detect"].ask(request)
    assert '\\"box_2d\\": [y0, x0, y1, x1]' in prompt.text and "The numbers are 0 to 1000." in prompt.text
    skill = detect_skill(chat_messages, contracts.INTERNVL)
    assert [isinstance(prompt, Prompt) for prompt in skill.ask(request)] == [True, True] and skill.prompts(request) == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"boxes": "qwen"}, "it must be a coordinate contract, llava, qwen2_vl"),
        ({"boxes": "paligemma"}, "it must be a coordinate contract"),
        ({"boxes": None, "tasks": ["detect"]}, "tasks: detect needs `boxes`, its coordinate contract"),
    ],
)
def test_contract_that_cannot_be_declared_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RemoteModel(**{**REMOTE, **fields})


@pytest.mark.slow
async def test_remote_model_is_checked_again_until_its_server_replies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(at_load.FOLDER, str(tmp_path))
    monkeypatch.setattr(endpoints, "CHECK_READY_S", 0.01)
    seer = SeeingModel(contracts.LLAVA, answers=by_region)

    def starting(prompt: Prompt) -> str:
        if len(engine.prompts) < 20:
            raise ModelError("gpt-x's server takes no more requests for now (503).", code="remote_failed")
        return seer(prompt)

    entry = RemoteModel(**REMOTE, tasks=["detect"])
    engine = FakeEngine(starting, kept=1000)
    endpoint = Endpoint(remote_model(entry), engine, entry)
    first = (await settled(endpoint)).report
    assert first.tasks["detect"].outcome == "not_asked" and first.refusal("detect") is None
    for _ in range(1000):
        if (report := (await endpoint.status("gpt-x")).report) != first and report.complete:
            break
        await asyncio.sleep(0.01)
    assert report.outcome == "passed" and await detect(ReplicaRoute(remote_model(entry), endpoint, Quarantine()))
    endpoint.close()


def test_report_of_a_remote_model_is_kept_for_a_day(tmp_path: Path) -> None:
    report = CheckReport.of("gpt-x", {}, {})
    file = tmp_path / "report.json"
    for at, kept in ((report.at, True), ("2026-11-01 00:00", False)):
        file.write_text(report.model_copy(update={"at": at}).model_dump_json())
        assert (at_load._kept(file, 1.0) is not None) == kept and at_load._kept(file, None) is not None
