"""Limits the requests of each key, per minute and at once. Each process counts on its own."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

AT_ONCE_RETRY_S = 1


@dataclass
class _Usage:
    """A key's usage. tokens: requests that may start. counted_at: when tokens were updated (s). running: requests."""

    tokens: float
    counted_at: float
    running: int = 0


class RateLimiter:
    """A token bucket and a count of running requests for each key.

    requests_per_minute: also the largest burst after a quiet minute; None for no limit. A limiter lives as long as its
    process: usage stays counted when the keys or the limits change.
    """

    def __init__(
        self,
        names: Iterable[str] = (),
        requests_per_minute: int | None = None,
        requests_at_once: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.requests_per_minute, self.requests_at_once, self.clock = requests_per_minute, requests_at_once, clock
        self._usage = {name: self._unused() for name in names}

    def limit(self, requests_per_minute: int | None, requests_at_once: int | None) -> None:
        """Apply these limits from now on."""
        self.requests_per_minute, self.requests_at_once = requests_per_minute, requests_at_once

    def start(self, name: str) -> int | None:
        """Start a request of this key; `finish` ends it. Return the seconds to wait where it may not start now."""
        usage = self._usage.setdefault(name, self._unused())
        if self.requests_at_once is not None and usage.running >= self.requests_at_once:
            return AT_ONCE_RETRY_S
        if self.requests_per_minute is not None:
            now, interval_s = self.clock(), 60 / self.requests_per_minute
            tokens = usage.tokens + (now - usage.counted_at) / interval_s
            usage.tokens, usage.counted_at = min(self.requests_per_minute, tokens), now
            if usage.tokens < 1:
                return math.ceil((1 - usage.tokens) * interval_s)
            usage.tokens -= 1
        usage.running += 1
        return None

    def finish(self, name: str) -> None:
        """End a request of this key."""
        self._usage[name].running -= 1

    def _unused(self) -> _Usage:
        return _Usage(self.requests_per_minute or 0, self.clock())
