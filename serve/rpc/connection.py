"""The side that calls: streams over one connection, as async generators."""

import asyncio
import itertools
import time
from collections import deque
from collections.abc import AsyncGenerator
from typing import Any

from serve import tracing
from serve.request_id import REQUEST_ID
from serve.rpc.messages import RENEW_S, Call, Cancel, End, Items, News, Renew
from serve.rpc.peer import Peer

CONNECT_S = 5.0


class Connection(Peer):
    """A way to one Server. standing, leaving: what its last News told; heard: when it last spoke (monotonic)."""

    def __init__(self, token: bytes) -> None:
        super().__init__()
        self.standing: Any = None
        self.leaving = False
        self.heard = time.monotonic()
        self.lost = asyncio.Event()
        self.mark = int.from_bytes(token[:8], "little")  # the same for whoever calls this server
        self._token = token
        self._told = asyncio.Event()
        self._numbers = itertools.count()
        self._streams: dict[int, _Stream] = {}
        self._renewal: asyncio.TimerHandle | None = None

    @classmethod
    async def open(cls, host: str, port: int, token: bytes) -> "Connection":
        """Connected, with the first news there. Raises ConnectionError, TimeoutError or OSError."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(CONNECT_S):
            _, connection = await loop.create_connection(lambda: cls(token), host, port)
            await connection._told.wait()
        if connection.lost.is_set():
            raise ConnectionError("The connection was refused.")
        return connection

    @property
    def load(self) -> int:
        """How many of our streams run there."""
        return len(self._streams)

    def abort(self) -> None:
        """Give up the server and every stream that it still owes, now."""
        if self._transport is not None:
            self._transport.abort()
            self.connection_lost(None)

    async def stream(self, method: str, *arguments: Any, pace_s: float = 0.0) -> AsyncGenerator[Any, None]:
        """What the server's method gives. Leaving early cancels it there.

        Raises what the method raised (ServeError), and ConnectionError where the server went away.
        """
        number, stream = next(self._numbers), _Stream()
        if self.lost.is_set():
            raise ConnectionError("The connection is lost.")
        self._streams[number] = stream
        self.say(Call(number, method, arguments, pace_s, REQUEST_ID.get(), tracing.header()))
        try:
            while True:
                while stream.items:
                    yield stream.items.popleft()
                if stream.over:
                    break
                stream.more.clear()
                await stream.more.wait()
            if stream.error is not None:
                raise stream.error
        finally:
            del self._streams[number]
            if not stream.over:
                self.say(Cancel(number))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert self._transport is not None
        self._transport.write(self._token)
        self._renewal = asyncio.get_running_loop().call_later(RENEW_S, self._renew)

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)  # after `abort` it comes a second time, and finds nothing to do
        if self._renewal is not None:
            self._renewal.cancel()
        self.lost.set()
        self._told.set()
        for stream in self._streams.values():
            stream.finish(ConnectionError("The connection was lost."))

    def _renew(self) -> None:
        self.say(Renew())
        self._renewal = asyncio.get_running_loop().call_later(RENEW_S, self._renew)

    def hear(self, message: Any) -> None:
        self.heard = time.monotonic()
        if isinstance(message, News):
            self.standing, self.leaving = message.standing, message.leaving
            self._told.set()
        elif isinstance(message, Items) and message.number in self._streams:
            self._streams[message.number].add(message.items)
        elif isinstance(message, End) and message.number in self._streams:
            self._streams[message.number].finish(message.error)


class _Stream:
    """What has come of one stream and was not fetched yet."""

    def __init__(self) -> None:
        self.items: deque[Any] = deque()
        self.over = False
        self.error: Exception | None = None
        self.more = asyncio.Event()

    def add(self, items: list[Any]) -> None:
        self.items.extend(items)
        self.more.set()

    def finish(self, error: Exception | None) -> None:
        self.over, self.error = True, error
        self.more.set()
