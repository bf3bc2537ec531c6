"""The HTTP routes: tasks as JSON, forms and streams; health; errors; limits; the OpenAPI document."""

import asyncio
import base64
import json
import logging
import re
import socket
import subprocess
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

import httpx
import pytest
from asgi_calls import call
from served import LLAVA, PALIGEMMA, URL, calling, frames, listening, message, picture, plain, router, served, until
from starlette.types import Message

from k8s.checks import rules
from serve.api import pages, responses
from serve.api.app import create_app
from serve.api.chat_completions import task_completion
from serve.api.metrics import Metrics
from serve.engines.base import State
from serve.engines.energy import EnergyMeter
from serve.engines.fake import FakeEngine
from serve.errors import Unavailable
from serve.limits import Limits
from serve.media import decoding
from serve.media.shared_pixels import SharedPixels
from serve.models import MODELS
from serve.router import Router
from serve.router import router as routers
from serve.tasks import TASKS
from serve.tasks.base import Merged
from serve.worker import Worker

VQA = {"image": URL, "question": "what colour?"}


async def post(path: str, body: Any = None, app: Any = None, **more: Any) -> httpx.Response:
    async with calling(app or plain()) as client:
        return await client.post(path, json=body, **more) if body is not None else await client.post(path, **more)


async def get(path: str, app: Any = None, **more: Any) -> httpx.Response:
    async with calling(app or plain()) as client:
        return await client.get(path, **more)


def error(reply: httpx.Response) -> dict[str, Any]:
    body = reply.json()
    assert list(body) == ["error"]
    assert list(body["error"]) == ["message", "type", "param", "code"]
    assert isinstance(body["error"]["message"], str)
    assert body["error"]["code"] is None or isinstance(body["error"]["code"], str)
    fields: dict[str, Any] = body["error"]
    return fields


def port(address: str) -> int:
    return int(address.rpartition(":")[2])


# Tasks, whole


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


# Tasks, streamed


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


async def test_silent_stream_gets_keep_alive_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "KEEP_ALIVE_S", 0.02)
    app = served(FakeEngine("a b", delay_s=0.1), FakeEngine("a b", delay_s=0.1))
    reply = await post("/v1/tasks/vqa", VQA | {"stream": True}, app)
    assert ": still here\n\n" in reply.text and reply.text.endswith("data: [DONE]\n\n")


# Forms


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


# Errors


@pytest.mark.parametrize(
    ("task", "body", "status", "param", "code"),
    [
        ("vqa", {"image": URL}, 400, "question", "missing_required_parameter"),
        ("vqa", {"question": "q"}, 400, "image", "missing_required_parameter"),
        ("vqa", VQA | {"nonsense": 1}, 400, "nonsense", "unknown_parameter"),
        ("vqa", VQA | {"question": 7}, 400, "question", "invalid_type"),
        ("vqa", VQA | {"stream": "true"}, 400, "stream", "invalid_type"),
        ("vqa", VQA | {"temperature": 3}, 400, "temperature", "invalid_value"),
        ("vqa", VQA | {"max_tokens": 1.5}, 400, "max_tokens", "invalid_type"),
        ("vqa", VQA | {"weights": {LLAVA: "a"}}, 400, f"weights.{LLAVA}", "invalid_type"),
        ("vqa", VQA | {"weights": {"nobody": 1}}, 404, "weights", "model_not_found"),
        ("vqa", VQA | {"models": ["nobody"]}, 404, "models", "model_not_found"),
        ("vqa", VQA | {"models": []}, 400, "models", "invalid_value"),
        ("chat", VQA | {"models": [PALIGEMMA]}, 400, "models", "task_not_supported"),
        ("vqa", VQA | {"merge": "dice"}, 400, "merge", "invalid_value"),
        ("vqa", VQA | {"quorum": 3}, 400, "quorum", "invalid_value"),
        ("vqa", VQA | {"min_agreement": 1.1}, 400, "min_agreement", "invalid_value"),
        ("vqa", VQA | {"min_agreement": "0.5"}, 400, "min_agreement", "invalid_type"),
        ("vqa", VQA | {"image": "https://10.0.0.1/cat.png"}, 400, "image", "invalid_image_url"),
        ("vqa", VQA | {"image": "data:image/png;base64,AAAA"}, 400, "image", "invalid_image"),
        ("vqa", VQA | {"image": 7}, 400, "image", "invalid_type"),
        ("detect", {"image": URL, "labels": ["a", 2]}, 400, "labels[1]", "invalid_type"),
        ("detect", {"image": URL, "labels": [" "]}, 400, "labels", "invalid_value"),
        ("detect", {"image": URL, "labels": "cat"}, 400, "labels", "invalid_type"),
        ("vqa", [], 400, None, "invalid_type"),
        ("dance", VQA, 404, "task", "task_not_found"),
    ],
)
async def test_invalid_task_field_is_named_in_the_error(
    task: str, body: Any, status: int, param: str | None, code: str
) -> None:
    reply = await post(f"/v1/tasks/{task}", body)
    fields = error(reply)
    assert (reply.status_code, fields["param"], fields["code"]) == (status, param, code)
    assert fields["type"] == "invalid_request_error"


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000])
async def test_body_that_is_not_json_is_refused(body: bytes) -> None:
    for path in ("/v1/tasks/vqa", "/v1/chat/completions"):
        reply = await post(path, content=body)
        assert (reply.status_code, error(reply)["code"]) == (400, "invalid_json")


