"""A semaphore whose holders take several units each."""

import asyncio
import contextlib
from collections.abc import AsyncIterator


class WeightedSemaphore:
    """A semaphore of `size` units. A request for more than `size` is granted when all units are free."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.taken = 0
        self._changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def take(self, units: int) -> AsyncIterator[None]:
        """Hold units until the block ends. With 0 units nothing is awaited."""
        if units:
            async with self._changed:
                await self._changed.wait_for(lambda: self.taken == 0 or self.taken + units <= self.size)
                self.taken += units
        try:
            yield
        finally:
            if units:
                self.taken -= units
                async with self._changed:
                    self._changed.notify_all()
