"""A circuit breaker, which keeps requests away from a replica that fails all of them."""

import time
from collections.abc import Callable

FAILURES, REST_S = 5, 5.0


class Breaker:
    """Opens after FAILURES in a row, for REST_S seconds; then one request is let through as a trial."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        self._until = 0.0

    @property
    def open(self) -> bool:
        """True while the replica should get no requests."""
        return self._failures >= FAILURES and self._clock() < self._until

    def started(self) -> None:
        """Record that a request was sent. After a rest it is a trial, and no other request is sent meanwhile."""
        self._until = self._clock() + REST_S

    def failed(self) -> None:
        """Record a failure that was the replica's own fault."""
        self._failures += 1
        self._until = self._clock() + REST_S

    def succeeded(self) -> None:
        """Record a request that was answered."""
        self._failures = 0
