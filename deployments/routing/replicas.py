"""Connects to the replicas of one engine (serve/transport), and keeps each connection as long as it is alive.

Ray places, starts, checks, counts and replaces replicas. Requests go over a connection of our own, because a call
through Serve's handle costs this process and the replica several times what the request does (loadtest/NOTES.md).
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from deployments.routing import tls
from serve.transport.connection import Connection

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Address:
    """A replica's port, which a gateway learns through Ray. token: the secret that a connection must send first."""

    host: str
    port: int
    token: bytes


Find = Callable[[Callable[[Address], None]], Awaitable[None]]
"""Searches for replicas: calls its argument with each address as it is learned; not at all where there is none."""
Wake = Callable[[], Coroutine[Any, Any, None]]
"""Makes Serve start a replica of a model that has none, and returns once there is one."""

REFRESH_S = 3.0
"""Seconds between a gateway's searches for more replicas, while it has at least one."""
RETRY_S = 0.5
"""Seconds between searches while there is no replica, or only such as announced their end."""
UNRESPONSIVE_S, GIVE_UP_S = 5.0, 10.0
"""Seconds of silence after which a replica gets no new request, and after which its requests are given up. A busy one
was silent for two seconds, on two cores."""

GONE = (TimeoutError, ConnectionRefusedError, ConnectionResetError)
"""The errors of a connection to a replica that has ended. Others have a cause to mend, as certificates."""


class Replicas:
    """Connections to every replica of an engine, opened as they are found.

    ever_connected: there was a replica before. none_since: the monotonic time at which the last one was available.
    """

    def __init__(self, find: Find, wake: Wake) -> None:
        self.ever_connected = False
        self.none_since = time.monotonic()
        self._find, self._wake = find, wake
        self._connections: dict[Address, Connection] = {}
        self._opening: dict[Address, asyncio.Task[None]] = {}
        self._distrusted: set[Address] = set()
        self._searched = asyncio.Event()
        self._refreshing: asyncio.Task[None] | None = None
        self._searching: asyncio.Task[None] | None = None
        self._waking: asyncio.Task[None] | None = None
        self._closed = False

    async def available(self) -> list[Connection]:
        """Return the responsive replicas; draining ones only while there are no others."""
        if self._closed:  # an app from before asks once more
            return self.responsive()
        if not _runs(self._refreshing):
            self._refreshing = asyncio.get_running_loop().create_task(self._keep_refreshing())
        await self._searched.wait()
        return self.responsive()

    async def refresh(self) -> list[Connection]:
        """Search now, for at most RETRY_S; return the replicas that are available then."""
        await asyncio.wait({self._search()}, timeout=RETRY_S)
        return self.responsive()

    def wake(self) -> None:
        """Make Serve start a replica, unless one is being started."""
        if not self.waking:
            self._waking = asyncio.get_running_loop().create_task(self._wake())

    @property
    def waking(self) -> bool:
        return _runs(self._waking)

    def close(self) -> None:
        """Stop searching, for good. The connections last as long as the replicas do; silent ones are still given up."""
        self._closed = True
        self._searched.set()
        for task in (self._refreshing, self._searching, self._waking, *self._opening.values()):
            if task is not None:
                task.cancel()
        self._refreshing = asyncio.get_running_loop().create_task(self._keep_dropping())

    def responsive(self) -> list[Connection]:
        """Return the replicas that are available, as far as they are known. Searches for none."""
        responsive = [c for c in self._connections.values() if not c.lost.is_set() and c.silent_s < UNRESPONSIVE_S]
        return [connection for connection in responsive if not connection.draining] or responsive

    async def _keep_refreshing(self) -> None:
        while True:
            await asyncio.wait({self._search()}, timeout=RETRY_S)
            self._drop_lost()
            if self.responsive():
                self.none_since = time.monotonic()
            stays = any(not connection.draining for connection in self.responsive())
            await self._sleep_until_left(REFRESH_S if stays else RETRY_S)

    async def _keep_dropping(self) -> None:
        """Drop connections that are lost or silent, until none is left."""
        while self._connections:
            self._drop_lost()
            await self._sleep_until_left(RETRY_S)

    def _search(self) -> asyncio.Task[None]:
        """Return the search that runs, or a new one."""
        if self._searching is None or self._searching.done():
            self._searching = asyncio.get_running_loop().create_task(self._connect_all())
        return self._searching

    async def _connect_all(self) -> None:
        """Connect to new replicas, each in a task of its own: one that hangs delays no other."""
        try:
            await self._find(self._connect)
            await asyncio.gather(*self._opening.values())
        finally:  # a caller that awaits the first search must not wait for ever
            self._searched.set()

    def _connect(self, address: Address) -> None:
        if address not in self._connections and address not in self._opening:
            self._opening[address] = asyncio.get_running_loop().create_task(self._open(address))

    async def _open(self, address: Address) -> None:
        try:
            self._connections[address] = await Connection.open(
                address.host, address.port, address.token, tls.client_context()
            )
            self.ever_connected = True
            self._searched.set()
        except (OSError, ValueError) as error:  # ValueError: half of the settings for TLS
            if not isinstance(error, GONE) and address not in self._distrusted:  # each is complained of once
                self._distrusted.add(address)
                log.warning("no connection to the replica at %s: %s", address.host, error)
        finally:
            del self._opening[address]

    def _drop_lost(self) -> None:
        """Drop lost connections, and abort those that have been silent for GIVE_UP_S."""
        for address, connection in list(self._connections.items()):
            if connection.silent_s > GIVE_UP_S:
                connection.abort()
            if connection.lost.is_set():
                del self._connections[address]

    async def _sleep_until_left(self, seconds: float) -> None:
        """Sleep for `seconds`, or until a replica announces its end or a connection is lost."""
        ends = [each.lost if each.leaving.is_set() else each.leaving for each in self._connections.values()]
        waits = [asyncio.ensure_future(asyncio.sleep(seconds)), *(asyncio.ensure_future(end.wait()) for end in ends)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()


def _runs(task: asyncio.Task[None] | None) -> bool:
    return task is not None and not task.done()
