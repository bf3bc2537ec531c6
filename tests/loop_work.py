"""What holds the event loop while something is done, whatever else the machine does."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from serve.loop_lag import EVERY_S, LoopLag


@contextlib.asynccontextmanager
async def loop_stays_free(seconds: float) -> AsyncIterator[None]:
    """Fail where the loop's thread worked for longer than `seconds` at a time, in processor time."""
    lag = LoopLag(clock=time.thread_time)
    lag.start()
    try:
        yield
        await asyncio.sleep(2 * EVERY_S)
    finally:
        lag.stop()
    assert lag.worst() < seconds, f"the event loop was held for {lag.worst():.3f} s"
