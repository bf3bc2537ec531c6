"""The light inputs of `make hostile`, sent to an app with fake engines: 2xx or 4xx, and no blocked event loop."""

import asyncio
import time
from collections.abc import Iterator
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import pytest
import uvicorn
from served import Server, router
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.server.timed_protocol import TimedHttpProtocol
from loadtest.hostile import faults_in
from loadtest.hostile_inputs import Hostile, inputs
from loadtest.raw_http import Request, Response, exchange, form
from serve.api import loop_lag
from serve.api.app import create_app
from serve.api.authentication import Access
from serve.api.loop_lag import LoopLag
from serve.engines.fake import FakeEngine
from serve.limits import Limits

HELD_S = 0.5
"""Limit on the processor time of one piece of work in the loop, in seconds: ten times what was measured."""
EVERY_S = 0.005
LIGHT = [hostile for hostile in inputs() if hostile.light]
WATCH = "/watch"


class Watched:
    """An app that returns, at WATCH, the longest block of its event loop since the last request there."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._lag = LoopLag(clock=time.thread_time)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] != WATCH:
            await self.app(scope, receive, send)
            return
        worst = self._lag.worst()
        self._lag.stop()
        self._lag = LoopLag(clock=time.thread_time)
        self._lag.start()
        await PlainTextResponse(str(worst))(scope, receive, send)


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[str, int]]:
    engines = FakeEngine("[0.1, 0.1, 0.5, 0.5]"), FakeEngine("<loc0100><loc0100><loc0500><loc0500> cat")
    app = Watched(create_app(router(*engines), access=Access(hosts=frozenset())))
    protocol: Any = partial(TimedHttpProtocol, limits=Limits())
    config = uvicorn.Config(app, http=protocol, ws="none", port=0, log_config=None, lifespan="off")
    with pytest.MonkeyPatch.context() as patch, Server(config).running() as url:
        patch.setattr(loop_lag, "EVERY_S", EVERY_S)
        parts = urlsplit(url)
        assert parts.hostname is not None and parts.port is not None
        yield parts.hostname, parts.port


@pytest.mark.parametrize("hostile", LIGHT, ids=lambda hostile: f"{hostile.kind}: {hostile.name}")
async def test_hostile_input_is_answered_without_blocking_the_loop(address: tuple[str, int], hostile: Hostile) -> None:
    requests = hostile.requests()
    await held(address)
    answers = await asyncio.gather(*(exchange(*address, request, hostile.within_s) for request in requests))
    assert faults_in(hostile, answers) == []
    assert await held(address) < HELD_S
    assert await nothing_is_left(address)


async def held(address: tuple[str, int]) -> float:
    """Return the longest block of the server's loop since the last call, in seconds."""
    await asyncio.sleep(3 * EVERY_S)
    return float((await exchange(*address, Request("GET", WATCH), 30.0)).body)


async def nothing_is_left(address: tuple[str, int]) -> bool:
    """Return whether, within some seconds, only the request for the metrics itself is under way."""
    for _ in range(250):
        metrics = await exchange(*address, Request("GET", "/metrics"), 10.0)
        if b"diptych_requests_running 1.0" in metrics.body and b"diptych_memory_held_bytes 0.0" in metrics.body:
            return True
        await asyncio.sleep(0.02)
    return False


def test_each_kind_has_at_least_three_inputs() -> None:
    kinds = [hostile.kind for hostile in inputs()]
    assert len(set(kinds)) == 10 and min(map(kinds.count, kinds)) >= 3
    assert len({(hostile.kind, hostile.name) for hostile in inputs()}) == len(kinds)


def test_faults_of_an_answer_are_listed() -> None:
    request = form("/v1/tasks/vqa", {"question": "x"})
    plain = Hostile("kind", "name", lambda: [request])
    refused = Hostile("kind", "name", lambda: [request], refused=True, param="image")
    late = Hostile("kind", "name", lambda: [request], late=True)
    shaped = b'{"error": {"message": "No.", "type": "invalid_request_error", "param": "labels", "code": null}}'
    assert faults_in(plain, [Response(200), Response(400, body=shaped), Response(None)]) == []
    assert faults_in(late, [Response(503, body=shaped)]) == []
    assert faults_in(late, [Response(500, body=shaped)]) == ["status 500"]
    assert faults_in(plain, [Response(503, body=shaped)]) == ["status 503"]
    assert faults_in(plain, [Response(503, body=shaped.replace(b"null", b'"parse_error"'))]) == []
    assert faults_in(plain, [Response(0)]) == ["no reply"]
    assert faults_in(plain, [Response(404, body=b"{}")]) == ["an error of another shape"]
    assert faults_in(refused, [Response(200)]) == ["it was not refused"]
    assert faults_in(refused, [Response(400, body=shaped)]) == ["labels was named and not image"]
