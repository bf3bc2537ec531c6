"""The replicas of one engine, found through Ray: a connection to each (serve/rpc), kept as long as it speaks.

Ray places, starts, checks, counts and replaces them. Requests go over a connection of our own, because a call through
Serve's handle costs this process and the replica several times what the request itself does (loadtest/README.md).
"""

import asyncio
import contextlib
import sys
import time
from typing import Any

from deployments.address import LOOK_S, Address
from deployments.broadcast import each
from serve.rpc.connection import Connection

ALONE_S = 0.5
"""How often replicas are looked for while there is none."""
PATIENCE_S, DESPAIR_S = 5.0, 10.0
"""Silence after which a replica is given nothing new, and after which what it has is given up. One that is only busy
has been silent for two seconds on two cores."""


def _gone() -> tuple[type[Exception], ...]:
    """Return what is raised where there is no replica, or it cannot be reached."""
    serve = sys.modules.get("ray.serve.exceptions")
    if serve is None:  # the handle is not Ray's, and Ray takes seconds to import
        return ConnectionError, TimeoutError, OSError
    import ray.exceptions

    return ray.exceptions.RayError, serve.RayServeException, ConnectionError, TimeoutError, OSError


class Replicas:
    """Connections to every replica of a deployment. met: there was one before; alone_since: when the last was seen."""

    def __init__(self, handle: Any) -> None:
        self.met = False
        self.alone_since = time.monotonic()
        self._handle = handle
        self._connections: dict[Address, Connection] = {}
        self._opening: dict[Address, asyncio.Task[None]] = {}
        self._looked = asyncio.Event()
        self._looker: asyncio.Task[None] | None = None
        self._finder: asyncio.Task[None] | None = None
        self._knock: asyncio.Task[None] | None = None

    async def live(self) -> list[Connection]:
        """Those that can be asked; the ones that are leaving only while there are no others."""
        await self._look()
        return self._live()

    async def found(self) -> list[Connection]:
        """As live, having looked just now, unless that takes longer than it is worth."""
        await asyncio.wait({self._finding()}, timeout=ALONE_S)
        return self._live()

    def _live(self) -> list[Connection]:
        silent = time.monotonic() - PATIENCE_S
        live = [one for one in self._connections.values() if not one.lost.is_set() and one.heard > silent]
        return [one for one in live if not one.leaving] or live

    def knock(self) -> None:
        """Have a call wait at Serve's handle: of a model that Serve scaled to zero it then starts a replica."""
        if not self.knocking():
            self._knock = asyncio.get_running_loop().create_task(self._wait_at_the_door())

    def knocking(self) -> bool:
        return self._knock is not None and not self._knock.done()

    def close(self) -> None:
        """Look no longer. The connections last as long as the replicas do."""
        for job in (self._looker, self._finder, self._knock, *self._opening.values()):
            if job is not None:
                job.cancel()

    async def _wait_at_the_door(self) -> None:
        with contextlib.suppress(*_gone()):
            await self._handle.address.remote()

    async def _look(self) -> None:
        """Keep looking for replicas, from the first time that anybody asks for one."""
        if self._looker is None or self._looker.done():
            self._looker = asyncio.get_running_loop().create_task(self._look_forever())
        await self._looked.wait()

    async def _look_forever(self) -> None:
        while True:
            await asyncio.wait({self._finding()}, timeout=ALONE_S)
            self._drop()
            if self._live():
                self.alone_since = time.monotonic()
            await self._wait(LOOK_S if self._live() else ALONE_S)

    def _finding(self) -> asyncio.Task[None]:
        """One look, for all who want one now."""
        if self._finder is None or self._finder.done():
            self._finder = asyncio.get_running_loop().create_task(self._find())
        return self._finder

    async def _find(self) -> None:
        """Connect to the replicas that are new, each by itself: one that hangs keeps none of the others waiting."""
        try:
            with contextlib.suppress(*_gone()):  # there is none
                answers = self._handle.broadcast("address").results_async(return_exceptions=True)
                await each(answers, PATIENCE_S, self._meet)
            await asyncio.gather(*self._opening.values())
        finally:  # whoever waits for the first look must not wait for ever
            self._looked.set()

    def _meet(self, answer: Any) -> None:
        if isinstance(answer, Address) and answer not in self._connections and answer not in self._opening:
            self._opening[answer] = asyncio.get_running_loop().create_task(self._open(answer))

    async def _open(self, address: Address) -> None:
        try:
            with contextlib.suppress(*_gone()):
                self._connections[address] = await Connection.open(address.host, address.port, address.token)
                self.met = True
                self._looked.set()
        finally:
            del self._opening[address]

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