async def test_models_to_compare_are_named_in_one_parameter_or_several() -> None:
    together = (await get(f"/v1/compare?models={LLAVA},{PALIGEMMA}")).json()
    assert (await get(f"/v1/compare?models={LLAVA}&models={PALIGEMMA}")).json() == together
    assert together["models"] == [LLAVA, PALIGEMMA]


async def test_error_quotes_little_of_a_long_request() -> None:
    long = "x" * 5000
    for path, body in {
        "/v1/tasks/vqa": VQA | {long: 1},
        "/v1/tasks/detect": {"image": URL, "labels": [long]},
        f"/v1/tasks/{long}": VQA,
        "/v1/chat/completions": {"model": long, "messages": []},
        f"/{long}": VQA,
    }.items():
        reply = await post(path, body)
        assert 400 <= reply.status_code < 500 and len(reply.text) < 1000
    assert len((await get(f"/v1/compare?models={long}")).text) < 1000
    assert len((await get(f"/v1/models/{long}")).text) < 1000


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/web/nowhere.js", 404, "not_found"),
        ("GET", "/web/../app.py", 404, "not_found"),
        ("POST", "/health", 405, "method_not_allowed"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("GET", "/v1/tasks/vqa", 405, "method_not_allowed"),
        ("GET", "/v1/models/nobody", 404, "model_not_found"),
        ("GET", "/v1/compare", 400, "missing_required_parameter"),
        ("GET", "/v1/compare?models=,", 400, "invalid_value"),
        ("GET", "/v1/compare?models=nobody", 404, "model_not_found"),
    ],
)
async def test_routing_error_has_openai_format(method: str, path: str, status: int, code: str) -> None:
    async with calling(plain()) as client:
        reply = await client.request(method, path)
    assert (reply.status_code, error(reply)["code"]) == (status, code)
    assert status != 405 or reply.headers["allow"]


async def test_bug_is_500_without_details_and_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr("serve.router.Router.plan", broken)
    with caplog.at_level(logging.ERROR):
        reply = await post("/v1/tasks/vqa", VQA, headers={"x-request-id": "the-one"})
    assert reply.status_code == 500 and reply.headers["x-request-id"] == "the-one"
    assert error(reply)["type"] == "server_error" and "secret" not in reply.text
    assert "the-one" in caplog.text and "secret" in caplog.text


# Request ids, body limits, disconnects


async def test_plain_request_id_is_kept_and_odd_ids_are_replaced() -> None:
    app = served()
    reply = await post("/v1/tasks/vqa", VQA, app, headers={"x-request-id": "a.b-C_1"})
    assert reply.headers["x-request-id"] == "a.b-C_1" and reply.json()["id"] == "task-a.b-C_1"
    for odd in ("", "a b", "x" * 129, "é".encode()):
        new_id = (await get("/health", app, headers={"x-request-id": odd})).headers["x-request-id"]
        assert new_id != odd and len(new_id) == 32
    assert (await get("/nowhere", app)).headers["x-request-id"]


