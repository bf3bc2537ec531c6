"""Receives a request's body within its limits and the memory budget, checks it, and frees it once it is parsed."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

from starlette.requests import Request
from starlette.types import Message, Receive

from serve.errors import BadRequest, TooLarge, TooSlow
from serve.limits import LIMITS, Limits
from serve.media.budget import Lease

T = TypeVar("T")

FIRST_LEASE = 256 * 1024
"""Bytes leased for a body without a declared length. A body that grows larger gets a lease of the whole limit, so
that it waits only once."""
LARGE = 4 * 2**20
"""Bytes from which on a body is parsed in the thread for large bodies."""
PARSING_FACTOR = 3
"""Memory that a body takes while it is parsed, including its text and base64, as a multiple of its size."""
MAX_ESCAPES = 2_000_000
"""Largest number of backslashes. An image of 20 MB has 0.8 million, where line breaks and every slash are escaped."""
SMALL = 100_000
"""Bytes up to which a body is parsed on the event loop."""

# Parsing holds the GIL, so more threads would be no faster, and the event loop would wait for each of them. There are
# two so that large bodies do not delay small ones.
_THREADS = {large: ThreadPoolExecutor(1, "parse-large" if large else "parse") for large in (False, True)}


class LimitedBody:
    """An ASGI `receive` that raises TooLarge or TooSlow for a body that grows too large or arrives too slowly.

    Bytes are leased when the application asks for them, before they are read from the connection: a request refused
    for its key or its path leases nothing. Raises Overloaded where the budget has no room in time.
    """

    def __init__(self, receive: Receive, declared: int | None, limits: Limits, lease: Lease, until: float) -> None:
        """declared: Content-Length; None for a chunked body. until: when it must be complete, in loop time."""
        self._receive, self._declared, self._limits = receive, declared, limits
        self._lease, self._until = lease, until
        self._size, self._whole = 0, False

    async def __call__(self) -> Message:
        if self._whole:
            return await self._receive()
        if self._size == 0 and self._declared:
            await self._lease.grow(self._declared, self._until, arriving=True)
        try:
            async with asyncio.timeout_at(self._until):
                message = await self._receive()
        except TimeoutError:
            raise TooSlow(f"The request did not arrive within {self._limits.body_timeout_s:g} s.") from None
        self._size += len(message.get("body", b""))
        if self._size > self._limits.max_body:
            raise too_large(self._limits)
        if self._size > self._lease.size:
            room = FIRST_LEASE if self._size <= FIRST_LEASE else self._limits.max_body
            await self._lease.grow(room, self._until, arriving=True)
        if not message.get("more_body", False):
            self._whole = True
            self._lease.shrink(self._size)
        return message


def too_large(limits: Limits) -> TooLarge:
    """Return the error for a body that is larger than the limit."""
    return TooLarge(f"The request is larger than {limits.max_body_mb:g} MB.", code="request_too_large")


async def parse_body(http: Request, parse: Callable[[bytes], T]) -> T:
    """Return the body parsed by `parse`, which runs in a thread where the body is large. The body is not kept.

    Raises what `parse` raises, and Overloaded where the budget has no room.
    """
    chunks = [chunk async for chunk in http.stream()]  # Request.body() would keep them as long as the request
    size, lease = sum(map(len, chunks)), http.state.lease
    if is_quick(size):
        return parse(b"".join(chunks))
    await lease.grow(PARSING_FACTOR * size, http.state.body_until)
    try:
        return await in_thread(size, _parse_chunks, parse, chunks)
    finally:
        lease.shrink(size)


def _parse_chunks(parse: Callable[[bytes], T], chunks: list[bytes]) -> T:
    """Join the chunks, free them, and return the parsed body."""
    body = b"".join(chunks)
    chunks.clear()
    return parse(body)


async def in_thread(size: int, work: Callable[..., T], *args: object) -> T:
    """Return `work(*args)`, run in the thread for bodies of `size` bytes, with the limits of the current request."""
    run = copy_context().run  # a thread has none of the request's context variables on its own
    return await asyncio.get_running_loop().run_in_executor(_THREADS[size > LARGE], run, work, *args)


def check_values(body: bytes) -> bytes:
    """Return the body unchanged. Raises BadRequest where it has too many values, or more than MAX_ESCAPES backslashes.

    28 MB of `[{},{},...` become gigabytes of Python objects, and pydantic writes a complaint about each, while it holds
    the GIL. Every value follows a comma or a bracket; base64 has neither. A string with 14 million escapes is parsed in
    200 ms, in which the event loop waits for the GIL as well.
    """
    most = LIMITS.get().max_values
    if len(body) > most and sum(map(body.count, (b",", b"[", b"{"))) > most:
        raise BadRequest(
            f"The body holds too many values: send at most {most:,} commas and opening brackets.", code="invalid_value"
        )
    if len(body) > MAX_ESCAPES and body.count(b"\\") > MAX_ESCAPES:
        raise BadRequest("The body holds too many escaped characters.", code="invalid_value")
    return body


def is_quick(size: int) -> bool:
    """Return whether a body of `size` bytes is parsed faster on the event loop than in a thread."""
    return size < SMALL
