"""What the router knows of a model: its card and skills, and a way to ask it."""

from collections.abc import AsyncGenerator
from typing import Protocol

from serve.engines.base import Piece, Prompt
from serve.models.base import Model
from serve.tasks.base import Delta, Reply, Request
from serve.worker import Status


class Route(Protocol):
    """The way to one model: a Worker in this process, or a handle to one in another."""

    @property
    def model(self) -> Model: ...

    def answer(self, task: str, request: Request) -> AsyncGenerator[Delta | Reply, None]: ...

    def speak(self, prompt: Prompt) -> AsyncGenerator[Piece, None]: ...

    async def status(self) -> Status: ...
