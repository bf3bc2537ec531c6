"""uvicorn's HTTP, with an end to requests that take for ever to arrive, or that are endless, and to replies not taken.

httptools has neither: a head may grow without bound, a connection that says a byte now and then lives on, and what is
still to come of a body that was already refused is read for as long as it comes. Of a reply uvicorn holds 64 KB, and
has the application wait until the client has taken them: for ever, where it takes nothing.
"""

import asyncio
import socket
import struct
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from serve.errors import BadRequest, HeadTooLarge, ServeError
from serve.wire.limits import Limits
from serve.wire.refusals import reply

GRACE_S = 1.0
"""So long after the body's time, in which the application tells the client that it is up."""
AT_ONCE = struct.pack("ii", 1, 0)
FRAMING = 2
"""A body in chunks is at most so many times its bytes, or is cut off unread."""


class Arriving(HttpToolsProtocol):
    """One connection. What it waits for is a head, then a body, then the reply; only the first two are the client's."""

    def __init__(self, *args: Any, limits: Limits, **more: Any) -> None:
        super().__init__(*args, **more)
        self._limits = limits
        self._in_head, self._in_body = True, False
        self._read = 0
        self._timer: asyncio.TimerHandle | None = None
        self._untaken: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait(self._limits.head_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._arrived()
        self._taken()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._read += len(data)
        if not self.transport.get_write_buffer_size():
            self._taken()
        super().data_received(data)
        if self._in_head and self._read > self._limits.head:
            self._refuse(HeadTooLarge(f"The request's headers are larger than {self._limits.head // 1024} KB."))
        elif self._in_body and self._read > FRAMING * self._limits.body + self._limits.head:
            self.transport.abort()
        elif self._timer is None and self._read:  # all that came belongs to a request that is not whole yet
            if self._in_body:
                self._wait(self._limits.body_s + GRACE_S)
            elif self._in_head:
                self._wait(self._limits.head_s)

    def on_headers_complete(self) -> None:
        self._arrived()
        self._in_head, self._in_body = False, True
        super().on_headers_complete()
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
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(BadRequest("This is not HTTP/1.1.", code="invalid_http"))

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
        if self._in_body or not self._speaking():  # else half a request came behind one that is still being answered
            self.transport.abort()

    def _speaking(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, error: ServeError) -> None:
        """There is no whole head, and so no request that the application could answer."""
        if self._speaking():
            self.transport.abort()  # an answer to the request before it is on its way: nothing may come between
        elif not self.transport.is_closing():
            told = reply(error, {"connection": "close"})
            head = b"".join(name + b": " + value + b"\r\n" for name, value in told.raw_headers)
            self.transport.write(STATUS_LINE[error.status] + head + b"\r\n" + bytes(told.body))
            self.transport.close()
