"""The side that calls: streams over one connection, as async generators."""

import asyncio
import hmac
import itertools
import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator
from typing import Any

import numpy as np

from serve import tracing
from serve.errors import ModelError
from serve.media.shared_pixels import SharedPixels
from serve.request_id import CACHE_SALT, REQUEST_ID
from serve.rpc.frames import Unreadable, encode
from serve.rpc.messages import LEASE_S, RENEW_S, Call, Cancel, End, Goodbye, Items, News, Probe, Probed, Renew
from serve.rpc.peer import Peer

CONNECT_S = 5.0


class Connection(Peer):
    """A way to one Server.

    standing: what its last News told. leaving: the connection ends on purpose, now or soon, and no process has died:
    the server said so, or we gave it up. shares_memory: the server can open our shared pixels.
    """

    def __init__(self, token: bytes) -> None:
        super().__init__()
        self.standing: Any = None
        self.leaving = False
        self.shares_memory = False
        self.lost = asyncio.Event()
        self.mark = int.from_bytes(token[:8], "little")  # the same for whoever calls this server
        self._token = token
        self._told, self._probed = asyncio.Event(), asyncio.Event()
        self._probe: SharedPixels | None = None
        self._numbers = itertools.count(1)
        self._streams: dict[int, _Stream] = {}
        self._renewal: asyncio.TimerHandle | None = None
        self._renewed = 0.0

    @classmethod
    async def open(cls, host: str, port: int, token: bytes) -> "Connection":
        """Connect, and wait for the first news. Raises ConnectionError, TimeoutError or OSError."""
        loop = asyncio.get_running_loop()
        connection: Connection | None = None
        try:
            async with asyncio.timeout(CONNECT_S):
                _, connection = await loop.create_connection(lambda: cls(token), host, port)
                await connection._told.wait()
                await connection._probed.wait()
        except BaseException:
            if connection is not None:
                connection.abort()
            raise
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
            self.leaving = True
            self._transport.abort()
            self.connection_lost(None)

    async def stream(self, method: str, *arguments: Any, pace_s: float = 0.0) -> AsyncGenerator[Any, None]:
        """Call the server's method and give what it gives. Leaving early cancels it there.

        Raises what the method raised (ServeError), and ConnectionError where the server went away.
        """
        number, stream = next(self._numbers), _Stream()
        if self.lost.is_set():
            raise ConnectionError("The connection is lost.")
        call = Call(number, method, arguments, pace_s, REQUEST_ID.get(), tracing.header(), CACHE_SALT.get())
        frame = encode(call, number, peer_opens_handles=self.shares_memory)
        self._streams[number] = stream
        self.post(frame, number)
        del frame, call
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
                self._cancel(number)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert self._transport is not None
        self._transport.write(self._token)
        self._ask_whether_memory_is_shared()
        self._renewed = asyncio.get_running_loop().time()
        self._renew_at(self._renewed + RENEW_S)

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)  # after `abort` it comes a second time, and finds nothing to do
        if self._renewal is not None:
            self._renewal.cancel()
        if asyncio.get_running_loop().time() - self._renewed > LEASE_S:
            self.leaving = True  # our own loop stood still, so the server took us for dead
        self._end_probe()
        self.lost.set()
        self._told.set()
        for stream in self._streams.values():
            stream.finish(ConnectionError("The connection was lost."))

    def hear(self, message: Any) -> None:
        if isinstance(message, News):
            self.standing, self.leaving = message.standing, message.leaving or self.leaving
            self._told.set()
        elif isinstance(message, Goodbye):
            self.leaving = True
        elif isinstance(message, Items) and message.number in self._streams:
            self._streams[message.number].add(message.items)
        elif isinstance(message, End) and message.number in self._streams:
            self._streams[message.number].finish(message.error)
        elif isinstance(message, Probed) and self._probe is not None:
            self.shares_memory = hmac.compare_digest(message.read, self._probe.pixels.tobytes())
            self._end_probe()

    def missed(self, message: Unreadable) -> None:
        if message.number == 0:  # nobody knows who waits for it
            self.abort()
        elif message.number in self._streams:
            error = ModelError("What the model said could not be read.", code="internal_error")
            self._streams[message.number].finish(error)
            self._cancel(message.number)

    def _cancel(self, number: int) -> None:
        if self.recall(number):
            self.say(Cancel(number))

    def _renew_at(self, due: float) -> None:
        self._renewal = asyncio.get_running_loop().call_at(due, self._renew, due)

    def _renew(self, due: float) -> None:
        """Say that we listen. Where this comes late our own loop stood still: what it did not hear is not silence."""
        now = asyncio.get_running_loop().time()
        self.heard = min(time.monotonic(), self.heard + (now - due))
        if now - due < RENEW_S:  # else only the next time: the news that the server has cut us off may not be read yet
            self._renewed = now
        self.say(Renew())
        self._renew_at(now + RENEW_S)

    def _ask_whether_memory_is_shared(self) -> None:
        """Only a process of this machine that may open our descriptors can say what is in this memory."""
        try:
            self._probe = SharedPixels.create(4, 4)
        except OSError:  # no descriptor is left, or no memory
            self._probed.set()
            return
        secret = secrets.token_bytes(self._probe.nbytes)
        self._probe.pixels[:] = np.frombuffer(secret, np.uint8).reshape(4, 4, 3)
        self.say(Probe(self._probe.handle()))

    def _end_probe(self) -> None:
        if self._probe is not None:
            self._probe.close()
            self._probe = None
        self._probed.set()


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
        if not self.over:
            self.over, self.error = True, error
            self.more.set()
