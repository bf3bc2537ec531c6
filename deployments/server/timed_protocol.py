"""Adds to uvicorn's HTTP protocol limits on requests that arrive slowly or never end, and on responses not read.

With httptools uvicorn has none of these. A head may grow without bound, a connection that sends a byte now and then
lives on, and the rest of a body that was already refused is read as long as it comes. Of a response uvicorn buffers
64 KB, and the application waits until the client has read them, without a time limit.

Three more weaknesses are fixed here. Where a client offers to upgrade the connection (Java's does so with every
request, to HTTP/2), httptools leaves the request's body out. uvicorn stops reading while a pipelined request waits, and
so does not notice that the client leaves. It also closes a connection with bytes of the client unread, so the kernel
sends a reset that can destroy the response before the client has read it.

The base class is private to uvicorn, whose version the locks pin.
"""

import asyncio
import socket
import struct
from typing import Any

import httptools
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from serve.api.body import too_large
from serve.api.error_responses import error_response
from serve.errors import BadRequest, HeadTooLarge, ServeError
from serve.limits import MAX_HEAD, Limits

GRACE_S = 1.0
"""Seconds beyond body_timeout_s, in which the application can still send the client its error."""
RESET_AT_ONCE = struct.pack("ii", 1, 0)  # SO_LINGER: on, 0 seconds
MAX_FRAMING = 2
"""Largest size on the wire of a chunked body, as a multiple of max_body."""
MAX_KEPT_BYTES = 128 * 1024
"""Largest number of pipelined bytes kept behind a running request. Beyond it the connection ends with the response."""
MAX_PIPELINED = 16
"""Requests that may wait on one connection."""
LINGER_IDLE_S = 5.0
"""Seconds without data after which a client that got an early response is disconnected."""
LINGER_BODIES = 4
"""Limit on what such a client may still send, as a multiple of max_body; it is discarded."""


