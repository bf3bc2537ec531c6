"""Whether an engine that owes answers still works on them. Linux only; elsewhere no engine is called stalled.

Its pulse says nothing: a process that is stopped, or whose thread waits for ever, is alive. Its words say too little:
on a laptop the prompt of a 7B model takes a minute, and a whole reply comes in one piece. So: no word for STALL_S, and
each time that we looked, none of its threads was on a processor or waiting for one, nor had they used any since.
However busy the machine is, a thread that works is one of these.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator

from serve.engines.process_tree import cpu_seconds, descendants, states

STALL_S = 6.0
LOOKS = 4
"""At least so many looks found nobody at work: one alone may fall into a short wait."""
WORKING = "RD"  # running or waiting for a processor; waiting for a disk
LEAST = 0.05
"""The share of a processor that is work. Threads of libraries that only wake and sleep used 0.03 of one (gloo's)."""


class Stall:
    """Told of every answer and word, and asked now and then."""

    def __init__(self, processes: Callable[[], Iterable[int]], clock: Callable[[], float] = time.monotonic) -> None:
        """processes: the engine's, by number; those that come from them are looked at as well."""
        self._processes = processes
        self._clock = clock
        self._owed = 0
        self._idle = 0
        self._heard = self._looked = clock()
        self._spent = 0.0

    @contextlib.contextmanager
    def owing(self) -> Iterator[None]:
        """Around an answer."""
        if not self._owed:
            self.heard()
        self._owed += 1
        try:
            yield
        finally:
            self._owed -= 1

    def heard(self) -> None:
        """A word has come."""
        self._heard, self._idle = self._clock(), 0

    def look(self) -> bool:
        """Whether it is stalled: it owes answers and nobody has worked on them for STALL_S."""
        if not self._owed or self._clock() - self._heard < STALL_S / 2:
            return False
        self._idle = 0 if self._works() else self._idle + 1
        return self._idle >= LOOKS and self._clock() - self._heard >= STALL_S

    def _works(self) -> bool:
        processes = descendants(self._processes())
        threads = [state for process in processes for state in states(process)]
        since, self._looked = self._clock() - self._looked, self._clock()
        before, self._spent = self._spent, sum(map(cpu_seconds, processes))
        return not threads or any(state in WORKING for state in threads) or self._spent - before > LEAST * since

    def kill(self) -> None:
        """End it, so that whoever waits for it is told. A stopped process hears of nothing less."""
        for process in descendants(self._processes()):
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)
