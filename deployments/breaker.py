"""A replica that fails whatever it is asked is left alone for a while: each failure costs its client time."""

import time
from collections.abc import Callable

FAILURES, REST_S = 5, 5.0


class Breaker:
    """Opens after FAILURES in a row, for REST_S; then one request is let through to see whether it is well again."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        self._until = 0.0

    @property
    def open(self) -> bool:
        """Whether nothing should be asked now."""
        return self._failures >= FAILURES and self._clock() < self._until

    def asked(self) -> None:
        """A request goes there. While it is tried whether it is well again, no other does."""
        self._until = self._clock() + REST_S

    def failed(self) -> None:
        """It failed a request by a fault of its own."""
        self._failures += 1
        self._until = self._clock() + REST_S

    def answered(self) -> None:
        """It answered one."""
        self._failures = 0
