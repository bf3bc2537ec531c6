"""A server that is being stopped fails /health first, and goes on answering."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import httpx
import pytest
import uvicorn
from served import LLAVA, message, plain
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.args import GatewayArgs
from deployments.server.http_server import HttpServer


@contextlib.asynccontextmanager
async def serving(app: ASGIApp | None = None, **settings: float) -> AsyncIterator[tuple[HttpServer, httpx.AsyncClient]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = HttpServer(app or plain(), "127.0.0.1", port, GatewayArgs(**settings))
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        try:
            yield server, client
        finally:
            await server.stop()


@pytest.mark.slow
async def test_stopping_server_fails_health_and_still_answers() -> None:
    ask = {"model": LLAVA, "messages": [message()]}
    async with serving(leave_s=0.5) as (server, client):
        assert (await client.get("/health")).status_code == 200
        kept = await client.post("/v1/chat/completions", json=ask)
        assert kept.status_code == 200 and "connection" not in kept.headers
        stopping = asyncio.ensure_future(server.stop())
        await asyncio.sleep(0.05)
        health = await client.get("/health")
        assert health.status_code == 503 and health.json()["error"]["code"] == "stopping"
        answered = await client.post("/v1/chat/completions", json=ask)
        assert answered.status_code == 200 and answered.headers["connection"] == "close"
        await stopping
        with contextlib.suppress(httpx.ConnectError):
            await client.get("/health")
            raise AssertionError("the server still takes connections")


def slow(begun: asyncio.Event, work_s: float) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        begun.set()
        await asyncio.sleep(work_s)
        await PlainTextResponse("done")(scope, receive, send)

    return app


async def test_drained_server_gives_running_requests_the_drain_once() -> None:
    begun = asyncio.Event()
    async with serving(slow(begun, 1.6), drain_s=1) as (server, client):
        answer = asyncio.ensure_future(client.get("/"))
        await begun.wait()
        await server.drain()
        assert (await answer).status_code == 500


@pytest.mark.parametrize(("before", "after", "work_s", "status"), [(0, 9, 0.5, 200), (9, 0, 4, 500)])
async def test_stopping_server_finishes_requests_within_the_drain_of_the_latest_config(
    before: float, after: float, work_s: float, status: int
) -> None:
    begun = asyncio.Event()
    async with serving(slow(begun, work_s), drain_s=before) as (server, client):
        server.limit(GatewayArgs(drain_s=after))
        answer = asyncio.ensure_future(client.get("/"))
        await begun.wait()
        await server.stop()
        assert (await answer).status_code == status


async def test_idle_server_wakes_less_often_than_uvicorns(monkeypatch: pytest.MonkeyPatch) -> None:
    wakes: list[int] = []
    tick = uvicorn.Server.on_tick

    async def counted(server: uvicorn.Server, counter: int) -> bool:
        wakes.append(counter)
        return await tick(server, counter)

    monkeypatch.setattr(uvicorn.Server, "on_tick", counted)
    async with serving() as (_, client):
        assert "date" in (await client.get("/health")).headers
        await asyncio.sleep(0.6)
    assert len(wakes) <= 3, "at its start, its end and once a second; uvicorn's looks for its end ten times a second"
