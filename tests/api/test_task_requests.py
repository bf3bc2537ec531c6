"""Tasks over HTTP: as JSON, forms and streams."""

import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from http_calls import VQA, error, post
from served import LLAVA, PALIGEMMA, frames, listening, message, picture, served

from serve.api import responses
from serve.api.chat_completions import task_completion
from serve.engines.fake import FakeEngine
from serve.router import router as routers


async def test_task_returns_each_reply_and_the_merged_reply() -> None:
    app = served(FakeEngine("a red square"), FakeEngine("red"))
    reply = await post("/v1/tasks/vqa", VQA | {"weights": {PALIGEMMA: 3}}, app)
    assert reply.status_code == 200
    body = reply.json()
    assert body["id"].startswith("task-") and body["object"] == "diptych.task" and body["task"] == "vqa"
    assert body["image"] == {"width": 64, "height": 48}
    assert body["merged"]["result"] == {"answer": "red"} and body["merged"]["method"] == "vote"
    assert [reply["model"] for reply in body["replies"]] == [LLAVA, PALIGEMMA]
    first = body["replies"][0]
    assert first["status"] == "ok" and first["error"] is None and first["finish_reason"] == "stop"
    assert first["result"] == {"answer": "a red square"} and first["text"] == "a red square"
    assert first["latency_ms"] >= first["ttft_ms"] >= 0
    for count in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert body["usage"][count] == sum(reply["usage"][count] for reply in body["replies"]) > 0


async def test_task_with_a_model_list_calls_those_models_only() -> None:
    body = (await post("/v1/tasks/vqa", VQA | {"models": [PALIGEMMA]})).json()
    assert [reply["model"] for reply in body["replies"]] == [PALIGEMMA]


async def test_failed_model_leaves_other_replies_ok() -> None:
    app = served(FakeEngine("red", fail_after=0), FakeEngine("red"))
    reply = await post("/v1/tasks/vqa", VQA, app)
    assert reply.status_code == 200
    failed, fine = reply.json()["replies"]
    assert failed["status"] == "error" and failed["result"] is None and failed["error"]["code"] == "model_error"
    assert fine["status"] == "ok"


@pytest.mark.parametrize("stream", [False, True])
async def test_task_without_any_answer_is_503_with_retry_after(stream: bool) -> None:
    reply = await post("/v1/tasks/vqa", VQA | {"stream": stream}, served(ready=False))
    assert reply.status_code == 503 and int(reply.headers["retry-after"]) > 0
    assert error(reply)["code"] == "no_model_answered" and "still starting" in error(reply)["message"]


async def test_task_stream_has_deltas_replies_and_the_merged_reply() -> None:
    app = served(FakeEngine("a red square", delay_s=0.01), FakeEngine("red"))
    reply = await post("/v1/tasks/vqa", VQA | {"stream": True}, app)
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert "content-length" not in reply.headers
    events = frames(reply.text)
    assert events[-1] == (None, "[DONE]") and events[-2][0] == "merged"
    parsed = [(event, json.loads(data)) for event, data in events[:-1]]
    text_by_model = {
        name: "".join(data["text"] for event, data in parsed if event == "delta" and data["model"] == name)
        for name in (LLAVA, PALIGEMMA)
    }
    assert text_by_model == {LLAVA: "a red square", PALIGEMMA: "red"}
    assert [data["model"] for event, data in parsed if event == "reply"] == [PALIGEMMA, LLAVA]  # the faster one first
    assert parsed[-1][1]["method"] == "vote"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("second", "least", "result"), [("blue", 0.6, None), ("blue", 0.5, "red"), ("red", 1, "red")])
async def test_merged_reply_of_models_that_agree_less_than_wanted_is_an_error(
    second: str, least: float, result: str | None, stream: bool
) -> None:
    app = served(FakeEngine("red"), FakeEngine(second))
    plain = (await post("/v1/tasks/vqa", VQA, app)).json()
    reply = await post("/v1/tasks/vqa", VQA | {"min_agreement": least, "stream": stream}, app)
    events = [(event, json.loads(data)) for event, data in frames(reply.text)[:-1]] if stream else []
    merged = events[-1][1] if stream else reply.json()["merged"]
    replies = [data for event, data in events if event == "reply"] if stream else reply.json()["replies"]
    texts = [(data["model"], data["status"], data["result"]) for data in replies]
    assert sorted(texts) == [(data["model"], data["status"], data["result"]) for data in plain["replies"]]
    if result is not None:
        assert merged == plain["merged"] and "error" not in merged
        return
    message = "The models disagree: their agreement is 0.5, less than 0.6."
    error = {"code": "models_disagree", "message": message}
    assert merged == plain["merged"] | {"result": None, "supporters": [], "error": error}


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/tasks/vqa", VQA), ("/v1/chat/completions", {"model": "vqa:*", "messages": [message()]})],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_fan_out_is_planned_once(
    monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any], stream: bool
) -> None:
    calls: list[str] = []

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            calls.append(function.__name__)
            return function(*args, **options)

        return call

    able_routes = routers.able_routes
    for module in (routers, task_completion):
        monkeypatch.setattr(module, "able_routes", counted(able_routes))
    monkeypatch.setattr(routers, "choose_judge", counted(routers.choose_judge))
    assert (await post(path, body | {"stream": stream})).status_code == 200
    assert sorted(calls) == ["able_routes", "choose_judge"]


