"""uvicorn's HTTP, with bounds on requests that take for ever to arrive, on endless ones, and on replies not taken.

httptools has none of these: a head may grow without bound, a connection that sends a byte now and then lives on, and
what is still to come of a body that was already refused is read for as long as it comes. Of a reply uvicorn holds
64 KB, and has the application wait until the client has taken them: for ever, where it takes nothing.

Three more things are uvicorn's weak sides. Where a client offers to upgrade the connection (Java's does with every
request, to HTTP/2), httptools leaves the request's body out. It stops reading while a pipelined request waits, and so
does not notice that the client leaves. And it closes a connection with bytes of the client unread, upon which the
kernel sends a reset that can destroy the reply before the client has read it.
"""

import asyncio
import socket
import struct
from typing import Any

import httptools
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from serve.errors import BadRequest, HeadTooLarge, ServeError, TooLarge
from serve.wire.limits import Limits
from serve.wire.refusals import reply

GRACE_S = 1.0
"""So long after the body's time, in which the application tells the client that it is up."""
AT_ONCE = struct.pack("ii", 1, 0)
FRAMING = 2
"""A body in chunks is at most so many times its bytes, or is refused unread."""
BEHIND = 128 * 1024
"""So many bytes behind the request being answered are kept for later; with more, the connection ends with its reply."""
PIPELINED = 16
"""So many requests may wait on one connection."""
LINGER_IDLE_S = 5.0
"""A client that was sent a reply before its request was whole, and sends nothing for so long, is left."""
LINGER_BODIES = 4
"""Of what it still sends, so many times the largest body is read and thrown away."""


