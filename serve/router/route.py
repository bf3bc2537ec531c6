"""The way to one model: what the router knows of it."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from serve.engines.base import Piece, Prompt, State
from serve.models.base import Model
from serve.tasks.base import Delta, Reply, Request


@dataclass(frozen=True)
class Status:
    """A model's state.

    step: what it is doing or why it failed, as a sentence. since_s: seconds in this state. asked: requests that it was
    given here and has not answered, waiting ones included.
    """

    model: str
    state: State
    step: str
    since_s: float
    asked: int = 0


class Route(Protocol):
    """A Worker in this process, or a handle to one in another. Closing a stream early stops the model's work."""

    @property
    def model(self) -> Model: ...

    def answer(self, task: str, request: Request) -> AsyncGenerator[Delta | Reply, None]:
        """Yield a task's deltas, then its one Reply. Raises ServeError, and only where an item is waited for."""

    def speak(self, prompt: Prompt) -> AsyncGenerator[Piece, None]:
        """Yield the engine's pieces of one prompt. Raises as `answer`."""

    async def status(self) -> Status: ...