async def test_large_body_is_refused() -> None:
    app = create_app(router(), limits=Limits(max_body_mb=1000 / 2**20))
    for path in ("/v1/tasks/vqa", "/v1/chat/completions"):
        reply = await post(path, content=b"x" * 1001, app=app)
        assert (reply.status_code, error(reply)["code"]) == (413, "request_too_large")


@pytest.mark.parametrize("path", ["/v1/tasks/vqa", "/v1/chat/completions"])
async def test_image_above_the_configured_megapixels_is_refused(path: str) -> None:
    app = create_app(router(), limits=Limits(max_image_megapixels=0.005))

    async def ask(width: int) -> httpx.Response:
        url = "data:image/png;base64," + base64.b64encode(picture(width, 50)).decode()
        return await post(
            path, {"model": LLAVA, "messages": [message(image=url)]} if "chat" in path else {**VQA, "image": url}, app
        )

    assert (await ask(100)).status_code == 200
    reply = await ask(101)
    assert (reply.status_code, error(reply)["code"]) == (413, "image_too_large")
    assert "101 x 50" in error(reply)["message"] and "0.005 megapixels" in error(reply)["message"]


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=b"])
async def test_endless_chunked_body_is_refused_at_the_limit(kind: str) -> None:
    read = 0

    async def endless() -> Any:
        nonlocal read
        yield b'--b\r\nContent-Disposition: form-data; name="image"; filename="f"\r\n\r\n'
        for _ in range(1000):
            read += 1
            yield b"x" * 100

    app = create_app(router(), limits=Limits(max_body_mb=5000 / 2**20))
    reply = await post("/v1/tasks/vqa", content=endless(), app=app, headers={"content-type": kind})
    assert (reply.status_code, error(reply)["code"]) == (413, "request_too_large")
    assert read < 60


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "more"),
    [("/v1/tasks/vqa", {}), ("/v1/chat/completions", {"model": "vqa:*"}), ("/v1/chat/completions", {"model": LLAVA})],
)
def test_disconnect_stops_the_models(path: str, more: dict[str, Any], stream: bool) -> None:
    engines = [FakeEngine("word " * 1000, delay_s=0.01) for _ in range(2)]
    content = [{"type": "image_url", "image_url": URL}, {"type": "text", "text": "what?"}]
    body = (more | {"messages": [{"role": "user", "content": content}]} if more else dict(VQA)) | {"stream": stream}
    body["max_tokens"] = 1000
    count = 1 if more.get("model") == LLAVA else 2
    with listening(served(*engines)) as address, socket.create_connection(("127.0.0.1", port(address))) as caller:
        data = json.dumps(body).encode()
        caller.sendall(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (path.encode(), len(data)) + data)
        assert until(lambda: sum(engine.speaking for engine in engines) == count, 5)
        if stream:
            assert caller.recv(12) == b"HTTP/1.1 200"
        caller.close()
        assert until(lambda: not any(engine.speaking for engine in engines), 2)
        assert sum(engine.aborted for engine in engines) == count


async def test_disconnect_during_a_blocked_send_closes_the_stream() -> None:
    """Check that a generator which is suspended while an event is being sent gets closed."""
    closed, sent = [], 0

    async def speaking() -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield b"data: x\n\n"
        finally:
            closed.append(True)

    async def receive() -> Message:
        await asyncio.sleep(0.02)
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        nonlocal sent
        sent += 1
        if sent == 4:
            await asyncio.sleep(30)

    stream = await responses.open_stream(receive, speaking())
    await stream({"type": "http"}, receive, send)
    assert closed == [True] and sent == 4


# Service


async def test_health_is_ok() -> None:
    assert (await get("/health")).json() == {"status": "ok"}


