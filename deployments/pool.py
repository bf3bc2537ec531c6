"""The replicas of one engine: found through Ray, called past it (serve/rpc), each picture by the one that knows it.

Ray places, starts, checks, counts and replaces them. Requests go over a connection of our own, because a call through
Serve's handle costs this process and the replica several times what the request itself does (loadtest/README.md).
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from typing import Any

import ray.exceptions
import ray.serve.exceptions

from deployments.address import Address
from deployments.args import Engined
from deployments.choice import choose
from serve.errors import ModelError
from serve.rpc.connection import Connection
from serve.worker import ASLEEP, Status

ALONE_S, LOOK_S = 0.5, 3.0
"""How often replicas are looked for: while there is none, and while there is one."""
PATIENCE_S, DESPAIR_S = 5.0, 10.0
"""Silence after which a replica is given nothing new, and after which what it has is given up. One that is only busy
has been silent for two seconds on two cores."""
GONE = (ray.exceptions.RayError, ray.serve.exceptions.RayServeException, ConnectionError, TimeoutError, OSError)


class Pool:
    """Connections to every replica of a deployment.

    entry: how many requests one replica is given at a time, whether a picture stays with one, and whether Serve ends
    the last one where nobody asks.
    """

    def __init__(self, handle: Any, entry: Engined) -> None:
        self._handle = handle
        self._limit = entry.max_ongoing_requests
        self._keeps = entry.keeps_pictures
        self._sleeps = entry.sleeps
        self._connections: dict[Address, Connection] = {}
        self._looked = asyncio.Event()
        self._looker: asyncio.Task[None] | None = None
        self._knock_task: asyncio.Task[None] | None = None
        self._met = False
        self._alone_since: float = time.monotonic()

    async def stream(
        self, model: str, method: str, *arguments: Any, pace_s: float, picture: str | None = None
    ) -> AsyncGenerator[Any, None]:
        """What the replica's method gives. Leaving early stops the replica's work.

        picture: the digest of the one it is about; questions about the same one go to the same replica. Raises what
        the method raised (ServeError), ModelError where no replica is there or it went away.
        """
        connection = await self._chosen(model, picture)
        items = connection.stream(method, *arguments, pace_s=pace_s)
        spoke = False
        try:
            async for item in items:
                spoke = True
                yield item
        except ConnectionError as error:
            raise ModelError(
                f"The process of {model} ended while it was answering; it is started again.", code="engine_dead"
            ) from error
        finally:
            await items.aclose()
        if not spoke:
            raise ModelError(f"{model} ended without a word.", code="engine_dead")

    async def status(self, model: str) -> Status:
        """The best that a replica said of this model, at most some seconds ago."""
        await self._look()
        said = [(connection.heard, connection.standing[model]) for connection in self._live()]
        if not said:
            if self._sleeps and not self._knocking():
                step = ASLEEP
            else:
                step = "starting again: its process ended" if self._met else "starting its process"
            return Status(model, "starting", step, time.monotonic() - self._alone_since)
        order = ("ready", "starting", "failed")
        at, status = min(said, key=lambda pair: order.index(pair[1].state))
        return Status(status.model, status.state, status.step, status.since_s + time.monotonic() - at)

    def _live(self) -> list[Connection]:
        """The replicas that can be asked, those that are leaving left out while there are others."""
        silent = time.monotonic() - PATIENCE_S
        live = [one for one in self._connections.values() if not one.lost.is_set() and one.heard > silent]
        return [one for one in live if not one.leaving] or live

    async def _chosen(self, model: str, picture: str | None) -> Connection:
        await self._look()
        live = self._live()
        if not live and self._sleeps:
            self._knock()
            raise ModelError(f"{model} was asleep and is being started; ask again.", code="model_starting")
        if not live:
            raise ModelError(f"{model} is being started again.", code="model_starting")
        ready = [one for one in live if one.standing[model].state == "ready"]
        chosen = choose(ready or live, picture if self._keeps else None)
        if chosen.load >= self._limit:
            raise ModelError(f"{model} has too many requests waiting.", code="overloaded")
        return chosen

    def _knock(self) -> None:
        """Have a call wait at Serve's handle: of a model that Serve scaled to zero it then starts a replica."""
        if not self._knocking():
            self._knock_task = asyncio.get_running_loop().create_task(self._wait_at_the_door())

    def _knocking(self) -> bool:
        return self._knock_task is not None and not self._knock_task.done()

    async def _wait_at_the_door(self) -> None:
        with contextlib.suppress(*GONE):
            await self._handle.address.remote()

    async def _look(self) -> None:
        """Keep looking for replicas, from the first time that anybody asks for one."""
        if self._looker is None or self._looker.done():
            self._looker = asyncio.get_running_loop().create_task(self._look_forever())
        await self._looked.wait()

    async def _look_forever(self) -> None:
        while True:
            await self._find()
            self._drop()
            self._looked.set()
            if self._live():
                self._alone_since = time.monotonic()
            await self._wait(LOOK_S if self._live() else ALONE_S)

    async def _find(self) -> None:
        """Connect to the replicas that are new."""
        try:
            said = await self._handle.broadcast("address").results_async(timeout_s=PATIENCE_S, return_exceptions=True)
        except GONE:  # there is none
            return
        for address in said:
            if isinstance(address, Address) and address not in self._connections:
                with contextlib.suppress(*GONE):
                    self._connections[address] = await Connection.open(address.host, address.port, address.token)
                    self._met = True

    def _drop(self) -> None:
        """Let go of the replicas that are gone, or have been silent for too long."""
        for address, connection in list(self._connections.items()):
            if time.monotonic() - connection.heard > DESPAIR_S:
                connection.abort()
            if connection.lost.is_set():
                del self._connections[address]

    async def _wait(self, seconds: float) -> None:
        """Or less, when a connection is lost."""
        losing = [asyncio.ensure_future(one.lost.wait()) for one in self._connections.values()]
        waiting = [asyncio.ensure_future(asyncio.sleep(seconds)), *losing]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waiting:
                one.cancel()
