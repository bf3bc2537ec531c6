"""Limits the requests of each key, per minute and at once. Each process counts on its own."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from serve.limits import RateLimits

AT_ONCE_RETRY_S = 1


@dataclass
class _Usage:
    """A key's usage. tokens: requests that may start. counted_at: when tokens were updated (s). running: requests."""

    tokens: float
    counted_at: float
    running: int = 0


class RateLimiter:
    """A token bucket and a count of running requests for each key.

    A limiter lives as long as its process: usage stays counted when the keys or the limits change.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._usage: dict[str, _Usage] = {}

    def start(self, name: str, limits: RateLimits) -> int | None:
        """Start a request of this key; `finish` ends it. Return the seconds to wait where it may not start now."""
        a_minute, at_once = limits.requests_per_minute, limits.requests_at_once
        usage = self._usage.setdefault(name, _Usage(a_minute or 0, self.clock()))
        if at_once is not None and usage.running >= at_once:
            return AT_ONCE_RETRY_S
        if a_minute is not None:
            now, interval_s = self.clock(), 60 / a_minute
            tokens = usage.tokens + (now - usage.counted_at) / interval_s
            usage.tokens, usage.counted_at = min(a_minute, tokens), now
            if usage.tokens < 1:
                return math.ceil((1 - usage.tokens) * interval_s)
            usage.tokens -= 1
        usage.running += 1
        return None

    def finish(self, name: str) -> None:
        """End a request of this key."""
        self._usage[name].running -= 1
