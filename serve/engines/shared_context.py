"""Async contexts that concurrent users share by a key, such as one decoded image."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import AbstractAsyncContextManager
from typing import Generic, TypeVar

T = TypeVar("T")


class SharedContexts(Generic[T]):
    """A set of contexts that concurrent users share by key. The first user opens a context, the last one closes it.

    A user that leaves early, by cancellation too, does not affect the others. When the last user leaves while the
    context is being opened, the opening is cancelled.
    """

    def __init__(self) -> None:
        self._shared: dict[Hashable, SharedContext[T]] = {}

    def __len__(self) -> int:
        return len(self._shared)

    @contextlib.asynccontextmanager
    async def share(
        self, key: Hashable, make: Callable[[], AbstractAsyncContextManager[T]]
    ) -> AsyncIterator["SharedContext[T]"]:
        """Join the current users of `key`. make: returns the context to open; called for the first user only."""
        shared = self._shared.setdefault(key, SharedContext(make))
        shared.users += 1
        try:
            yield shared
        finally:
            shared.users -= 1
            if not shared.users:
                del self._shared[key]
                shared.close()


class SharedContext(Generic[T]):
    """A context with its users. turn: a lock for users that must run one after another."""

    def __init__(self, make: Callable[[], AbstractAsyncContextManager[T]]) -> None:
        self.users = 0
        self.turn = asyncio.Lock()
        self._make = make
        self._work: asyncio.Task[None] | None = None
        self._value: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._over = asyncio.Event()

    async def value(self) -> T:
        """Return the value of the context once it is open. Raises, for every user, what opening it raised."""
        if self._work is None:
            self._work = asyncio.create_task(self._open())
        return await asyncio.shield(self._value)

    def close(self) -> None:
        """Close the context, or cancel opening it."""
        self._over.set()
        if self._work is not None and not self._value.done():
            self._work.cancel()

    async def _open(self) -> None:
        try:
            async with self._make() as value:
                self._value.set_result(value)
                await self._over.wait()
        except Exception as error:
            if self._value.done():
                raise
            self._value.set_exception(error)
            self._value.exception()  # marks the exception as retrieved, where no user waits for it
        finally:
            self._value.cancel()
