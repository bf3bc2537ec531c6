"""The time by which a request is to be answered, on the event loop's monotonic clock."""

import asyncio
from dataclasses import dataclass

from serve.errors import Unavailable


@dataclass(frozen=True)
class Deadline:
    """at: the event loop's time; seconds: how long that was when the request's head arrived."""

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
        """Return the deadline that leaves the last part of the remaining time to what follows. share: in 0..1."""
        left = self.left()
        return Deadline(self.at - left * (1 - share), self.seconds * share)

    def check(self) -> None:
        """Raise Unavailable where it has passed."""
        if not self.left():
            raise self.passed()

    def passed(self, what: str = "The request") -> Unavailable:
        """Return the error for `what` was not done in time."""
        return Unavailable(f"{what} was not done within {self.seconds:g} s.", code="deadline_exceeded")