async def test_ready_reports_the_state_of_each_model() -> None:
    app_router = router(ready=False)
    app = create_app(app_router)
    llava, paligemma = app_router.routes.values()
    starting = await get("/ready", app)
    assert starting.status_code == 503
    assert starting.json()["status"] == "starting"
    assert starting.json()["models"] == {LLAVA: "starting", PALIGEMMA: "starting"}
    assert starting.json()["details"][LLAVA]["step"] == "waiting to start"
    llava.mark("ready", "ready")  # type: ignore[attr-defined]
    assert (await get("/ready", app)).status_code == 200
    paligemma.mark("failed", "its weights are damaged")  # type: ignore[attr-defined]
    degraded = await get("/ready", app)
    assert (degraded.status_code, degraded.json()["status"]) == (200, "degraded")
    assert list(degraded.json()["details"]) == [PALIGEMMA]
    assert degraded.json()["details"][PALIGEMMA]["step"] == "its weights are damaged"
    llava.mark("failed", "x")  # type: ignore[attr-defined]
    assert (await get("/ready", app)).status_code == 503
    llava.mark("asleep", "it starts when it is asked")  # type: ignore[attr-defined]
    asleep = await get("/ready", app)
    assert asleep.status_code == 200  # else no load balancer would send the request that wakes it
    assert (asleep.json()["status"], asleep.json()["models"]) == ("degraded", {LLAVA: "asleep", PALIGEMMA: "failed"})
    assert list(asleep.json()["details"]) == [LLAVA, PALIGEMMA]


@pytest.mark.parametrize(
    ("states", "status", "code"),
    [
        (("asleep", "asleep"), "ready", 200),
        (("asleep", "starting"), "ready", 200),
        (("ready", "asleep"), "ready", 200),
        (("starting", "failed"), "starting", 503),
        (("failed", "failed"), "degraded", 503),
    ],
)
async def test_sleeping_model_counts_as_available(states: tuple[State, State], status: str, code: int) -> None:
    app_router = router(ready=False)
    for worker, state in zip(app_router.routes.values(), states, strict=True):
        worker.mark(state, "x")  # type: ignore[attr-defined]
    app = create_app(app_router)
    reply = await get("/ready", app)
    assert (reply.status_code, reply.json()["status"]) == (code, status)
    assert tuple(reply.json()["models"].values()) == states
    listed = (await get("/v1/models", app)).json()["data"]
    assert tuple(entry["diptych"]["state"] for entry in listed[:2]) == states
    metrics = (await get("/metrics", app)).text
    for name, state in zip((LLAVA, PALIGEMMA), states, strict=True):
        assert f'diptych_model_state{{model="{name}",state="{state}"}} 1.0' in metrics


async def test_ready_waits_until_required_models_were_loaded_once() -> None:
    app_router = router(ready=False)
    llava, paligemma = app_router.routes.values()
    app = create_app(app_router, awaited={PALIGEMMA})
    llava.mark("ready", "ready")  # type: ignore[attr-defined]
    paligemma.mark("failed", "its weights are damaged")  # type: ignore[attr-defined]
    waiting = await get("/ready", app)
    assert (waiting.status_code, waiting.json()["status"], waiting.json()["awaited"]) == (503, "starting", [PALIGEMMA])
    paligemma.mark("ready", "ready")  # type: ignore[attr-defined]
    assert (await get("/ready", app)).status_code == 200
    paligemma.mark("failed", "its engine died")  # type: ignore[attr-defined]
    lost = await get("/ready", app)
    assert (lost.status_code, lost.json()["status"], lost.json()["awaited"]) == (200, "degraded", [])


async def test_metrics_count_requests_and_replies() -> None:
    app = served(FakeEngine("red"), FakeEngine("red", fail_after=0))
    async with calling(app) as client:
        await client.post("/v1/tasks/vqa", json=VQA)
        await client.get("/a-path-nobody-knows")
        text = (await client.get("/metrics")).text
    assert 'diptych_requests_total{route="/v1/tasks/vqa",status="200"} 1.0' in text
    assert 'diptych_requests_total{route="unmatched",status="404"} 1.0' in text
    assert f'diptych_replies_total{{model="{LLAVA}",status="ok",task="vqa"}} 1.0' in text
    assert f'diptych_replies_total{{model="{PALIGEMMA}",status="error",task="vqa"}} 1.0' in text
    assert 'diptych_request_seconds_bucket{le="+Inf",route="/v1/tasks/vqa"} 1.0' in text
    assert "a-path-nobody-knows" not in text
    assert f'diptych_reply_errors_total{{code="model_error",model="{PALIGEMMA}"}} 1.0' in text
    assert f'diptych_first_word_seconds_count{{model="{LLAVA}",task="vqa"}} 1.0' in text
    assert f'diptych_tokens_total{{kind="output",model="{LLAVA}"}} 1.0' in text
    assert 'diptych_fan_outs_total{outcome="partial",task="vqa"} 1.0' in text
    assert 'diptych_fan_out_models_sum{task="vqa"} 2.0' in text
    assert 'diptych_merge_seconds_count{task="vqa"} 1.0' in text
    assert 'diptych_agreement_sum{task="vqa"} 1.0' in text
    assert "diptych_requests_running 1.0" in text  # the request for the metrics
    assert f'diptych_model_state{{model="{LLAVA}",state="ready"}} 1.0' in text
    assert f'diptych_model_state{{model="{LLAVA}",state="failed"}} 0.0' in text


