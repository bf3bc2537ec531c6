"""The way to one model in another process: a Route over a Serve handle. A LoRA adapter goes by its base's handle."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from typing import Any

import ray.exceptions
import ray.serve.exceptions

from serve.engines.base import Piece, Prompt
from serve.errors import ModelError, ServeError
from serve.models.base import Model
from serve.tasks.base import Delta, Reply, Request
from serve.worker import Status

PERIOD_S = 1.0
PATIENCE_S = 5.0  # a replica that says nothing for so long is lost; a busy one on two cores has been silent for two
GONE = (ray.exceptions.RayError, ray.serve.exceptions.RayServeException, ConnectionError)


class Remote:
    """Knows whether anybody is there: Serve would let a request wait for a replica that is still being replaced."""

    def __init__(self, model: Model, handle: Any) -> None:
        self.model = model
        self._handle = handle
        self._streams = handle.options(stream=True)
        self._heard = asyncio.Event()
        self._lost = asyncio.Event()
        self._watcher: asyncio.Task[None] | None = None
        self._said: tuple[float, Status] | None = None
        self._lost_since = time.monotonic()

    async def answer(self, task: str, request: Request) -> AsyncGenerator[Delta | Reply, None]:
        """The replica's events. Leaving early stops the replica's work."""
        async with contextlib.aclosing(
            self._listen(lambda: self._streams.answer.remote(task, request, self.model.name))
        ) as events:
            async for event in events:
                yield event

    async def speak(self, prompt: Prompt) -> AsyncGenerator[Piece, None]:
        """The replica's pieces. Leaving early stops the replica's work."""
        async with contextlib.aclosing(
            self._listen(lambda: self._streams.speak.remote(prompt, self.model.name))
        ) as pieces:
            async for piece in pieces:
                yield piece

    async def status(self) -> Status:
        """What the replica said last, at most a second or so ago."""
        await self._watch()
        if self._said is None or self._lost.is_set():
            step = "starting its process" if self._said is None else "starting again: its process ended"
            return Status(self.model.name, "starting", step, time.monotonic() - self._lost_since)
        at, status = self._said
        return Status(status.model, status.state, status.step, status.since_s + time.monotonic() - at)

    async def _listen(self, call: Any) -> AsyncGenerator[Any, None]:
        await self._watch()
        if self._lost.is_set():
            raise self._not_there()
        response = call()
        items = aiter(response)
        try:
            yield await self._first(items)
            async for item in items:
                yield item
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, ServeError):
                raise error.cause from None
            raise
        except ray.serve.exceptions.BackPressureError as error:
            raise ModelError(f"{self.model.name} has too many requests waiting.", code="overloaded") from error
        except GONE as error:
            raise ModelError(
                f"The process of {self.model.name} ended while it was answering; it is started again.",
                code="engine_dead",
            ) from error
        except StopAsyncIteration:
            raise ModelError(f"{self.model.name} ended without a word.", code="engine_dead") from None
        finally:
            response.cancel()  # cancelling our own task would not stop the replica

    async def _first(self, items: Any) -> Any:
        """The first item, unless the replica is lost before it: afterwards Ray itself tells of its death."""
        item, lost = asyncio.ensure_future(anext(items)), asyncio.ensure_future(self._lost.wait())
        try:
            await asyncio.wait({item, lost}, return_when=asyncio.FIRST_COMPLETED)
            if not item.done():
                raise self._not_there()
            return await item
        finally:
            for waiting in (item, lost):
                waiting.cancel()
            await asyncio.gather(item, lost, return_exceptions=True)

    async def _watch(self) -> None:
        """Keep asking how the replica is, from the first time that anybody wants to know."""
        if self._watcher is None or self._watcher.done():
            self._watcher = asyncio.get_running_loop().create_task(self._ask_forever())
        await self._heard.wait()

    async def _ask_forever(self) -> None:
        while True:
            try:
                self._said = (
                    time.monotonic(),
                    await asyncio.wait_for(self._handle.status.remote(self.model.name), PATIENCE_S),
                )
                self._lost.clear()
            except (TimeoutError, ServeError, *GONE):
                if not self._lost.is_set():
                    self._lost_since = time.monotonic()
                    self._lost.set()
            self._heard.set()
            await asyncio.sleep(PERIOD_S)

    def _not_there(self) -> ModelError:
        return ModelError(f"{self.model.name} is being started again.", code="model_starting")