class TimedHttpProtocol(HttpToolsProtocol):
    """One connection. What it waits for is a head, then a body, then the reply; only the first two are the client's.

    While a request is answered, what comes behind it is kept unparsed and reading goes on, so that the client is seen
    to leave. A reply that is complete before its request is followed by a half-close; the connection ends once the
    client has closed its side, or has had its time.
    """

    def __init__(self, *args: Any, limits: Limits, **more: Any) -> None:
        super().__init__(*args, **more)
        self._limits = limits
        self._in_head, self._in_body = True, False
        self._read = 0
        self._timer: asyncio.TimerHandle | None = None
        self._untaken: asyncio.TimerHandle | None = None
        self._running: RequestResponseCycle | None = None
        self._behind = bytearray()
        self._last = False  # the reply under way is the last: what comes behind it is thrown away
        self._lingering: asyncio.TimerHandle | None = None
        self._thrown, self._linger_until = 0, 0.0
        self._resuming = False  # within a head of our own making

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait(self._limits.head_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._arrived()
        self._taken()
        if self._lingering is not None:
            self._lingering.cancel()
        waiting = [cycle for cycle, _ in self.pipeline]
        self.pipeline.clear()
        for cycle in waiting if self._running is None else [self._running, *waiting]:
            if not cycle.response_complete:  # uvicorn marks the last one only
                cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self.transport.get_write_buffer_size():
            self._taken()
        if self._lingering is not None:
            self._throw_away(len(data))
        elif self._answering():
            self._keep(data)
        else:
            self._parse(data)

    def on_message_begin(self) -> None:
        if not self._resuming:
            super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self._resuming:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._resuming:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._resuming:
            return
        self._arrived()
        if self._last or len(self.pipeline) >= PIPELINED:
            raise ValueError("no further request is taken on this connection")
        super().on_headers_complete()
        self._in_head, self._in_body = False, True
        self.headers = []  # what stands after a body in chunks goes here, and nowhere

    def on_message_complete(self) -> None:
        self._arrived()
        self._in_head, self._in_body, self._read = True, False, 0
        super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._offer()

    def resume_writing(self) -> None:
        self._taken()
        super().resume_writing()

    def on_response_complete(self) -> None:
        if self.transport.get_write_buffer_size():
            self._offer()
        if self._last and not self.pipeline and not self.transport.is_closing():
            self.server_state.total_requests += 1
            self._linger()
            return
        super().on_response_complete()
        if self.transport.is_closing() or self._answering():
            return
        if self._behind:
            kept, self._behind = bytes(self._behind), bytearray()
            self._parse(kept)
        elif self._timer is None and self._in_body:  # of the next request, which began in one segment with the last
            self._wait(self._limits.body_s + GRACE_S)

    def send_400_response(self, msg: str) -> None:
        self._refuse(BadRequest("This is not HTTP/1.1.", code="invalid_http"))

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            await app(scope, receive, self._early(cycle, send) if cycle.more_body else send)

        started: Any = answer  # uvicorn's own types of scopes and messages are narrower than Starlette's
        super()._start_asgi_task(cycle, started)

    def _early(self, cycle: RequestResponseCycle, send: Send) -> Send:
        """`send` for a request that is not whole yet: a reply that begins before its end is the connection's last."""

        async def sending(message: Message) -> None:
            if message["type"] != "http.response.start" or not cycle.more_body:
                await send(message)
                return
            self._last = True
            await send({**message, "headers": [*message.get("headers", []), (b"connection", b"close")]})
            cycle.keep_alive = True  # or uvicorn closes the connection at once, and with it what the client has to read

        return sending

    def _parse(self, data: bytes) -> None:
        self._read += len(data)
        self._feed(data)
        if self._lingering is not None or self.transport.is_closing():
            return
        if self._in_head and self._read > self._limits.head:
            self._refuse(HeadTooLarge(f"The request's headers are larger than {self._limits.head // 1024} KB."))
        elif self._in_body and self._read > FRAMING * self._limits.body + self._limits.head:
            largest = self._limits.body / 2**20
            self._refuse(TooLarge(f"The request is larger than {largest:g} MB.", code="request_too_large"))
        elif self._answering():
            self._arrived()
            self.flow.resume_reading()  # uvicorn pauses for a second request, and would not see the client leave
        elif self._timer is None and self._read:  # all that came belongs to a request that is not whole yet
            self._wait(self._limits.body_s + GRACE_S if self._in_body else self._limits.head_s)

    def _feed(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._stay(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self.send_400_response("")

    def _stay(self, rest: bytes) -> None:
        """Go on in HTTP/1.1 after a head that offers an upgrade, as if it had not. rest: what came behind that head.

        The parser has taken the request for whole, and what follows for another protocol; a new one is brought to where
        the body begins.
        """
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
        headers = dict(self.cycle.scope["headers"])
        framing = [
            name + b": " + headers[name] for name in (b"content-length", b"transfer-encoding") if name in headers
        ]
        if framing and not self.cycle.response_complete:
            self.cycle.more_body, self._in_head, self._in_body, self._read = True, False, True, 1 + len(rest)
            self._resuming = True
            self._feed(b"\r\n".join([b"POST / HTTP/1.1", *framing, b"", b""]))
            self._resuming = False
        if rest:
            self._feed(rest)

    def _keep(self, data: bytes) -> None:
        """Hold what comes behind the request that is being answered, as far as there is room."""
        if not self._last:
            self._behind += data
            if len(self._behind) > BEHIND:
                self._last, self._behind = True, bytearray()

    def _answering(self) -> bool:
        """Whether the request that runs is whole, and its reply is not."""
        return self._running is not None and not self._running.more_body and not self._running.response_complete

    def _wait(self, seconds: float) -> None:
        self._timer = self.loop.call_later(seconds, self._late)

    def _arrived(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _offer(self) -> None:
        if self._untaken is None:
            self._untaken = self.loop.call_later(self._limits.write_s, self._give_up)

    def _taken(self) -> None:
        if self._untaken is not None:
            self._untaken.cancel()
            self._untaken = None

    def _give_up(self) -> None:
        self._untaken = None
        if self.transport.get_write_buffer_size():
            # Or the kernel keeps what it has for a client that takes nothing, for minutes.
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
            self.transport.abort()  # the application hears that the client has left

    def _late(self) -> None:
        self._timer = None
        if self.flow.read_paused:  # it is us who do not read
            self._wait(self._limits.body_s + GRACE_S if self._in_body else self._limits.head_s)
        else:
            self.transport.abort()

    def _refuse(self, error: ServeError) -> None:
        """What came is no request that the application could answer. A reply that is under way is finished before."""
        self._arrived()
        self._last, self._behind = True, bytearray()
        broken = self.cycle if self._in_body else None
        if broken is not None:
            self._forget(broken)
        if self._running is not None and self._running is not broken and not self._running.response_complete:
            return
        if broken is not None and broken.response_started:
            self.transport.abort()  # nothing may come in the middle of it
        elif not self.transport.is_closing() and self._lingering is None:
            told = reply(error, {"connection": "close"})
            head = b"".join(name + b": " + value + b"\r\n" for name, value in told.raw_headers)
            self.transport.write(STATUS_LINE[error.status] + head + b"\r\n" + bytes(told.body))
            self._linger()

    def _forget(self, cycle: RequestResponseCycle) -> None:
        """Have a request that cannot become whole end as if its client had left, or never begin."""
        for waiting in list(self.pipeline):
            if waiting[0] is cycle:
                self.pipeline.remove(waiting)
        cycle.disconnected = True
        cycle.message_event.set()

    def _linger(self) -> None:
        """End our side, and read on for a while: closing with bytes unread would destroy the reply on its way."""
        if self._lingering is None:
            self._arrived()
            self._unset_keepalive_if_required()
            self.flow.resume_reading()
            self._linger_until = self.loop.time() + self._limits.body_s
            if self.transport.can_write_eof():
                self.transport.write_eof()
            self._lingering = self.loop.call_later(LINGER_IDLE_S, self._left_idle, self._thrown)

    def _throw_away(self, size: int) -> None:
        self._thrown += size
        if self._thrown > LINGER_BODIES * self._limits.body + self._limits.head:
            self.transport.abort()

    def _left_idle(self, before: int) -> None:
        idle = self._thrown == before and not self.transport.get_write_buffer_size()
        if idle or self.loop.time() > self._linger_until:
            self.transport.abort()
        else:
            self._lingering = self.loop.call_later(LINGER_IDLE_S, self._left_idle, self._thrown)
