"""Receives a request's body within its limits and the memory budget, and frees it once it is parsed."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from starlette.requests import Request
from starlette.types import Message, Receive

from serve.api.json_body import is_quick
from serve.api.limits import Limits
from serve.errors import TooLarge, TooSlow
from serve.media.budget import Lease

T = TypeVar("T")

FIRST_LEASE = 256 * 1024
"""Bytes leased for a body that does not declare its length. One that grows larger gets a lease of the whole limit, so
that it waits for room once."""
LARGE = 4 * 2**20
"""Bytes from which on a body is parsed in a thread of its own, beside the smaller ones."""
PARSING_FACTOR = 3
"""What a large body takes while it is parsed, with its texts and the file in their base64, in times of its size."""

# One thread each: parsing holds the interpreter, so that more would be no faster, and the event loop would queue behind
# all of them to get it back. Two, so that large bodies do not hold up the others.
_THREADS = {large: ThreadPoolExecutor(1, "parse-large" if large else "parse") for large in (False, True)}


class LimitedBody:
    """An ASGI `receive` that raises TooLarge or TooSlow for a body that grows too large or comes too late.

    Bytes are leased before they are taken from the connection, and not before the application asks for them: a request
    refused for its key or its path holds nothing. Raises Overloaded where there is no room in time.
    """

    def __init__(self, receive: Receive, declared: int | None, limits: Limits, lease: Lease, until: float) -> None:
        """declared: the length according to the head, None where it comes in chunks. until: the event loop's time."""
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


async def parsed(http: Request, parse: Callable[[bytes], T]) -> T:
    """Return what `parse` makes of the body, in a thread where that is large; the body itself is not kept.

    Raises what `parse` raises, Overloaded where there is no room to parse it.
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
    """Return what `parse` makes of a body in chunks; they are freed before."""
    body = b"".join(chunks)
    chunks.clear()
    return parse(body)


async def in_thread(size: int, work: Callable[..., T], *args: object) -> T:
    """Return what `work` makes of a body of `size` bytes, done in the thread for bodies of that size."""
    return await asyncio.get_running_loop().run_in_executor(_THREADS[size > LARGE], work, *args)
