"""A semaphore whose holders take several units each."""

import asyncio
import contextlib
from collections.abc import AsyncIterator


class WeightedSemaphore:
    """Hands out `size` units. Whoever wants more than are free waits; what exceeds `size` waits until all are free."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.taken = 0
        self._changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def take(self, units: int) -> AsyncIterator[None]:
        """Hold units while the block runs; none of them costs no turn of the loop."""
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
