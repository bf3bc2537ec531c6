"""Sends JSON in pieces or server-sent events that end with [DONE]; stops the work when the client leaves."""

import asyncio
import re
from collections.abc import AsyncGenerator, Coroutine, Sequence
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serve.api.error_responses import error_body
from serve.errors import ServeError

T = TypeVar("T")

PIECE = 64 * 1024
"""Bytes written at once. The server waits until the client has read them before it takes the next."""
DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": still here\n\n"  # a comment, which clients ignore and proxies take as activity
KEEP_ALIVE_S = 15.0

_ENCODER = msgspec.json.Encoder()  # a thousand log-probabilities: 0.15 ms, and 1.7 ms by the standard library's
_BREAKS = re.compile("[\x85\u2028\u2029]")
"""Characters at which `str.splitlines` splits, as httpx does when it reads streams; JSON holds them in strings only."""
_BUG = ServeError("The server failed unexpectedly.", code="internal_error")

EventBytes = AsyncGenerator[bytes, None]


class LastEvents(bytes):
    """The last events of a stream, which are sent together with [DONE]."""


def encode_json(data: dict[str, Any]) -> str:
    """Return the JSON text of an event."""
    return _ENCODER.encode(data).decode()


def escape_breaks(text: str) -> str:
    """Return JSON text with the characters of _BREAKS escaped, as JSON allows."""
    return text if text.isascii() else _BREAKS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def sse_event(data: str | dict[str, Any], event: str | None = None) -> bytes:
    """Return an event's bytes. data: JSON text, or an object to encode."""
    text = escape_breaks(data if isinstance(data, str) else encode_json(data))
    head = f"event: {event}\n" if event else ""
    return f"{head}data: {text}\n\n".encode()


class EventStream(Response):
    """A response that sends events as they come, then [DONE]. `open_stream` creates it.

    A failure after the first event is sent as an event, since the status has been sent by then. When the client
    disconnects, the generator of events is closed, which stops the models.
    """

    media_type = "text/event-stream"

    def __init__(self, first: bytes, events: EventBytes, error_event: str | None) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self.first = first
        self.events = events
        self.error_event = error_event

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await cancel_on_disconnect(receive, self._send(send))
        except ClientDisconnect:
            pass
        finally:
            await self.events.aclose()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        alive = asyncio.create_task(_keep_alive(send))
        ending = b""
        try:
            data = self.first
            while not isinstance(data, LastEvents):
                await send({"type": "http.response.body", "body": data, "more_body": True})
                data = await anext(self.events, LastEvents())
            ending = data + DONE
        except ServeError as error:
            ending = sse_event(error_body(error), self.error_event) + DONE
        except Exception:  # a bug must not cut a stream in silence; of a client that is gone, nothing is sent
            ending = sse_event(error_body(_BUG), self.error_event) + DONE
            raise
        finally:
            alive.cancel()
            if ending:
                await send({"type": "http.response.body", "body": ending, "more_body": False})


async def cancel_on_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`. When the client disconnects, cancel it and raise ClientDisconnect.

    Call it after the request's body has been read: from then on `receive` only reports the disconnect. Starlette does
    not cancel a plain route, so models would go on generating.
    """
    job = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({job, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not job.done():
            raise ClientDisconnect
        return job.result()
    finally:
        for task in (job, gone):
            task.cancel()
        await asyncio.gather(job, gone, return_exceptions=True)


class PiecewiseJson(Response):
    """A JSON response of known length. body: its parts, in order."""

    media_type = "application/json"

    def __init__(self, body: Sequence[bytes]) -> None:
        super().__init__()
        self.parts = body
        self.headers["content-length"] = str(sum(map(len, body)))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        pieces = [part[at : at + PIECE] for part in self.parts for at in range(0, len(part), PIECE)]
        for left, piece in zip(reversed(range(len(pieces))), pieces, strict=True):
            await send({"type": "http.response.body", "body": piece, "more_body": left > 0})


async def open_stream(receive: Receive, events: EventBytes, error_event: str | None = None) -> EventStream:
    """Wait for the first event and return the response. Errors until then are raised, and get their own HTTP status.

    error_event: name of the event for a failure after the first event.
    """
    try:
        first = await cancel_on_disconnect(receive, _first(events))
    except BaseException:
        await events.aclose()
        raise
    return EventStream(first, events, error_event)


async def _first(events: EventBytes) -> bytes:
    return await anext(events)


async def _keep_alive(send: Send) -> None:
    while True:
        await asyncio.sleep(KEEP_ALIVE_S)
        await send({"type": "http.response.body", "body": KEEP_ALIVE, "more_body": True})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
