"""Work that is done once for all who ask for it at the same time."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import AbstractAsyncContextManager
from typing import Generic, TypeVar

T = TypeVar("T")


class Once(Generic[T]):
    """Opens a context when the first of those who share a key needs what it gives, and closes it after the last.

    Whoever leaves early, cancelled or not, disturbs nobody else. When nobody is left, an opening that is under way is
    cancelled, and nothing is kept.
    """

    def __init__(self) -> None:
        self._shared: dict[Hashable, Shared[T]] = {}

    def __len__(self) -> int:
        return len(self._shared)

    @contextlib.asynccontextmanager
    async def share(
        self, key: Hashable, make: Callable[[], AbstractAsyncContextManager[T]]
    ) -> AsyncIterator["Shared[T]"]:
        """Share with all who are here with the same key. make: gives the context; called for the first only."""
        shared = self._shared.setdefault(key, Shared(make))
        shared.users += 1
        try:
            yield shared
        finally:
            shared.users -= 1
            if not shared.users:
                del self._shared[key]
                shared.close()


class Shared(Generic[T]):
    """What several share. turn: a lock for those who must come one after another."""

    def __init__(self, make: Callable[[], AbstractAsyncContextManager[T]]) -> None:
        self.users = 0
        self.turn = asyncio.Lock()
        self._make = make
        self._work: asyncio.Task[None] | None = None
        self._value: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._over = asyncio.Event()

    async def value(self) -> T:
        """Return what the context gives, as soon as it is there. Raises, to all, what opening it raised."""
        if self._work is None:
            self._work = asyncio.create_task(self._open())
        return await asyncio.shield(self._value)

    def close(self) -> None:
        """Leave the context, or give up opening it."""
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
            self._value.exception()  # it is raised to whoever waits; nobody need
        finally:
            self._value.cancel()
