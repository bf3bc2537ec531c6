"""An app for tests: the toy models with fake engines, called in process or on loopback."""

import asyncio
import base64
import contextlib
import functools
import io
import socket
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import PIL.Image
import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from serve.api.app import create_app
from serve.engines.base import Wakes
from serve.engines.fake import FakeEngine
from serve.models import MODELS
from serve.router import Router
from serve.tasks.reply import Delta, Reply, Waiting
from serve.tasks.request import Request
from serve.worker import Worker

LLAVA, PALIGEMMA = "toy-llava", "toy-paligemma"


def picture(width: int = 64, height: int = 48, format: str = "PNG") -> bytes:
    out = io.BytesIO()
    PIL.Image.new("RGB", (width, height), "red").save(out, format)
    return out.getvalue()


URL = "data:image/png;base64," + base64.b64encode(picture()).decode()


def router(llava: FakeEngine | None = None, paligemma: FakeEngine | None = None, *, ready: bool = True) -> Router:
    """Return a router with the two toy models."""
    engines = {LLAVA: llava or FakeEngine("red"), PALIGEMMA: paligemma or FakeEngine("red")}
    workers = [Worker(MODELS[name], engine) for name, engine in engines.items()]
    for worker in workers if ready else []:
        worker.mark("ready", "ready")
    return Router(workers)


def served(llava: FakeEngine | None = None, paligemma: FakeEngine | None = None, **options: Any) -> FastAPI:
    """Return an app for `router(llava, paligemma, **options)`; `create_app(router(), limits=...)` has limits."""
    return create_app(router(llava, paligemma, **options))


class WaitingWorker(Worker):
    """A worker that says twice what it waits for before it answers, as a sleeping model of a group does."""

    async def answer(self, task: str, request: Request) -> AsyncGenerator[Waiting | Delta | Reply, None]:
        for notice in ("it waits for the place of b", "it is being woken"):
            yield Waiting(self.name, notice)
            await asyncio.sleep(0.01)
        async with contextlib.aclosing(super().answer(task, request)) as events:
            async for event in events:
                yield event


def half_asleep() -> FastAPI:
    """Return an app with a model that sleeps first, and one that is awake."""
    asleep = WaitingWorker(MODELS[LLAVA], FakeEngine("red"))
    asleep.mark("asleep", "it wakes when it is asked")
    asleep.wakes = Wakes(3, 1.25)
    awake = Worker(MODELS[PALIGEMMA], FakeEngine("red"))
    awake.mark("ready", "ready")
    return create_app(Router([asleep, awake]))


@functools.cache
def plain() -> FastAPI:
    """Return an app that tests share where they only look at responses."""
    return served()


@contextlib.asynccontextmanager
async def calling(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client that calls the app without a socket. Streams arrive whole; bugs become 500s."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://diptych") as client:
        yield client


class Server(uvicorn.Server):
    """A uvicorn server in a thread of this process, which checks for its end more often than ten times a second."""

    async def main_loop(self) -> None:
        await self.on_tick(0)
        while not self.should_exit:
            await asyncio.sleep(0.005)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for listener in self.servers:
            listener.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        while self.server_state.connections or self.server_state.tasks:
            await asyncio.sleep(0.005)
        for listener in self.servers:
            await listener.wait_closed()
        await self.lifespan.shutdown()

    @contextlib.contextmanager
    def running(self) -> Iterator[str]:
        thread = threading.Thread(target=self.run)
        thread.start()
        try:
            while not self.started:
                if not thread.is_alive():
                    raise RuntimeError("the server did not start")
                threading.Event().wait(0.005)
            port = self.servers[0].sockets[0].getsockname()[1]
            yield f"http://127.0.0.1:{port}"
        finally:
            self.should_exit = True
            thread.join()


def listening(app: ASGIApp) -> contextlib.AbstractContextManager[str]:
    """Serve the app on a loopback port. The context's value is the URL."""
    return Server(uvicorn.Config(app, port=0, log_level="critical", lifespan="off")).running()


def until(condition: Callable[[], bool], seconds: float = 2.0) -> bool:
    """Wait for the condition; return whether it became true in time."""
    for _ in range(int(seconds / 0.005)):
        if condition():
            return True
        threading.Event().wait(0.005)
    return condition()


def frames(text: str) -> list[tuple[str | None, str]]:
    """Return (event, data) of each server-sent event in a stream's text."""
    events = []
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if lines:
            events.append((lines.get("event"), lines["data"]))
    return events


def message(text: str | None = "what?", image: str | None = URL) -> dict[str, Any]:
    """Return a user message in OpenAI's format."""
    parts: list[dict[str, Any]] = []
    if image is not None:
        parts.append({"type": "image_url", "image_url": {"url": image}})
    if text is not None:
        parts.append({"type": "text", "text": text})
    return {"role": "user", "content": parts}
