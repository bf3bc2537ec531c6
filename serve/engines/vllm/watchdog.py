"""Detect an engine that has requests and does not work on them. Linux only; elsewhere no engine is called stalled.

That its process is alive says nothing: one that is stopped or deadlocked is alive too. Nor does a long time without
output: on a laptop the prompt of a 7B model takes a minute, and a whole reply comes in one piece. So an engine is
stalled when no output came for STALL_S, and at each check none of its threads was running, runnable or waiting for a
disk, nor had they used processor time. That holds on a busy machine too. This process may be the slow one, so checks
count only where they are far enough apart for output to be received in between, and not after the event loop was
blocked.
"""

import contextlib
import os
import signal
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from typing import TypeVar

from serve.engines.vllm.process_tree import cpu_seconds, descendants, states

STALL_S = 6.0
CHECKS = 4
"""Consecutive checks without work after which an engine is stalled: a single one may fall into a short wait."""
CHECK_S, GAP_S = 1.0, 5.0
"""Seconds between two checks that count: sooner a check is skipped, later the count starts again."""
WORKING = "RD"  # states of threads: running or runnable; waiting for a disk
LEAST = 0.05
"""Share of a processor from which on an engine works. Idle threads of libraries that poll use 0.03 (gloo's)."""

Output = TypeVar("Output")


class Watchdog:
    """A watchdog of an engine. It counts running requests and their outputs; `is_stalled` is called once a second."""

    def __init__(self, processes: Callable[[], Iterable[int]], clock: Callable[[], float] = time.monotonic) -> None:
        """processes: returns the engine's pids; their descendants are checked too."""
        self._processes = processes
        self._clock = clock
        self._running = 0
        self._idle = 0
        self._last_output = self._last_check = self._measured = clock()
        self._spent = 0.0

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Count a request as running until the block ends: the engine alone has to work on it in that time."""
        if not self._running:
            self.note_output()
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    async def watched(self, outputs: AsyncGenerator[Output, None]) -> AsyncGenerator[Output, None]:
        """Yield a request's outputs. It counts as running while the next one is awaited, not while one is used."""
        while True:
            with self.busy():
                try:
                    output = await anext(outputs)
                except StopAsyncIteration:
                    return
            self.note_output()
            yield output

    def note_output(self) -> None:
        self._last_output, self._idle = self._clock(), 0

    def is_stalled(self) -> bool:
        """Return whether the engine has had requests for STALL_S and has not worked on them."""
        now = self._clock()
        since = now - self._last_check
        if since < CHECK_S:
            return False
        self._last_check = now
        if not self._running or now - self._last_output < STALL_S / 2 or since > GAP_S:
            self._idle = 0
            return False
        self._idle = 0 if self._is_working() else self._idle + 1
        return self._idle >= CHECKS and now - self._last_output >= STALL_S

    def _is_working(self) -> bool:
        processes = descendants(self._processes())
        threads = [state for process in processes for state in states(process)]
        since, self._measured = self._clock() - self._measured, self._clock()
        before, self._spent = self._spent, sum(map(cpu_seconds, processes))
        return not threads or any(state in WORKING for state in threads) or self._spent - before > LEAST * since

    def kill(self) -> None:
        """Kill the engine's processes with SIGKILL, the only signal that acts on stopped ones. Its requests fail."""
        for process in descendants(self._processes()):
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)
