"""A watch over the event loop, which measures how long something kept it from turning, and a way to keep it turning."""

import asyncio
import gc
import time
from collections import deque
from collections.abc import Callable

EVERY_S = 0.025
WINDOW_S = 60.0
TELL_S = 5.0


class LoopLag:
    """Wakes every EVERY_S and measures how much later than that it is. Work that holds the loop for longer is seen but
    for its first EVERY_S.

    tell: called every TELL_S with `worst()`. clock: seconds; the processor time of the loop's own thread
    (`time.thread_time`) leaves out what other processes of a busy machine take.
    """

    def __init__(
        self, tell: Callable[[float], None] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._tell, self._clock = tell, clock
        self._last = 0.0
        self._looks = 0
        self._peaks: deque[tuple[float, float]] = deque()  # (when, lag), each later and smaller than the one before
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to watch the loop that runs this."""
        self._last = self._clock()
        self._timer = asyncio.get_running_loop().call_later(EVERY_S, self._look)

    def stop(self) -> None:
        """Watch no longer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def worst(self) -> float:
        """Return the longest lag of the last WINDOW_S in seconds."""
        self._forget(time.monotonic())
        return self._peaks[0][1] if self._peaks else 0.0

    def _look(self) -> None:
        now, at = self._clock(), time.monotonic()
        lag = max(0.0, now - self._last - EVERY_S)
        self._last = now
        while self._peaks and self._peaks[-1][1] <= lag:
            self._peaks.pop()
        self._peaks.append((at, lag))
        self._forget(at)
        self._timer = asyncio.get_running_loop().call_later(EVERY_S, self._look)
        self._looks += 1
        if self._tell is not None and self._looks % int(TELL_S / EVERY_S) == 0:
            self._tell(self.worst())

    def _forget(self, now: float) -> None:
        while self._peaks and self._peaks[0][0] < now - WINDOW_S:
            self._peaks.popleft()


def freeze_heap() -> None:
    """Leave all objects that exist now out of later garbage collections. Call it once a process has started.

    A full collection holds the event loop: 43 ms in a gateway, whose imports alone are 130,000 objects (Intel Xeon).
    """
    gc.collect()
    gc.freeze()
