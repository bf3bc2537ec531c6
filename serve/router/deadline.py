"""The time by which a request is to be answered, on the event loop's monotonic clock."""

import asyncio
from dataclasses import dataclass

from serve.errors import Unavailable


@dataclass(frozen=True)
class Deadline:
    """A point in time. at: by the event loop's clock. seconds: from the arrival of the request's head to `at`."""

    at: float
    seconds: float

    @classmethod
    def after(cls, seconds: float, arrived: float | None = None) -> "Deadline":
        """Return the deadline `seconds` after `arrived`, a time of the event loop; after now where that is left out."""
        start = asyncio.get_running_loop().time() if arrived is None else arrived
        return cls(start + seconds, seconds)

    def left(self) -> float:
        """Return the seconds that are left, at least 0."""
        return max(0.0, self.at - asyncio.get_running_loop().time())

    def earlier(self, share: float) -> "Deadline":
        """Return an earlier deadline, at `share` (0..1) of the remaining time."""
        left = self.left()
        return Deadline(self.at - left * (1 - share), self.seconds * share)

    def check(self) -> None:
        """Raise Unavailable where the deadline has passed."""
        if not self.left():
            raise self.passed()

    def passed(self, what: str = "The request") -> Unavailable:
        """Return the error that says that `what` was not done in time."""
        return Unavailable(f"{what} was not done within {self.seconds:g} s.", code="deadline_exceeded")
