"""Checks that a piece of work does not block the event loop, independent of the machine's load."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from serve.api.loop_lag import LoopLag

TICK_S = 0.05


@contextlib.asynccontextmanager
async def loop_stays_free(seconds: float) -> AsyncIterator[None]:
    """Fail where the loop's thread worked for longer than `seconds` at a time, in processor time."""
    lag = LoopLag(clock=time.thread_time, every_s=TICK_S)
    lag.start()
    try:
        yield
        await asyncio.sleep(2 * TICK_S)
    finally:
        lag.stop()
    assert lag.worst() < seconds, f"the event loop was blocked for {lag.worst():.3f} s"
