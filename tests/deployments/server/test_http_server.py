"""A gateway that leaves: it says so at /health first, and goes on answering."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import httpx
from served import LLAVA, message, plain

from deployments.args import GatewayArgs
from deployments.server.http_server import HttpServer


@contextlib.asynccontextmanager
async def front(leave_s: float) -> AsyncIterator[tuple[HttpServer, httpx.AsyncClient]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    made = HttpServer(plain(), "127.0.0.1", port, GatewayArgs(leave_s=leave_s))
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        try:
            yield made, client
        finally:
            await made.stop()


async def test_one_that_leaves_says_so_and_answers_all_the_same() -> None:
    ask = {"model": LLAVA, "messages": [message()]}
    async with front(leave_s=0.5) as (going, client):
        assert (await client.get("/health")).status_code == 200
        kept = await client.post("/v1/chat/completions", json=ask)
        assert kept.status_code == 200 and "connection" not in kept.headers
        stopping = asyncio.ensure_future(going.stop())
        await asyncio.sleep(0.05)
        health = await client.get("/health")
        assert health.status_code == 503 and health.json()["error"]["code"] == "stopping"
        answered = await client.post("/v1/chat/completions", json=ask)
        assert answered.status_code == 200 and answered.headers["connection"] == "close"
        await stopping
        with contextlib.suppress(httpx.ConnectError):
            await client.get("/health")
            raise AssertionError("it still takes connections")
