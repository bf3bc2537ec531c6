"""Measures for how long the event loop was blocked, and keeps garbage collection from blocking it."""

import asyncio
import gc
import time
from collections import deque
from collections.abc import Callable

EVERY_S = 0.2
"""Seconds between two timers. At 0.05 they took 1 to 2 ms of processor a second in each process."""
WINDOW_S = 60.0
REPORT_S = 5.0


class LoopLag:
    """Sets a timer every `every_s` seconds and measures how late it runs. A block is measured at most that much short.

    report: called every REPORT_S seconds with `worst()`. clock: in seconds; the loop thread's processor time
    (`time.thread_time`) excludes the time that other processes of a busy machine take.
    """

    def __init__(
        self,
        report: Callable[[float], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        every_s: float = EVERY_S,
    ) -> None:
        self._report, self._clock, self._every_s = report, clock, every_s
        self._last = 0.0
        self._ticks = 0
        self._peaks: deque[tuple[float, float]] = deque()  # (when, lag), each later and smaller than the one before
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to measure the running event loop."""
        self._last = self._clock()
        self._timer = asyncio.get_running_loop().call_later(self._every_s, self._tick)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def worst(self) -> float:
        """Return the longest lag of the last WINDOW_S in seconds."""
        self._forget(time.monotonic())
        return self._peaks[0][1] if self._peaks else 0.0

    def _tick(self) -> None:
        now, at = self._clock(), time.monotonic()
        lag = max(0.0, now - self._last - self._every_s)
        self._last = now
        while self._peaks and self._peaks[-1][1] <= lag:
            self._peaks.pop()
        self._peaks.append((at, lag))
        self._forget(at)
        self._timer = asyncio.get_running_loop().call_later(self._every_s, self._tick)
        self._ticks += 1
        if self._report is not None and self._ticks % int(REPORT_S / self._every_s) == 0:
            self._report(self.worst())

    def _forget(self, now: float) -> None:
        while self._peaks and self._peaks[0][0] < now - WINDOW_S:
            self._peaks.popleft()


def freeze_heap() -> None:
    """Exclude all existing objects from later garbage collections. Call it when a process has started.

    A full collection blocks the event loop: for 43 ms in a gateway, whose imports alone make 130,000 objects (Xeon).
    """
    gc.collect()
    gc.freeze()
