"""The side that answers: a stream for each call, and one frame for what all streams say in one turn of the loop."""

import asyncio
import hmac
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping
from contextlib import aclosing
from typing import Any

from serve import tracing
from serve.errors import ModelError, ServeError
from serve.media.shared_pixels import SharedPixels
from serve.request_id import CACHE_SALT, REQUEST_ID
from serve.rpc.frames import Unreadable
from serve.rpc.messages import (
    LEASE_S,
    TOKEN_BYTES,
    TOKEN_S,
    Call,
    Cancel,
    End,
    Goodbye,
    Items,
    News,
    Probe,
    Probed,
)
from serve.rpc.peer import Peer

log = logging.getLogger(__name__)

NEWS_S = 1.0
Method = Callable[..., AsyncGenerator[Any, None]]
Join = Callable[[list[Any]], list[Any]]


class Server:
    """Answers calls of `methods` on one port, for those who know its token.

    A caller that goes away takes its streams with it: nothing is spoken for nobody. standing: what News tell. join:
    makes fewer items of some that came in a row, where a call allows it. simple: types of items that can always be
    unpickled, so that those of several streams may share a frame. orphaned: told how many streams were ended
    because their caller had gone.
    """

    def __init__(
        self,
        methods: Mapping[str, Method],
        standing: Callable[[], Awaitable[Any]],
        join: Join = lambda items: items,
        orphaned: Callable[[int], None] = lambda streams: None,
        simple: Collection[type] = (),
    ) -> None:
        self.methods = methods
        self.standing = standing
        self.join = join
        self.orphaned = orphaned
        self.simple = frozenset(simple)
        self.token = secrets.token_bytes(TOKEN_BYTES)
        self.sessions: set[Session] = set()
        self.leaving = False
        self._listening: asyncio.Server | None = None
        self._stopped = False
        self._telling: asyncio.Task[None] | None = None

    async def start(self, host: str) -> int:
        """Listen; gives the port."""
        loop = asyncio.get_running_loop()
        self._listening = await loop.create_server(lambda: Session(self), host, 0)
        self._telling = loop.create_task(self._tell_forever())
        return int(self._listening.sockets[0].getsockname()[1])

    async def drain(self, seconds: float, leave_s: float = 0.0) -> None:
        """Tell callers to go elsewhere, and give the streams that run so long to end. leave_s: what callers are given
        of it to find another server, in which calls are taken still."""
        self.leaving = True
        await self.tell()
        clock = asyncio.get_running_loop().time
        began = clock()
        while clock() < began + seconds and (self.answering() or clock() < began + leave_s):
            await asyncio.sleep(0.05)

    async def stop(self) -> None:
        """Cut whatever still runs."""
        self._stopped = True
        if self._telling is not None:
            self._telling.cancel()
        if self._listening is not None:
            self._listening.close()
        for session in list(self.sessions):
            session.say(Goodbye())
            session.close()

    def lost(self, streams: int) -> None:
        """A caller is gone, and so many streams of its own with it."""
        if streams and not self._stopped:
            self.orphaned(streams)

    def answering(self) -> int:
        """How many streams run now."""
        return sum(len(session.jobs) for session in self.sessions)

    async def tell(self) -> None:
        """News to every caller, now."""
        news = News(await self.standing(), self.leaving)
        for session in self.sessions:
            if not session.behind:  # who does not read is told when it has read what it was sent
                session.say(news)

    async def _tell_forever(self) -> None:
        while True:
            await asyncio.sleep(NEWS_S)
            for session in list(self.sessions):
                session.check_lease()
            await self.tell()