async def test_energy_is_in_replies_and_metrics_of_a_metered_model_alone() -> None:
    now = iter(range(1000))
    meter = EnergyMeter(lambda: 0.0, lambda: float(next(now)))  # a second at each look
    meter.sample(0.0)
    meter.sample(50.0)
    workers = [Worker(MODELS[LLAVA], FakeEngine("red"), meter=meter), Worker(MODELS[PALIGEMMA], FakeEngine("red"))]
    for worker in workers:
        worker.mark("ready", "ready")
    async with calling(create_app(Router(workers))) as client:
        metered, other = (await client.post("/v1/tasks/vqa", json=VQA)).json()["replies"]
        text = (await client.get("/metrics")).text
    assert metered["energy_j"] == 50.0 and "energy_j" not in other
    assert f'diptych_energy_joules_total{{model="{LLAVA}",task="vqa"}} 50.0' in text
    assert f'diptych_energy_joules_total{{model="{PALIGEMMA}"' not in text


@pytest.mark.skipif(not rules.able(), reason="promtool is not installed: apt-get install prometheus")
async def test_promtool_finds_no_fault_in_the_metrics() -> None:
    app = served(FakeEngine("red"), FakeEngine("red", fail_after=0))
    async with calling(app) as client:
        await client.post("/v1/tasks/vqa", json=VQA)
        text = (await client.get("/metrics")).text
    for page, faults in ((text, 0), (text.replace("diptych_replies_total", "diptych_repliesTotal"), 3)):
        command = ["promtool", "check", "metrics"]
        done = await asyncio.to_thread(subprocess.run, command, input=page, text=True, capture_output=True, timeout=60)
        assert done.returncode == faults, done.stdout + done.stderr
        assert bool(done.stdout + done.stderr) == bool(faults), done.stdout + done.stderr


async def test_metrics_count_unanswered_requests_of_a_model() -> None:
    slow, quick = FakeEngine("red", first_delay_s=30), FakeEngine("red")
    app = served(slow, quick)
    async with calling(app) as client:
        jobs = [asyncio.ensure_future(client.post("/v1/tasks/vqa", json=VQA)) for _ in range(2)]
        chat = {"model": LLAVA, "messages": [message("what colour?", URL)]}
        jobs.append(asyncio.ensure_future(client.post("/v1/chat/completions", json=chat)))
        async with asyncio.timeout(10):
            text = ""
            while slow.speaking < 3 or f'diptych_model_requests{{model="{PALIGEMMA}"}} 0.0' not in text:
                await asyncio.sleep(0.01)
                text = (await client.get("/metrics")).text
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
        after = (await client.get("/metrics")).text
    assert f'diptych_model_requests{{model="{LLAVA}"}} 3.0' in text
    assert f'diptych_model_requests{{model="{LLAVA}"}} 0.0' in after


async def test_new_app_keeps_metrics_and_drops_removed_models() -> None:
    metrics = Metrics()
    ask = {"image": URL, "question": "what?"}
    async with calling(create_app(router(), metrics=metrics)) as client:
        await client.post("/v1/tasks/vqa", json=ask)
        assert f'diptych_model_state{{model="{LLAVA}",state="ready"}} 1.0' in (await client.get("/metrics")).text
    alone = Router([router().routes[PALIGEMMA]])
    async with calling(create_app(alone, metrics=metrics)) as client:
        await client.post("/v1/tasks/vqa", json=ask)
        text = (await client.get("/metrics")).text
    assert 'diptych_requests_total{route="/v1/tasks/vqa",status="200"} 2.0' in text
    assert f'diptych_model_state{{model="{PALIGEMMA}",state="ready"}} 1.0' in text
    assert f'diptych_model_state{{model="{LLAVA}"' not in text


