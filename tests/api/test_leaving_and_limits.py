"""Request ids, limits of a body, and clients that leave."""

import asyncio
import base64
import json
import socket
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest
from http_calls import VQA, error, get, post
from served import LLAVA, URL, listening, message, picture, router, served, until
from starlette.types import Message

from serve.api import responses
from serve.api.app import create_app
from serve.engines.fake import FakeEngine
from serve.limits import Limits


def port(address: str) -> int:
    return int(address.rpartition(":")[2])


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
