"""Calls an ASGI app directly, with a body in pieces that is not copied."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from starlette.types import ASGIApp, Message


class Reply:
    """A response. status: 0 where none has come."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""


async def call(
    app: ASGIApp,
    path: str,
    body: AsyncIterator[bytes] | Iterable[bytes] = (),
    *,
    method: str = "POST",
    query: bytes = b"",
    headers: dict[str, str] | None = None,
    leaves: Callable[[], bool] | None = None,
) -> Reply:
    """Return the response to a request with this body.

    leaves: whether the client disconnects now; default: only after the response.
    """
    reply, pieces = Reply(), aiter(body) if isinstance(body, AsyncIterator) else _each(body)
    ended = False

    async def receive() -> Message:
        nonlocal ended
        if ended:
            if leaves is None:
                return await asyncio.Event().wait()  # type: ignore[return-value]
            while not leaves():
                await asyncio.sleep(0.001)
            return {"type": "http.disconnect"}
        try:
            return {"type": "http.request", "body": await anext(pieces), "more_body": True}
        except StopAsyncIteration:
            ended = True
            return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            reply.status = message["status"]
            reply.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            reply.body += message.get("body", b"")

    scope: dict[str, Any] = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode("utf-8", "replace"),
        "query_string": query,
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in (headers or {}).items()],
    }
    await app(scope, receive, send)
    return reply


async def _each(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