class Session(Peer):
    """One caller's connection. Nothing of it is read before it has said the token."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self.server = server
        self.jobs: dict[int, asyncio.Task[None]] = {}
        self._known = b""
        self._late = False
        self._unproved: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._unproved = asyncio.get_running_loop().call_later(TOKEN_S, self.close)

    def data_received(self, data: bytes) -> None:
        if len(self._known) < TOKEN_BYTES:
            missing = TOKEN_BYTES - len(self._known)
            self._known, data = self._known + data[:missing], data[missing:]
            if len(self._known) < TOKEN_BYTES:
                return
            if not hmac.compare_digest(self._known, self.server.token):
                self.close()
                return
            self._proved()
        super().data_received(data)

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._stop_waiting_for_the_token()
        self.server.sessions.discard(self)
        self.server.lost(len(self.jobs))
        for job in self.jobs.values():
            job.cancel()

    def check_lease(self) -> None:
        """Cut off a caller that has not been heard for LEASE_S, at the second look: it may be us who were busy, and
        what it said may wait to be read."""
        late = time.monotonic() - self.heard > LEASE_S
        if late and self._late and self._transport is not None:
            log.warning("a caller that stopped listening is cut off, %d streams of its own with it", len(self.jobs))
            self.say(Goodbye())
            self._flush()  # it may be there still, and should not take this for a death
            self._transport.abort()
        self._late = late

    def hear(self, message: Any) -> None:
        if isinstance(message, Call):
            job = asyncio.get_running_loop().create_task(self._answer(message))
            self.jobs[message.number] = job
            job.add_done_callback(lambda done: self._done(message, done))
        elif isinstance(message, Cancel):
            self._reader.forget(message.number)
            if message.number in self.jobs:
                self.jobs[message.number].cancel()
        elif isinstance(message, Probe):
            self.say(Probed(_read(message)))

    def missed(self, message: Unreadable) -> None:
        error = message.error
        if not isinstance(error, ServeError):
            error = ModelError("The request could not be read by the model's process.", code="internal_error")
        self.say_alone(End(message.number, error), message.number)

    async def _answer(self, call: Call) -> None:
        REQUEST_ID.set(call.request_id)  # this task's own, and what it starts inherits it
        CACHE_SALT.set(call.salt)
        said = _Joined(self, call)
        with tracing.begin(call.method, "server", call.trace) as span:
            span.enter()
            try:
                async with aclosing(self.server.methods[call.method](*call.arguments)) as items:
                    async for item in items:
                        said.item(item)
                        await self.drained()
            finally:
                said.flush()

    def _done(self, call: Call, job: asyncio.Task[None]) -> None:
        del self.jobs[call.number]
        if job.cancelled():
            return
        error = job.exception()
        if error is not None and not isinstance(error, ServeError):
            REQUEST_ID.set(call.request_id)  # this callback's own: logs look at it
            log.error("request %s: %s failed", call.request_id, call.method, exc_info=error)
            error = ModelError("The model failed unexpectedly.", code="internal_error")
        if error is None:
            self.say(End(call.number))
        else:
            self.say_alone(End(call.number, error), call.number)

    def _proved(self) -> None:
        self._stop_waiting_for_the_token()
        self.server.sessions.add(self)
        asyncio.get_running_loop().create_task(self.server.tell())

    def _stop_waiting_for_the_token(self) -> None:
        if self._unproved is not None:
            self._unproved.cancel()


class _Joined:
    """One stream's items, sent at once, or joined while the last ones are younger than the call's pace."""

    def __init__(self, session: Session, call: Call) -> None:
        self.session = session
        self.call = call
        self.loop = asyncio.get_running_loop()
        self.items: list[Any] = []
        self.due = 0.0
        self.timer: asyncio.TimerHandle | None = None

    def item(self, item: Any) -> None:
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
                self.session.say(message)
            else:
                self.session.say_alone(message, message.number)
            self.due = self.loop.time() + self.call.pace_s


def _read(probe: Probe) -> bytes:
    """The pixels that a caller wants to know whether we can read; nothing where we cannot."""
    try:
        return SharedPixels.open(probe.pixels).pixels.tobytes()
    except ServeError:
        return b""
