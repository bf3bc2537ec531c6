"""The answering end: a stream for each call, and one frame for the items of all streams in a turn of the event loop."""

import asyncio
import hmac
import logging
import secrets
import ssl
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping
from contextlib import aclosing
from typing import Any

from serve import tracing
from serve.errors import ModelError, ServeError
from serve.media.shared_pixels import SharedPixels
from serve.tracing import CACHE_SALT, REQUEST_ID
from serve.transport.messages import (
    LEASE_S,
    TOKEN_BYTES,
    TOKEN_S,
    Call,
    Cancel,
    End,
    Goodbye,
    Heartbeat,
    Items,
    Probe,
    ProbeReply,
    Refused,
)
from serve.transport.peer import Peer, Unreadable

log = logging.getLogger(__name__)

HEARTBEAT_S = 1.0
Method = Callable[..., AsyncGenerator[Any, None]]
Join = Callable[[list[Any]], list[Any]]


class StreamServer:
    """Answers calls of `methods` on one port, from callers that know its token.

    When a caller disconnects, its streams are cancelled. statuses: sent in each Heartbeat. join: merges consecutive
    items into fewer, where a call allows it. on_abandoned: called with the number of streams cancelled because their
    caller disconnected. simple: types of items that can always be unpickled; items of several streams may share a
    frame.
    """

    def __init__(
        self,
        methods: Mapping[str, Method],
        statuses: Callable[[], Awaitable[Any]],
        join: Join = lambda items: items,
        on_abandoned: Callable[[int], None] = lambda streams: None,
        simple: Collection[type] = (),
    ) -> None:
        self.methods = methods
        self.statuses = statuses
        self.join = join
        self.on_abandoned = on_abandoned
        self.simple = frozenset(simple)
        self.token = secrets.token_bytes(TOKEN_BYTES)
        self.sessions: set[Session] = set()
        self.prompts = 0
        """Number of prompts that are being answered, as all callers count them."""
        self.draining = False
        self._listening: asyncio.Server | None = None
        self._stopped = False
        self._beating: asyncio.Task[None] | None = None

    async def start(self, host: str, tls: ssl.SSLContext | None = None) -> int:
        """Listen on a free port, with TLS where that is given, and return it."""
        loop = asyncio.get_running_loop()
        self._listening = await loop.create_server(lambda: Session(self), host, 0, ssl=tls)
        self._beating = loop.create_task(self._keep_beating())
        return int(self._listening.sockets[0].getsockname()[1])

    async def drain(self, seconds: float, leave_s: float = 0.0) -> None:
        """Announce the end to callers, and let running streams finish, for at most `seconds`.

        leave_s: the part of it in which callers look for another server; new calls are still taken.
        """
        self.draining = True
        await self.send_heartbeat()
        clock = asyncio.get_running_loop().time
        began = clock()
        while clock() < began + seconds and (self.answering() or clock() < began + leave_s):
            await asyncio.sleep(0.05)

    async def stop(self) -> None:
        """Close all connections, which cancels running streams."""
        self._stopped = True
        if self._beating is not None:
            self._beating.cancel()
        if self._listening is not None:
            self._listening.close()
        for session in list(self.sessions):
            session.send(Goodbye())
            session.close()

    def caller_lost(self, streams: int) -> None:
        """Report streams that were cancelled with their connection."""
        if streams and not self._stopped:
            self.on_abandoned(streams)

    def answering(self) -> int:
        """Return the number of running streams."""
        return sum(len(session.jobs) for session in self.sessions)

    async def send_heartbeat(self) -> None:
        """Send a Heartbeat to every caller now."""
        heartbeat = Heartbeat(await self.statuses(), self.draining, self.prompts)
        for session in self.sessions:
            if not session.congested:  # a caller that does not read gets the next one once it does
                session.send(heartbeat)

    async def _keep_beating(self) -> None:
        while True:
            due = time.monotonic() + HEARTBEAT_S
            await asyncio.sleep(HEARTBEAT_S)
            stood_s = max(0.0, time.monotonic() - due)
            for session in list(self.sessions):
                session.check_lease(stood_s)
            await self.send_heartbeat()


