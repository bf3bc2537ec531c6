"""How much each key may ask: so many requests a minute, and so many at once. Each process counts for itself."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

AT_ONCE_RETRY_S = 1


@dataclass
class _Used:
    """tokens: requests that may come now; at: when that was counted; running: requests under way."""

    tokens: float
    at: float
    running: int = 0


class Shares:
    """Counts per key. per_minute: also how many may come in a row after a quiet minute; None is no limit.

    One lives as long as its process: what a key has used stays counted when the keys or the limits change.
    """

    def __init__(
        self,
        names: Iterable[str] = (),
        per_minute: int | None = None,
        at_once: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.per_minute, self.at_once, self.clock = per_minute, at_once, clock
        self._used = {name: self._unused() for name in names}

    def limit(self, per_minute: int | None, at_once: int | None) -> None:
        """From now on by these limits."""
        self.per_minute, self.at_once = per_minute, at_once

    def take(self, name: str) -> int | None:
        """Begin a request, which `give_back` ends. Where there is no share left: seconds until there may be one."""
        used = self._used.setdefault(name, self._unused())
        if self.at_once is not None and used.running >= self.at_once:
            return AT_ONCE_RETRY_S
        if self.per_minute is not None:
            now, each_s = self.clock(), 60 / self.per_minute
            used.tokens, used.at = min(self.per_minute, used.tokens + (now - used.at) / each_s), now
            if used.tokens < 1:
                return math.ceil((1 - used.tokens) * each_s)
            used.tokens -= 1
        used.running += 1
        return None

    def give_back(self, name: str) -> None:
        """A request is over."""
        self._used[name].running -= 1

    def _unused(self) -> _Used:
        return _Used(self.per_minute or 0, self.clock())