async def test_metrics_count_outcomes_of_fan_outs() -> None:
    app = served(FakeEngine("red", fail_after=0), FakeEngine("red", fail_after=0))
    slow = served(FakeEngine("red"), FakeEngine("red", first_delay_s=9))
    async with calling(app) as client, calling(slow) as other:
        await client.post("/v1/tasks/vqa", json={**VQA, "stream": True})
        await client.post("/v1/tasks/vqa", json={**VQA, "models": ["nobody"]})
        await other.post("/v1/tasks/vqa", json={**VQA, "deadline_s": 0.2})
        failed, partial = (await client.get("/metrics")).text, (await other.get("/metrics")).text
    assert 'diptych_fan_outs_total{outcome="failed",task="vqa"} 1.0' in failed and "partial" not in failed
    assert 'diptych_fan_outs_total{outcome="partial",task="vqa"} 1.0' in partial
    assert f'diptych_reply_errors_total{{code="deadline_exceeded",model="{PALIGEMMA}"}} 1.0' in partial


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("llava", "replied"), [(FakeEngine("red", first_delay_s=9), 0), (FakeEngine("red", fail_after=0), 1)]
)
async def test_metrics_count_a_fan_out_as_left_whatever_had_come(llava: FakeEngine, replied: int, stream: bool) -> None:
    paligemma, metrics = FakeEngine("red", first_delay_s=9), Metrics()
    body = json.dumps({**VQA, "stream": stream}).encode()

    def leaves() -> bool:
        return bool(paligemma.prompts) and metrics.text().count(b"diptych_replies_total{") == replied

    await call(create_app(router(llava, paligemma), metrics=metrics), "/v1/tasks/vqa", [body], leaves=leaves)
    text = metrics.text().decode()
    assert 'diptych_fan_outs_total{outcome="left",task="vqa"} 1.0' in text and 'outcome="failed"' not in text
    assert 'diptych_fan_out_models_sum{task="vqa"} 2.0' in text


async def test_metrics_count_a_fan_out_without_a_merge_as_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def merge_too_late(*_: Any) -> Merged:
        raise Unavailable("The merge of the replies took too long.")

    monkeypatch.setattr(routers, "merge_replies", merge_too_late)
    async with calling(served()) as client:
        reply = await client.post("/v1/tasks/vqa", json=VQA)
        text = (await client.get("/metrics")).text
    assert reply.status_code == 503
    assert 'diptych_fan_outs_total{outcome="failed",task="vqa"} 1.0' in text and 'outcome="left"' not in text


@pytest.mark.slow
@pytest.mark.parametrize(("path", "root"), [("/", "."), ("/docs", "."), ("/compare/", ".."), ("/compare/a-vs-b", "..")])
async def test_pages_link_their_files_by_relative_urls(path: str, root: str) -> None:
    page = await get(path)
    assert page.status_code == 200
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page.text)
    assert addresses and all(address.startswith((f"{root}/", "#")) for address in addresses)
    here = "/" if root == "." else "/compare/"
    for address in addresses:
        if "/web/" in address:
            assert (await get(str(httpx.URL(f"http://diptych{here}").join(address).path))).status_code == 200


@pytest.mark.parametrize(
    "path", ["/", "/docs", "/compare/a-vs-b", "/web/app.js", "/web/style.css", "/scenes/three.png"]
)
async def test_pages_forbid_foreign_scripts_and_styles(path: str) -> None:
    headers = (await get(path)).headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert (
        policy["script-src"] == policy["style-src"] == "'self'" and "unsafe" not in headers["content-security-policy"]
    )
    assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"


async def test_compare_without_names_redirects() -> None:
    answer = await get("/compare", served())
    assert answer.status_code == 307 and answer.headers["location"] == "compare/"


