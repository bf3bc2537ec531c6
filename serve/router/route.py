"""The interface through which the router calls a model, and the time by which a request is to be answered."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from serve.engines.base import Memory, Piece, Prompt, State, Wakes
from serve.errors import Unavailable
from serve.limits import LIMITS
from serve.models.base import Model
from serve.models.check_report import CheckReport
from serve.tasks.reply import Delta, Reply, Waiting
from serve.tasks.request import Request


@dataclass(frozen=True)
class Status:
    """The state of a model.

    step: its progress, or why it failed, as a sentence. since_s: seconds in this state. unanswered: requests of this
    gateway that it has not answered, including waiting ones. memory: its engine's, once that runs. report: of the check
    when it started, where that is switched on. wakes: where it shares memory with others and has slept.
    """

    model: str
    state: State
    step: str
    since_s: float
    unanswered: int = 0
    memory: Memory | None = None
    report: CheckReport | None = None
    wakes: Wakes | None = None


class Route(Protocol):
    """A Worker in this process, or a connection to one in another. Closing a stream early stops the model's work."""

    @property
    def model(self) -> Model: ...

    @property
    def full(self) -> bool:
        """Return whether any request would be refused now, because as many as may wait are waiting."""

    @property
    def joining(self) -> bool:
        """Return whether it was added while others served, and is not loaded yet: only requests that name it ask it."""

    def answer(self, task: str, request: Request) -> AsyncGenerator[Waiting | Delta | Reply, None]:
        """Yield what a sleeping model waits for, its deltas, then its one Reply. Raises ServeError while one is
        awaited."""

    def speak(self, prompt: Prompt) -> AsyncGenerator[Piece, None]:
        """Yield the engine's pieces of one prompt. Raises as `answer`."""

    async def status(self) -> Status: ...


@dataclass(frozen=True)
class Deadline:
    """A point in time. at: by the event loop's clock. seconds: from the arrival of the request's head to `at`."""

    at: float
    seconds: float

    @classmethod
    def after(cls, seconds: float, arrived: float | None = None) -> "Deadline":
        """Return the deadline `seconds` after `arrived`, a time of the event loop; after now where that is left out.

        It is sooner where the current request's limit is: no client wrote `seconds` then, as a longer one is refused.
        """
        seconds = min(seconds, LIMITS.get().max_deadline_s)
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
