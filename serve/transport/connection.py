"""The calling end: each call is a stream over one connection, as an async generator."""

import asyncio
import hmac
import itertools
import math
import secrets
import ssl
import time
from collections import deque
from collections.abc import AsyncGenerator
from typing import Any

import numpy as np

from serve import tracing
from serve.errors import ModelError
from serve.media.shared_pixels import SharedPixels
from serve.tracing import CACHE_SALT, REQUEST_ID
from serve.transport.messages import (
    KEEP_ALIVE_S,
    LEASE_S,
    Call,
    Cancel,
    End,
    Goodbye,
    Heartbeat,
    Items,
    KeepAlive,
    Probe,
    ProbeReply,
    Room,
)
from serve.transport.peer import Peer, Unreadable, encode_frame

CONNECT_S = 5.0


class Connection(Peer):
    """A connection to one StreamServer.

    statuses: from the last Heartbeat. others: the prompts of other callers that the server was answering then.
    draining: the connection ends on purpose, now or soon: the server announced it, or we gave the server up.
    leaving: set once it was announced, or the connection is lost. shares_memory: the server can open our shared pixels.
    server_id: the same number for every caller of this server, below 2^64.
    """

    def __init__(self, token: bytes) -> None:
        super().__init__()
        self.statuses: Any = None
        self.others = 0
        self.draining = False
        self.shares_memory = False
        self.lost, self.leaving = asyncio.Event(), asyncio.Event()
        self.server_id = int.from_bytes(token[:8], "little")
        self._token = token
        self._greeted, self._probe_done = asyncio.Event(), asyncio.Event()
        self._probe: SharedPixels | None = None
        self._numbers = itertools.count(1)
        self._streams: dict[int, _Stream] = {}
        self._keep_alive_timer: asyncio.TimerHandle | None = None
        self._keep_alive_due = math.inf  # a monotonic time
        self._last_keep_alive = 0.0

    @classmethod
    async def open(cls, host: str, port: int, token: bytes, tls: ssl.SSLContext | None = None) -> "Connection":
        """Connect, with TLS where that is given, and wait for the first heartbeat.

        Raises ConnectionError, TimeoutError or OSError.
        """
        loop = asyncio.get_running_loop()
        connection: Connection | None = None
        try:
            async with asyncio.timeout(CONNECT_S):
                _, connection = await loop.create_connection(lambda: cls(token), host, port, ssl=tls)
                await connection._greeted.wait()
                await connection._probe_done.wait()
        except BaseException:
            if connection is not None:
                connection.abort()
            raise
        if connection.lost.is_set():
            why = "" if tls is None else " Our certificate may have expired, or be of another authority."
            raise ConnectionError(f"The connection was refused.{why}")
        return connection

    @property
    def load(self) -> int:
        """Number of running streams."""
        return len(self._streams)

    @property
    def silent_s(self) -> float:
        """Seconds since the last byte was received, without those in which our own loop was blocked or our process
        stopped: what came in them was not read yet."""
        now = time.monotonic()
        return now - self.last_heard - max(0.0, now - self._keep_alive_due)

    def abort(self) -> None:
        """Disconnect at once; running streams fail."""
        if self._transport is not None:
            self.draining = True
            self._transport.abort()
            self.connection_lost(None)

    async def stream(
        self, method: str, *arguments: Any, pace_s: float = 0.0, room: Room | None = None
    ) -> AsyncGenerator[Any, None]:
        """Call a method of the server and yield its items. Closing early cancels the call there.

        Raises what the method raised (ServeError), Refused where the server has no `room` for it, and ConnectionError
        where the connection is lost.
        """
        number, stream = next(self._numbers), _Stream(0 if room is None else room.prompts)
        if self.lost.is_set():
            raise ConnectionError("The connection is lost.")
        call = Call(number, method, arguments, pace_s, REQUEST_ID.get(), tracing.traceparent(), CACHE_SALT.get(), room)
        frame = encode_frame(call, number, peer_opens_handles=self.shares_memory)
        self._streams[number] = stream
        self.send_large(frame, number)
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
        self._probe_shared_memory()
        self._last_keep_alive = asyncio.get_running_loop().time()
        self._schedule_keep_alive(self._last_keep_alive + KEEP_ALIVE_S)

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)  # called a second time after `abort`, with nothing left to do
        if self._keep_alive_timer is not None:
            self._keep_alive_timer.cancel()
        if asyncio.get_running_loop().time() - self._last_keep_alive > LEASE_S:
            self.draining = True  # our own loop was blocked, so the server took us for dead
        self._close_probe()
        self.lost.set()
        self.leaving.set()
        self._greeted.set()
        for stream in self._streams.values():
            stream.finish(ConnectionError("The connection was lost."))

    def on_message(self, message: Any) -> None:
        if isinstance(message, Heartbeat):
            self.statuses, self.draining = message.statuses, message.draining or self.draining
            if self.draining:
                self.leaving.set()
            self.others = max(0, message.prompts - sum(stream.prompts for stream in self._streams.values()))
            self._greeted.set()
        elif isinstance(message, Goodbye):
            self.draining = True
        elif isinstance(message, Items) and message.number in self._streams:
            self._streams[message.number].add(message.items)
        elif isinstance(message, End) and message.number in self._streams:
            self._streams[message.number].finish(message.error)
        elif isinstance(message, ProbeReply) and self._probe is not None:
            self.shares_memory = hmac.compare_digest(message.read, self._probe.pixels.tobytes())
            self._close_probe()

    def on_unreadable(self, message: Unreadable) -> None:
        if message.number == 0:  # its stream is unknown
            self.abort()
        elif message.number in self._streams:
            error = ModelError("What the model said could not be read.", code="internal_error")
            self._streams[message.number].finish(error)
            self._cancel(message.number)

    def _cancel(self, number: int) -> None:
        if self.withdraw(number):
            self.send(Cancel(number))

    def _schedule_keep_alive(self, due: float) -> None:
        loop = asyncio.get_running_loop()
        self._keep_alive_due = time.monotonic() + due - loop.time()
        self._keep_alive_timer = loop.call_at(due, self._send_keep_alive, due)

    def _send_keep_alive(self, due: float) -> None:
        """Send a KeepAlive. Where this runs late, our own loop was blocked: that time does not count as silence."""
        now = asyncio.get_running_loop().time()
        self.excuse(now - due)
        if now - due < KEEP_ALIVE_S:  # else next time: the server may have cut us off, which is not read yet
            self._last_keep_alive = now
        self.send(KeepAlive())
        self._schedule_keep_alive(now + KEEP_ALIVE_S)

    def _probe_shared_memory(self) -> None:
        """Send random pixels by handle: only a process of this machine that may open our descriptors can read them."""
        try:
            self._probe = SharedPixels.create(4, 4)
        except OSError:  # no descriptor is left, or no memory
            self._probe_done.set()
            return
        secret = secrets.token_bytes(self._probe.nbytes)
        self._probe.pixels[:] = np.frombuffer(secret, np.uint8).reshape(4, 4, 3)
        self.send(Probe(self._probe.handle()))

    def _close_probe(self) -> None:
        if self._probe is not None:
            self._probe.close()
            self._probe = None
        self._probe_done.set()


class _Stream:
    """A stream's received items that were not yet yielded. prompts: what the server counts it as."""

    def __init__(self, prompts: int) -> None:
        self.prompts = prompts
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