class TimedHttpProtocol(HttpToolsProtocol):
    """A connection, which receives a head, then a body, and sends the response.

    While a request is answered, bytes behind it are kept unparsed and reading goes on, so that a client that leaves is
    noticed. A response that is complete before its request is followed by a half-close; the connection ends once the
    client has closed its side, or its time is up.
    """

    def __init__(self, *args: Any, limits: Limits, **more: Any) -> None:
        super().__init__(*args, **more)
        self._limits = limits
        self._in_head, self._in_body = True, False
        self._bytes_read = 0
        self._arrival_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._running: RequestResponseCycle | None = None
        self._kept = bytearray()
        self._close_after = False  # the current response is the last: bytes behind it are discarded
        self._linger_timer: asyncio.TimerHandle | None = None
        self._discarded, self._linger_until = 0, 0.0
        self._resuming = False  # while the made-up head is parsed

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_arrival_timer(self._limits.head_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_arrival_timer()
        self._stop_write_timer()
        if self._linger_timer is not None:
            self._linger_timer.cancel()
        waiting = [cycle for cycle, _ in self.pipeline]
        self.pipeline.clear()
        for cycle in waiting if self._running is None else [self._running, *waiting]:
            if not cycle.response_complete:  # uvicorn marks only the last
                cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self.transport.get_write_buffer_size():
            self._stop_write_timer()
        if self._linger_timer is not None:
            self._discard(len(data))
        elif self._answering():
            self._keep_for_later(data)
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
        self._stop_arrival_timer()
        if self._close_after or len(self.pipeline) >= MAX_PIPELINED:
            raise ValueError("no further request is taken on this connection")
        super().on_headers_complete()
        self._in_head, self._in_body = False, True
        self.headers = []  # trailers after a body in chunks go here, and are dropped

    def on_message_complete(self) -> None:
        self._stop_arrival_timer()
        self._in_head, self._in_body, self._bytes_read = True, False, 0
        super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_write_timer()

    def resume_writing(self) -> None:
        self._stop_write_timer()
        super().resume_writing()

    def on_response_complete(self) -> None:
        if self.transport.get_write_buffer_size():
            self._start_write_timer()
        if self._close_after and not self.pipeline and not self.transport.is_closing():
            self.server_state.total_requests += 1
            self._linger()
            return
        super().on_response_complete()
        if self.transport.is_closing() or self._answering():
            return
        if self._kept:
            data, self._kept = bytes(self._kept), bytearray()
            self._parse(data)
        elif self._arrival_timer is None and self._in_body:  # of the next request, which began in the last segment
            self._start_arrival_timer(self._limits.body_timeout_s + GRACE_S)

    def send_400_response(self, msg: str) -> None:
        self._refuse(BadRequest("This is not HTTP/1.1.", code="invalid_http"))

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            await app(scope, receive, self._closing_send(cycle, send) if cycle.more_body else send)

        started: Any = answer  # uvicorn's types of scopes and messages are narrower than Starlette's
        super()._start_asgi_task(cycle, started)

    def _closing_send(self, cycle: RequestResponseCycle, send: Send) -> Send:
        """Return a `send` for a request that is still arriving: a response that begins now closes the connection."""

        async def sending(message: Message) -> None:
            if message["type"] != "http.response.start" or not cycle.more_body:
                await send(message)
                return
            self._close_after = True
            await send({**message, "headers": [*message.get("headers", []), (b"connection", b"close")]})
            cycle.keep_alive = True  # or uvicorn closes at once, with the response unread

        return sending

    def _parse(self, data: bytes) -> None:
        self._bytes_read += len(data)
        self._feed(data)
        if self._linger_timer is not None or self.transport.is_closing():
            return
        if self._in_head and self._bytes_read > MAX_HEAD:
            self._refuse(HeadTooLarge(f"The request's headers are larger than {MAX_HEAD // 1024} KB."))
        elif self._in_body and self._bytes_read > MAX_FRAMING * self._limits.max_body + MAX_HEAD:
            self._refuse(too_large(self._limits))
        elif self._answering():
            self._stop_arrival_timer()
            self.flow.resume_reading()  # uvicorn pauses for a second request, and would miss that the client leaves
        elif self._arrival_timer is None and self._bytes_read:  # all bytes belong to a request that is not whole yet
            self._start_arrival_timer(
                self._limits.body_timeout_s + GRACE_S if self._in_body else self._limits.head_timeout_s
            )

    def _feed(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self.send_400_response("")

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Continue in HTTP/1.1 after a head that offers an upgrade. rest: the bytes after that head.

        The parser considers the request complete and the rest another protocol. So a new parser gets a made-up head,
        after which it expects the body.
        """
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
        headers = dict(self.cycle.scope["headers"])
        framing = [
            name + b": " + headers[name] for name in (b"content-length", b"transfer-encoding") if name in headers
        ]
        if framing and not self.cycle.response_complete:
            self.cycle.more_body, self._in_head, self._in_body, self._bytes_read = True, False, True, 1 + len(rest)
            self._resuming = True
            self._feed(b"\r\n".join([b"POST / HTTP/1.1", *framing, b"", b""]))
            self._resuming = False
        if rest:
            self._feed(rest)

    def _keep_for_later(self, data: bytes) -> None:
        """Keep pipelined bytes until the running request is answered, up to MAX_KEPT_BYTES."""
        if not self._close_after:
            self._kept += data
            if len(self._kept) > MAX_KEPT_BYTES:
                self._close_after, self._kept = True, bytearray()

    def _answering(self) -> bool:
        """Return whether the current request is complete, and its response is not."""
        return self._running is not None and not self._running.more_body and not self._running.response_complete

    def _start_arrival_timer(self, seconds: float) -> None:
        self._arrival_timer = self.loop.call_later(seconds, self._arrival_timed_out)

    def _stop_arrival_timer(self) -> None:
        if self._arrival_timer is not None:
            self._arrival_timer.cancel()
            self._arrival_timer = None

    def _start_write_timer(self) -> None:
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self._limits.write_timeout_s, self._write_timed_out)

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _write_timed_out(self) -> None:
        self._write_timer = None
        if self.transport.get_write_buffer_size():
            # Or the kernel keeps its buffer for minutes, for a client that reads nothing.
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_ONCE)
            self.transport.abort()  # the application is told that the client has left

    def _arrival_timed_out(self) -> None:
        self._arrival_timer = None
        if self.flow.read_paused:  # it is we who do not read
            self._start_arrival_timer(
                self._limits.body_timeout_s + GRACE_S if self._in_body else self._limits.head_timeout_s
            )
        else:
            self.transport.abort()

    def _refuse(self, error: ServeError) -> None:
        """Answer bytes that are not a valid request with an error, after the running response."""
        self._stop_arrival_timer()
        self._close_after, self._kept = True, bytearray()
        broken = self.cycle if self._in_body else None
        if broken is not None:
            self._abandon(broken)
        if self._running is not None and self._running is not broken and not self._running.response_complete:
            return
        if broken is not None and broken.response_started:
            self.transport.abort()  # nothing may be sent in the middle of a response
        elif not self.transport.is_closing() and self._linger_timer is None:
            response = error_response(error, {"connection": "close"})
            head = b"".join(name + b": " + value + b"\r\n" for name, value in response.raw_headers)
            self.transport.write(STATUS_LINE[error.status] + head + b"\r\n" + bytes(response.body))
            self._linger()

    def _abandon(self, cycle: RequestResponseCycle) -> None:
        """Treat a request that cannot become complete as if its client had left, or do not start it."""
        for waiting in list(self.pipeline):
            if waiting[0] is cycle:
                self.pipeline.remove(waiting)
        cycle.disconnected = True
        cycle.message_event.set()

    def _linger(self) -> None:
        """Half-close, and read on for a while: a reset, caused by unread bytes, could destroy the response."""
        if self._linger_timer is None:
            self._stop_arrival_timer()
            self._unset_keepalive_if_required()
            self.flow.resume_reading()
            self._linger_until = self.loop.time() + self._limits.body_timeout_s
            if self.transport.can_write_eof():
                self.transport.write_eof()
            self._linger_timer = self.loop.call_later(LINGER_IDLE_S, self._check_linger, self._discarded)

    def _discard(self, size: int) -> None:
        self._discarded += size
        if self._discarded > LINGER_BODIES * self._limits.max_body + MAX_HEAD:
            self.transport.abort()

    def _check_linger(self, before: int) -> None:
        idle = self._discarded == before and not self.transport.get_write_buffer_size()
        if idle or self.loop.time() > self._linger_until:
            self.transport.abort()
        else:
            self._linger_timer = self.loop.call_later(LINGER_IDLE_S, self._check_linger, self._discarded)
