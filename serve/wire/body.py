"""A request's body: how it arrives, what it holds of the budget, and how it is let go once it is read."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from starlette.requests import Request
from starlette.types import Message, Receive

from serve.errors import TooLarge, TooSlow
from serve.media.budget import Lease
from serve.wire.json_body import is_quick
from serve.wire.limits import Limits

T = TypeVar("T")

FIRST = 256 * 1024
"""Leased for a body that does not declare its length; one that grows larger gets the whole limit, so that it waits
once."""
LARGE = 4 * 2**20
"""Bytes from which on a body is read beside the others."""
PARSED = 3
"""A large body, the texts in it and the file in their base64 take at most so many times its bytes while it is read."""

# Of each one thread. Parsing holds the interpreter, so that more would be no faster; and the event loop, whenever it
# wants it back, would stand behind all of them. Apart, so that large bodies do not hold up the others.
_THREADS = {large: ThreadPoolExecutor(1, "parse-large" if large else "parse") for large in (False, True)}


class Arriving:
    """The `receive` of one request. Raises TooLarge or TooSlow for a body that grows too large or comes too late.

    What comes is leased before it is taken from the connection, and not before the application asks for it: whoever
    is refused for their key or their path holds nothing. Raises Overloaded where there is no room in time.
    """

    def __init__(self, receive: Receive, declared: int | None, limits: Limits, lease: Lease, until: float) -> None:
        """declared: the body's length by its head, None where it comes in chunks. until: the loop's time."""
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
            raise TooSlow(f"The request did not arrive within {self._limits.body_s:g} s.") from None
        self._size += len(message.get("body", b""))
        if self._size > self._limits.body:
            raise too_large(self._limits)
        if self._size > self._lease.size:
            room = FIRST if self._size <= FIRST else self._limits.body
            await self._lease.grow(room, self._until, arriving=True)
        if not message.get("more_body", False):
            self._whole = True
            self._lease.shrink(self._size)
        return message


def too_large(limits: Limits) -> TooLarge:
    """Return the refusal of a body that is larger than the limit."""
    return TooLarge(f"The request is larger than {limits.body / 2**20:g} MB.", code="request_too_large")


async def parsed(http: Request, parse: Callable[[bytes], T]) -> T:
    """Return the body as `parse` reads it, in a thread where it is large; the body itself is not kept.

    Raises what `parse` raises, Overloaded where there is no room to parse it.
    """
    chunks = [chunk async for chunk in http.stream()]  # Request.body() would keep them as long as the request
    size, lease = sum(map(len, chunks)), http.state.lease
    if is_quick(size):
        return parse(b"".join(chunks))
    await lease.grow(PARSED * size, http.state.body_until)
    try:
        return await in_thread(size, _joined, parse, chunks)
    finally:
        lease.shrink(size)


def _joined(parse: Callable[[bytes], T], chunks: list[bytes]) -> T:
    """Return what `parse` makes of a body that came in chunks, which are gone by then."""
    body = b"".join(chunks)
    chunks.clear()
    return parse(body)


async def in_thread(size: int, work: Callable[..., T], *args: object) -> T:
    """Return what `work` makes of a body of `size` bytes, done in the thread for bodies of that size."""
    return await asyncio.get_running_loop().run_in_executor(_THREADS[size > LARGE], work, *args)
