"""Request limits: removed headers, refused requests and request ids."""

import asyncio
import json
import logging
from typing import Any

import pytest
from served import LLAVA, PALIGEMMA, URL, calling, frames, message, plain, router, served

from serve.api.app import create_app
from serve.api.request_limits import REMOVED_HEADERS
from serve.engines.fake import FakeEngine
from serve.limits import Limits
from serve.tracing import REQUEST_ID

VQA = {"image": URL, "question": "what colour?"}


async def test_headers_that_ray_obeys_are_removed() -> None:
    app = served()
    seen: dict[str, str] = {}

    async def look(scope: Any, receive: Any, send: Any) -> None:
        seen.update({name.decode(): value.decode() for name, value in scope["headers"]})
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    app.mount("/seen", look)
    sent = {name.decode(): "?1" for name in REMOVED_HEADERS}
    async with calling(app) as client:
        await client.get("/seen/", headers={**sent, "x-kept": "1"})
    assert seen["x-kept"] == "1" and not set(sent) & set(seen)


async def test_large_headers_are_refused() -> None:
    async with calling(plain()) as client:
        for more in ({"x-one": "y" * 70_000}, {f"x-{i}": "y" * 100 for i in range(700)}):
            reply = await client.get("/health", headers=more)
            assert (reply.status_code, reply.json()["error"]["code"]) == (431, "headers_too_large")
        assert (await client.get("/health", headers={"x-one": "y" * 60_000})).status_code == 200


async def test_body_that_does_not_arrive_times_out() -> None:
    app = create_app(router(), limits=Limits(body_timeout_s=0.05))
    sent: list[Any] = []
    parts = [{"type": "http.request", "body": b'{"model": ', "more_body": True}]

    async def receive() -> Any:
        return parts.pop() if parts else await asyncio.Event().wait()

    async def send(part: Any) -> None:
        sent.append(part)

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "query_string": b"", "headers": []}
    async with asyncio.timeout(5):
        await app(scope, receive, send)
    assert sent[0]["status"] == 408 and (b"connection", b"close") in sent[0]["headers"]
    assert json.loads(sent[1]["body"])["error"]["code"] == "request_timeout"


@pytest.mark.slow
async def test_response_may_take_longer_than_the_body_timeout() -> None:
    app = create_app(router(FakeEngine("red", delay_s=0.2)), limits=Limits(body_timeout_s=0.05))
    async with calling(app) as client:
        assert (await client.post("/v1/tasks/vqa", json=VQA)).json()["replies"][0]["status"] == "ok"


async def test_request_id_reaches_the_engines() -> None:
    request_ids: list[str] = []

    def say(prompt: Any) -> str:
        request_ids.append(REQUEST_ID.get())
        return "red"

    app = served(FakeEngine(say), FakeEngine(say))
    async with calling(app) as client:
        for stream in (False, True):
            for path, body in (
                ("/v1/tasks/vqa", VQA),
                ("/v1/chat/completions", {"model": "vqa:*", "messages": [message()]}),
                ("/v1/chat/completions", {"model": LLAVA, "messages": [message()]}),
                ("/v1/chat/completions", {"model": PALIGEMMA, "messages": [message()]}),
            ):
                request_ids.clear()
                name = f"mine-{path.count('/')}-{stream}"
                reply = await client.post(path, json={**body, "stream": stream}, headers={"x-request-id": name})
                assert reply.headers["x-request-id"] == name and set(request_ids) == {name}
                if path.endswith("completions") or not stream:
                    first = reply.json() if not stream else json.loads(frames(reply.text)[0][1])
                    assert first["id"].endswith(name)


async def test_concurrent_requests_keep_their_ids() -> None:
    request_ids: dict[str, str] = {}

    def say(prompt: Any) -> str:
        request_ids[prompt.text] = REQUEST_ID.get()
        return "red"

    async with calling(served(FakeEngine(say, delay_s=0.01), FakeEngine(say))) as client:
        await asyncio.gather(
            *(
                client.post("/v1/tasks/vqa", json=VQA | {"question": f"q{i}?"}, headers={"x-request-id": f"id{i}"})
                for i in range(20)
            )
        )
    for text, name in request_ids.items():
        assert f"q{name.removeprefix('id')}?" in text


@pytest.mark.parametrize("stream", [False, True])
async def test_server_error_names_the_request_id(stream: bool, caplog: pytest.LogCaptureFixture) -> None:
    def say(prompt: Any) -> str:
        raise RuntimeError("secret")

    async with calling(served(FakeEngine(say), FakeEngine(say))) as client:
        with caplog.at_level(logging.ERROR):
            reply = await client.post(
                "/v1/tasks/vqa", json=VQA | {"stream": stream}, headers={"x-request-id": "the-one"}
            )
    assert "(request the-one)" in reply.text and "secret" not in reply.text
    assert caplog.text.count("request the-one: model") == 2


async def test_client_error_does_not_name_the_request_id() -> None:
    async with calling(plain()) as client:
        reply = await client.post("/v1/tasks/vqa", json={}, headers={"x-request-id": "the-one"})
    assert reply.status_code == 400 and "the-one" not in reply.text and reply.headers["x-request-id"] == "the-one"


async def test_error_message_is_cut() -> None:
    engine = FakeEngine(fail_start="x" * 50_000)
    failed = router(engine, ready=False)
    await engine_started(failed)
    async with calling(create_app(failed)) as client:
        reply = await client.post("/v1/chat/completions", json={"model": LLAVA, "messages": [message()]})
    assert reply.status_code == 503 and len(reply.text) < 1300 and reply.headers["x-request-id"] in reply.text


async def engine_started(served_router: Any) -> None:
    """Start every model's engine."""
    for worker in served_router.routes.values():
        await worker.start()