async def test_failure_after_the_first_byte_is_an_error_event() -> None:
    app = served(FakeEngine("a red square", fail_after=1), FakeEngine("red square", fail_after=1))
    events = frames((await post("/v1/tasks/vqa", VQA | {"stream": True}, app)).text)
    assert events[-1] == (None, "[DONE]") and events[-2][0] == "error"
    assert json.loads(events[-2][1])["error"]["code"] == "no_model_answered"
    assert [json.loads(data)["status"] for event, data in events if event == "reply"] == ["error", "error"]


async def test_early_failure_is_streamed_without_waiting_for_slow_models() -> None:
    app = served(FakeEngine("red", fail_after=0), FakeEngine("red", delay_s=5))
    with listening(app) as address:
        began = time.monotonic()
        with httpx.stream("POST", f"{address}/v1/tasks/vqa", json=VQA | {"stream": True}) as reply:
            assert next(reply.iter_lines()) == "event: reply"
            assert time.monotonic() - began < 2.5


async def test_bug_during_a_stream_is_an_error_event_without_details(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr("serve.router.merge_replies.merge", broken)
    events = frames((await post("/v1/tasks/vqa", VQA | {"stream": True})).text)
    assert events[-1] == (None, "[DONE]") and events[-2][0] == "error"
    assert json.loads(events[-2][1])["error"]["code"] == "internal_error" and "secret" not in events[-2][1]


@pytest.mark.slow
async def test_silent_stream_gets_keep_alive_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "KEEP_ALIVE_S", 0.02)
    app = served(FakeEngine("a b", delay_s=0.1), FakeEngine("a b", delay_s=0.1))
    reply = await post("/v1/tasks/vqa", VQA | {"stream": True}, app)
    assert ": still here\n\n" in reply.text and reply.text.endswith("data: [DONE]\n\n")


async def test_form_with_image_file_is_answered() -> None:
    llava, paligemma = FakeEngine("[0.1, 0.1, 0.5, 0.5]"), FakeEngine("<loc0000><loc0000><loc0512><loc0512> grey cat")
    form = {
        "labels": "grey cat; old dog",
        "models": f"{PALIGEMMA}, {LLAVA}",
        "weights": f'{{"{LLAVA}": 2}}',
        "seed": "",
    }
    reply = await post("/v1/tasks/detect", app=served(llava, paligemma), data=form, files={"image": picture(20, 10)})
    assert reply.status_code == 200, reply.text
    assert reply.json()["image"] == {"width": 20, "height": 10}
    assert paligemma.prompts[0].text == "detect grey cat ; old dog"


async def test_repeated_form_fields_are_a_list_and_may_contain_separators() -> None:
    paligemma = FakeEngine("")
    form = {"labels": ["cat, sleeping", "old dog"], "models": [PALIGEMMA], "temperature": "0.5", "max_tokens": "9"}
    await post("/v1/tasks/detect", app=served(None, paligemma), data=form, files={"image": picture()})
    prompt = paligemma.prompts[0]
    assert prompt.text == "detect cat, sleeping ; old dog"
    assert (prompt.sampling.temperature, prompt.sampling.max_tokens) == (0.5, 9)


async def test_form_can_stream_and_contain_a_data_url() -> None:
    reply = await post("/v1/tasks/vqa", data={**VQA, "stream": "true"}, files={"merge": (None, "vote")})
    assert frames(reply.text)[-1] == (None, "[DONE]")


@pytest.mark.parametrize(
    ("data", "files", "param", "code"),
    [
        ({"question": "q", "foo": "1"}, {"image": picture()}, "foo", "unknown_parameter"),
        ({}, {"image": picture()}, "question", "missing_required_parameter"),
        ({"question": ["a", "b"]}, {"image": picture()}, "question", "invalid_value"),
        ({"question": "q"}, {"picture": picture()}, "picture", "invalid_value"),
        ({"question": "q", "weights": "x"}, {"image": picture()}, "weights", "invalid_value"),
        ({"question": "q", "min_agreement": "nan"}, {"image": picture()}, "min_agreement", "invalid_value"),
        ({"question": "q", "stream": "maybe"}, {"image": picture()}, "stream", "invalid_type"),
        ({"question": "q"}, {"image": b"no image"}, "image", "invalid_image"),
        ({"question": "q"}, {"other": (None, "x")}, "image", "missing_required_parameter"),
        ({"question": "q"}, [("image", picture()), ("image", picture())], "image", "invalid_value"),
        ({"question": "q"}, [("image", picture())] * 3, None, "invalid_request"),
    ],
)
async def test_invalid_form_field_is_named_in_the_error(data: Any, files: Any, param: str | None, code: str) -> None:
    reply = await post("/v1/tasks/vqa", data=data, files=files)
    assert reply.status_code == 400
    fields = error(reply)
    if (param, code) == ("image", "missing_required_parameter"):
        assert fields["param"] in ("image", "other")  # both are wrong: either may be named
    else:
        assert (fields["param"], fields["code"]) == (param, code)