class Session(Peer):
    """A caller's connection. Nothing that it sends is unpickled before the token."""

    def __init__(self, server: StreamServer) -> None:
        super().__init__()
        self.server = server
        self.jobs: dict[int, asyncio.Task[None]] = {}
        self._presented = b""
        self._token_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._token_timer = asyncio.get_running_loop().call_later(TOKEN_S, self.close)

    def data_received(self, data: bytes) -> None:
        if len(self._presented) < TOKEN_BYTES:
            missing = TOKEN_BYTES - len(self._presented)
            self._presented, data = self._presented + data[:missing], data[missing:]
            if len(self._presented) < TOKEN_BYTES:
                return
            if not hmac.compare_digest(self._presented, self.server.token):
                self.close()
                return
            self._authenticated()
        super().data_received(data)

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._cancel_token_timer()
        self.server.sessions.discard(self)
        self.server.caller_lost(len(self.jobs))
        for job in self.jobs.values():
            job.cancel()

    def check_lease(self, stood_s: float = 0.0) -> None:
        """Disconnect a caller that was silent for LEASE_S. stood_s: as in `excuse`."""
        self.excuse(stood_s)
        if time.monotonic() - self.last_heard > LEASE_S and self._transport is not None:
            log.warning("disconnecting a silent caller, which cancels %d streams", len(self.jobs))
            self.send(Goodbye())
            self._flush()  # it may be alive still, and must not take this for a crash
            self._transport.abort()

    def on_message(self, message: Any) -> None:
        if isinstance(message, Call):
            if message.room is not None:
                if not message.room.fits(self.server.prompts):
                    return self.send(End(message.number, Refused("The model's process has no room left.")))
                self.server.prompts += message.room.prompts
            job = asyncio.get_running_loop().create_task(self._answer(message))
            self.jobs[message.number] = job
            job.add_done_callback(lambda done: self._done(message, done))
        elif isinstance(message, Cancel):
            self._reader.forget(message.number)
            if message.number in self.jobs:
                self.jobs[message.number].cancel()
        elif isinstance(message, Probe):
            self.send(ProbeReply(_read(message)))

    def on_unreadable(self, message: Unreadable) -> None:
        error = message.error
        if not isinstance(error, ServeError):
            error = ModelError("The request could not be read by the model's process.", code="internal_error")
        self.send_alone(End(message.number, error), message.number)

    async def _answer(self, call: Call) -> None:
        REQUEST_ID.set(call.request_id)  # set for this task and those that it starts
        CACHE_SALT.set(call.salt)
        coalescer = _Coalescer(self, call)
        with tracing.begin(call.method, "server", call.trace) as span:
            span.make_current()
            try:
                async with aclosing(self.server.methods[call.method](*call.arguments)) as items:
                    async for item in items:
                        coalescer.add(item)
                        await self.wait_until_writable()
            finally:
                coalescer.flush()

    def _done(self, call: Call, job: asyncio.Task[None]) -> None:
        del self.jobs[call.number]
        if call.room is not None:
            self.server.prompts -= call.room.prompts
        if job.cancelled():
            return
        error = job.exception()
        if error is not None and not isinstance(error, ServeError):
            REQUEST_ID.set(call.request_id)  # set for this callback: logs read it
            log.error("request %s: %s failed", call.request_id, call.method, exc_info=error)
            error = ModelError("The model failed unexpectedly.", code="internal_error")
        if error is None:
            self.send(End(call.number))
        else:
            self.send_alone(End(call.number, error), call.number)

    def _authenticated(self) -> None:
        self._cancel_token_timer()
        self.server.sessions.add(self)
        asyncio.get_running_loop().create_task(self.server.send_heartbeat())

    def _cancel_token_timer(self) -> None:
        if self._token_timer is not None:
            self._token_timer.cancel()


class _Coalescer:
    """Sends a stream's items: at once, or joined where the last ones were sent less than the call's pace ago."""

    def __init__(self, session: Session, call: Call) -> None:
        self.session = session
        self.call = call
        self.loop = asyncio.get_running_loop()
        self.items: list[Any] = []
        self.due = 0.0
        self.timer: asyncio.TimerHandle | None = None

    def add(self, item: Any) -> None:
        self.items.append(item)
        if self.loop.time() >= self.due:
            self.flush()
        elif self.timer is None:
            self.timer = self.loop.call_at(self.due, self.flush)

    def flush(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self.items:
            items, self.items = self.items, []
            message = Items(self.call.number, self.session.server.join(items))
            if all(type(item) in self.session.server.simple for item in message.items):
                self.session.send(message)
            else:
                self.session.send_alone(message, message.number)
            self.due = self.loop.time() + self.call.pace_s


def _read(probe: Probe) -> bytes:
    """Return the bytes of the probe's pixels; empty where they cannot be read here."""
    try:
        return SharedPixels.open(probe.pixels).pixels.tobytes()
    except ServeError:
        return b""
