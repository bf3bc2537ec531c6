"""Whether an engine that owes answers still works on them. Linux only; elsewhere no engine is called stalled.

Its pulse says nothing: a process that is stopped, or whose thread waits for ever, is alive. Its words say too little:
on a laptop the prompt of a 7B model takes a minute, and a whole reply comes in one piece. So: no word for STALL_S, and
each time that we looked, none of its threads was on a processor or waiting for one, nor had they used any since.
However busy the machine is, a thread that works is one of these. We may be the ones who are slow: looks count only
where they are far enough apart for words to be read between them, and not where our own loop stood still before one.
"""

import contextlib
import os
import signal
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from typing import TypeVar

from serve.engines.vllm.process_tree import cpu_seconds, descendants, states

STALL_S = 6.0
LOOKS = 4
"""At least so many looks in a row found nobody at work: one alone may fall into a short wait."""
LOOK_S, GAP_S = 1.0, 5.0
"""The time between two looks that count: sooner nothing can have changed, and after more the count begins anew."""
WORKING = "RD"  # running or waiting for a processor; waiting for a disk
LEAST = 0.05
"""The share of a processor that is work. Threads of libraries that only wake and sleep used 0.03 of one (gloo's)."""

Word = TypeVar("Word")


class Stall:
    """A watch over an engine: it is told of every answer and word, and asked about once a second."""

    def __init__(self, processes: Callable[[], Iterable[int]], clock: Callable[[], float] = time.monotonic) -> None:
        """processes: the engine's, by number; those that come from them are looked at as well."""
        self._processes = processes
        self._clock = clock
        self._owed = 0
        self._idle = 0
        self._heard = self._looked = self._measured = clock()
        self._spent = 0.0

    @contextlib.contextmanager
    def owing(self) -> Iterator[None]:
        """Count an answer as owed meanwhile: the engine has all that it needs for it, and we wait for nothing else."""
        if not self._owed:
            self.heard()
        self._owed += 1
        try:
            yield
        finally:
            self._owed -= 1

    async def watched(self, words: AsyncGenerator[Word, None]) -> AsyncGenerator[Word, None]:
        """Give an answer's words as they come. While whoever takes them takes his time, nothing is owed."""
        while True:
            with self.owing():
                try:
                    word = await anext(words)
                except StopAsyncIteration:
                    return
            self.heard()
            yield word

    def heard(self) -> None:
        """A word has come."""
        self._heard, self._idle = self._clock(), 0

    def look(self) -> bool:
        """Return whether it is stalled: it owes answers and nobody has worked on them for STALL_S."""
        now = self._clock()
        since = now - self._looked
        if since < LOOK_S:
            return False
        self._looked = now
        if not self._owed or now - self._heard < STALL_S / 2 or since > GAP_S:
            self._idle = 0
            return False
        self._idle = 0 if self._works() else self._idle + 1
        return self._idle >= LOOKS and now - self._heard >= STALL_S

    def _works(self) -> bool:
        processes = descendants(self._processes())
        threads = [state for process in processes for state in states(process)]
        since, self._measured = self._clock() - self._measured, self._clock()
        before, self._spent = self._spent, sum(map(cpu_seconds, processes))
        return not threads or any(state in WORKING for state in threads) or self._spent - before > LEAST * since

    def kill(self) -> None:
        """End it, so that whoever waits for it is told. A stopped process hears of nothing less."""
        for process in descendants(self._processes()):
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)