async def test_all_pages_together_are_under_150_kb_and_sent_in_less_than_75() -> None:
    """Count the bytes of all files; tests/pages holds what a first visit unpacks to 100 KB."""
    folders = {"web": pages.WEB, "scenes/small": pages.SCENES / "small"}
    paths = [f"/{name}/{file.name}" for name, folder in folders.items() for file in folder.iterdir() if file.is_file()]
    async with calling(plain()) as client:
        answers = [await client.get(path) for path in paths]
    assert all(answer.status_code == 200 for answer in answers)
    assert sum(answer.num_bytes_downloaded for answer in answers) < 75_000
    assert sum(len(answer.content) for answer in answers) < 150_000


@pytest.mark.parametrize(
    ("path", "model"), [("/v1/tasks/vqa", ""), ("/v1/chat/completions", "vqa"), ("/v1/chat/completions", LLAVA)]
)
async def test_decoding_does_not_block_other_requests(path: str, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    others_went_on = asyncio.Event()
    decode = decoding._decode_file

    async def slowly(*given: Any) -> SharedPixels:
        assert await others_went_on.wait()
        return await decode(*given)

    monkeypatch.setattr(decoding, "_decode_file", slowly)
    url = "data:image/png;base64," + base64.b64encode(picture(1000, 600)).decode()
    body = VQA | {"image": url} if path.endswith("vqa") else {"model": model, "messages": [message(image=url)]}
    async with calling(served()) as client:
        slow = asyncio.create_task(client.post(path, json=body))
        await asyncio.sleep(0.01)
        assert (await client.get("/health")).status_code == 200 and not slow.done()
        others_went_on.set()
        assert (await slow).status_code == 200


# The document


async def test_openapi_document_is_complete() -> None:
    """Look at its parts. The whole is validated in tests/api/test_authentication.py, with keys, where it has most."""
    document = (await get("/openapi.json")).json()
    paths = document["paths"]
    assert set(paths) == {
        "/health",
        "/ready",
        "/metrics",
        "/label-studio/health",
        "/label-studio/predict",
        "/label-studio/setup",
        "/r/{result}",
        "/r/{result}.png",
        "/v1/arena/board",
        "/v1/arena/votes",
        "/v1/evaluations",
        "/v1/evaluations/{name}",
        "/v1/results",
        "/v1/results/{result}",
        "/v1/results/{result}/image",
        *(f"/v1/arena/duels/{task}" for task in TASKS),
        "/v1/models",
        "/v1/models/{name}",
        "/v1/catalog",
        "/v1/compare",
        "/v1/chat/completions",
        "/v1/responses",
        "/v1/files",
        "/v1/files/{file_id}",
        "/v1/files/{file_id}/content",
        "/v1/batches",
        "/v1/batches/{batch_id}",
        "/v1/batches/{batch_id}/cancel",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        *(f"/v1/tasks/{task}" for task in TASKS),
    }
    for path in paths.values():
        for operation in path.values():
            assert "422" not in operation["responses"] and operation["summary"]
            for status in ("400", "404", "405", "500"):
                schema = operation["responses"][status]["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/ErrorBody"}
    schemas = document["components"]["schemas"]
    for name, task in TASKS.items():
        operation = paths[f"/v1/tasks/{name}"]["post"]
        kind = task.request.__name__
        assert operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith(f"/{kind}")
        names = {field.alias or name for name, field in task.request.model_fields.items()}
        assert set(schemas[kind]["properties"]) == names
        assert {"multipart/form-data"} < set(operation["requestBody"]["content"])
        assert {"text/event-stream", "application/json"} == set(operation["responses"]["200"]["content"])
    chat = paths["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert chat == {"$ref": "#/components/schemas/ChatCompletionRequest"}


async def test_openapi_document_behind_a_proxy_names_its_path() -> None:
    app = plain()
    transport = httpx.ASGITransport(app=app, root_path="/vision")
    async with httpx.AsyncClient(transport=transport, base_url="http://diptych") as client:
        assert (await client.get("/vision/openapi.json")).json()["servers"] == [{"url": "/vision"}]
    assert "servers" not in (await get("/openapi.json", app)).json()


async def test_docs_page_is_served() -> None:
    assert (await get("/docs")).status_code == 200
